// Planning a step, and what its results change.

#include <algorithm>
#include <limits>

#include "base/mutant.h"
#include "engine/scheduler_state.h"

namespace baton::engine {
namespace {

constexpr std::int32_t kFirstChunk = 128;  // of prompt tokens, while no speed is known
constexpr std::int32_t kLeastChunk = 16;   // of prompt tokens in a step, however slow the device

std::int64_t ns(Duration d) { return d.count() * 1000; }

// A moving average over about four values, in integers so that a simulated trace is the same everywhere.
void learn(std::int64_t& average, std::int64_t value) { average = average == 0 ? value : (3 * average + value) / 4; }

}  // namespace

std::int32_t Scheduler::blocks_for(std::int64_t tokens) const {
  return static_cast<std::int32_t>((tokens + options_.block_tokens - 1) / options_.block_tokens);
}

std::int32_t Scheduler::spare() const { return pool_.available() - (BATON_MUTANT(credit_lent_out) ? 0 : promised_blocks_); }

int Scheduler::slots_used() const {
  int slots = 0;
  for (const Sequence* s : running_) slots += s->group->slots();
  return slots;
}

const StepPlan* Scheduler::schedule() {
  if (step_running_ || counters_.failed) return nullptr;
  plan_.copies.clear();
  plan_.rows.clear();
  planned_.clear();
  tokens_left_ = options_.max_num_batched_tokens;
  logit_rows_left_ = options_.max_logit_rows;
  decode_rows_ = 0;
  prefill_tokens_ = 0;
  preempted_now_ = false;

  if (options_.chunked_prefill) {
    plan_decodes();
    tokens_left_ = std::min(tokens_left_, prefill_budget(decode_rows_));
    plan_prefills();
  } else {
    plan_prefills();
    if (plan_.rows.empty()) plan_decodes();
  }

  if (plan_.rows.empty()) return nullptr;
  ++plan_.step;
  step_running_ = true;
  return &plan_;
}

void Scheduler::plan_decodes() {
  for (std::size_t i = 0; i < running_.size();) {
    Sequence& s = *running_[i];
    if (s.remaining() == 1) {
      if (!grow(s)) continue;  // it has left running_
      ++decode_rows_;
      --tokens_left_;
      add_row(s, s.length());
    }
    ++i;
  }
}

// Those that run and those that wait, in one order; without chunks what has begun comes first.
void Scheduler::plan_prefills() {
  bool admitting = !preempted_now_;  // else the blocks that were taken away would go round in a circle
  for (std::size_t i = 0;;) {
    while (i < running_.size() && (running_[i]->in_step || running_[i]->remaining() == 1)) ++i;
    Sequence* const next = i < running_.size() ? running_[i] : nullptr;
    admitting = admitting && !waiting_.empty() && tokens_left_ > 0 && (options_.chunked_prefill || logit_rows_left_ > 0);
    if (admitting && (next == nullptr || (options_.chunked_prefill && before(*waiting_.front(), *next)))) {
      Sequence& s = *waiting_.front();
      admitting = admit(s);
      if (!admitting) continue;
      plan_prefill(s);
    } else if (next != nullptr) {
      plan_prefill(*next);
    } else {
      return;
    }
    ++i;  // past the one that was planned, whether it got tokens or not; one that was admitted stands before `next`
  }
}

std::int32_t Scheduler::prefill_budget(int decode_rows) const {
  const std::int64_t step = ns(options_.max_step);
  if (step == 0) return std::numeric_limits<std::int32_t>::max();
  if (prefill_token_ns_ == 0) return kFirstChunk;
  const std::int64_t left = std::max(step - (decode_rows > 0 ? decode_step_ns_ : 0), step / 4);
  return static_cast<std::int32_t>(
      std::clamp<std::int64_t>(left / prefill_token_ns_, kLeastChunk, std::numeric_limits<std::int32_t>::max()));
}

void Scheduler::plan_prefill(Sequence& s) {
  std::int32_t chunk = s.remaining();
  if (options_.chunked_prefill) {
    chunk = std::min(chunk, tokens_left_);
    if (options_.max_chunk > 0) chunk = std::min(chunk, options_.max_chunk);
  }
  const bool all_logits = s.group->wants_prompt_logprobs && s.computed < s.group->request.n_prompt - 1;
  if (all_logits) chunk = std::min(chunk, logit_rows_left_);
  if (chunk == s.remaining() && logit_rows_left_ == 0) --chunk;  // no logits left to sample from: its last token waits
  if (chunk <= 0) return;
  tokens_left_ -= chunk;
  prefill_tokens_ += chunk;
  counters_.prompt_tokens_computed += static_cast<std::uint64_t>(chunk);
  add_row(s, s.computed + chunk);
}

bool Scheduler::admit(Sequence& s) {
  Group& group = *s.group;
  if (slots_used() + promised_slots_ + group.slots() > options_.max_num_seqs) return false;
  std::span<const wire::BlockHash> chain;
  std::int32_t unheld = 0, cached = 0;
  if (options_.prefix_cache && !group.wants_prompt_logprobs) {
    extend_chain(s);
    // Its last token is always computed, since its logits are needed.
    chain = std::span(s.chain).first(static_cast<std::size_t>((s.length() - 1) / options_.block_tokens));
    cached = pool_.find(chain, &unheld);
  }
  const bool alone = plan_.rows.empty();
  if (!options_.chunked_prefill && !alone && s.length() - cached * options_.block_tokens > tokens_left_) return false;
  const std::int32_t fresh = blocks_for(s.length()) - cached;
  // Each that runs may need one more block soon; to take the last ones would only preempt this one again.
  if (const std::int32_t lacking = fresh + unheld + static_cast<std::int32_t>(running_.size()) - spare(); lacking > 0) {
    blocks_short_ = std::max(blocks_short_, lacking);
    return false;
  }

  pool_.match(chain, s.blocks);
  BATON_CHECK(pool_.allocate(fresh, s.blocks));
  s.computed = cached * options_.block_tokens;
  s.published = static_cast<std::size_t>(cached);
  dequeue(s);
  s.state = Sequence::State::kRunning;
  s.preempted = false;
  enqueue(running_, s);
  if (!group.started) {
    group.started = true;
    counters_.prompt_tokens += static_cast<std::uint64_t>(s.length());
    if (options_.prefix_cache) counters_.prefix_queries += static_cast<std::uint64_t>(s.length());
    counters_.prefix_hits += static_cast<std::uint64_t>(s.computed);
    emit(group, Output::Started{.cached_tokens = s.computed});
  }
  return true;
}

// Room for all of its ids. Sequences before `s` are already in the plan; the victim is never one of them, since `s` itself may be one.
bool Scheduler::grow(Sequence& s) {
  while (static_cast<std::int32_t>(s.blocks.size()) < blocks_for(s.length())) {
    if (spare() > 0) {
      BATON_CHECK(pool_.allocate(1, s.blocks));
      continue;
    }
    const auto victim =
        std::find_if(running_.rbegin(), running_.rend(), [](const Sequence* r) { return r->group->purpose != Purpose::kHandoffSource; });
    Sequence& v = **victim;
    preempt(v);
    if (&v == &s) return false;
  }
  return true;
}

void Scheduler::preempt(Sequence& s) {
  dequeue(s);
  give_back(s);
  s.computed = 0;
  s.published = 0;
  s.state = Sequence::State::kWaiting;
  s.preempted = true;
  enqueue(waiting_, s);
  ++counters_.preemptions;
  preempted_now_ = true;
  blocks_short_ = std::max(blocks_short_, 1);
  emit(*s.group, Output::Preempted{.choice = s.group->request.first_choice + s.choice});
}

void Scheduler::add_row(Sequence& s, std::int32_t end) {
  const Group& group = *s.group;
  StepRow row;
  row.seq = s.id;
  row.begin = s.computed;
  row.end = end;
  row.ids = &s.ids;
  row.blocks = &s.blocks;
  row.report_layers = group.purpose == Purpose::kHandoffSource;
  if (end == s.length()) {
    row.sample = SampleSpec{.params = &group.request.sampling,
                            .seed = group.request.seed,
                            .n_prompt = BATON_MUTANT(emitted_taken_as_prompt) && row.report_layers ? end : group.request.n_prompt,
                            .first_choice = group.request.first_choice + s.choice,
                            .choices = group.slots()};
  }
  if (group.wants_prompt_logprobs && s.computed < group.request.n_prompt - 1) {
    row.prompt_logprobs = group.request.sampling.prompt_logprobs;
    logit_rows_left_ -= end - s.computed;
  } else if (row.sample) {
    --logit_rows_left_;
  }
  if (s.copy) plan_.copies.push_back(*s.copy);
  s.in_step = true;
  plan_.rows.push_back(std::move(row));
  planned_.push_back(&s);
}

void Scheduler::on_result(StepResult& result) {
  BATON_CHECK(step_running_ && result.step == plan_.step);
  for (Sequence* s : planned_) {
    s->in_step = false;
    if (s->copy) {
      pool_.release(s->copy->from);
      s->copy.reset();
    }
    if (s->state == Sequence::State::kOver) give_back(*s);
  }
  if (!result.status.ok()) {
    fail_all(Status(Code::kUnavailable, result.status.message()).with_context("the device failed"));
  } else {
    BATON_CHECK(result.rows.size() >= plan_.rows.size());
    ++counters_.steps;
    learn_speed(result);
    for (std::size_t i = 0; i < planned_.size(); ++i) {
      Sequence& s = *planned_[i];
      const StepRow& row = plan_.rows[i];
      if (s.state != Sequence::State::kRunning) continue;
      s.computed = row.end;
      publish(s);
      if (row.prompt_logprobs >= 0) take_prompt_logprobs(s, row, result.rows[i].prompt);
      if (row.sample) take_samples(s, result.rows[i].sampled);
    }
  }
  step_running_ = false;
  graveyard_.clear();
}

void Scheduler::learn_speed(const StepResult& result) {
  const std::int64_t took = ns(result.elapsed);
  if (prefill_tokens_ == 0) {
    learn(decode_step_ns_, took);
  } else if (prefill_tokens_ >= kLeastChunk) {
    const std::int64_t decodes = decode_rows_ > 0 ? decode_step_ns_ : 0;
    learn(prefill_token_ns_, std::max<std::int64_t>(std::max(took - decodes, took / 4) / prefill_tokens_, 1));
  }
}

void Scheduler::extend_chain(Sequence& s) {
  const auto size = static_cast<std::size_t>(options_.block_tokens);
  while ((s.chain.size() + 1) * size <= s.ids.size()) {
    const wire::BlockHash previous = s.chain.empty() ? wire::prefix_root(s.group->request.cache_salt) : s.chain.back();
    s.chain.push_back(wire::prefix_extend(previous, std::span(s.ids).subspan(s.chain.size() * size, size)));
  }
}

void Scheduler::publish(Sequence& s) {
  const auto full = static_cast<std::size_t>((BATON_MUTANT(published_uncomputed) ? s.length() : s.computed) / options_.block_tokens);
  if (!options_.prefix_cache || s.published >= full) return;
  extend_chain(s);
  for (; s.published < full; ++s.published) pool_.publish(s.blocks[s.published], s.chain[s.published]);
}

void Scheduler::take_prompt_logprobs(Sequence& s, const StepRow& row, std::vector<Sampled>& entries) {
  Group& group = *s.group;
  const std::int32_t n_prompt = group.request.n_prompt;
  std::int32_t position = row.begin + 1;
  for (Sampled& e : entries) {
    if (position >= n_prompt) break;
    group.prompt_logprobs[static_cast<std::size_t>(position)] = wire::TokenEvent{
        .choice = group.request.first_choice, .position = position, .token = e.token, .logprob = e.logprob, .top = std::move(e.top)};
    ++position;
  }
  if (row.end < n_prompt - 1) return;
  group.wants_prompt_logprobs = false;
  emit(group, Output::PromptLogprobs{std::move(group.prompt_logprobs)});
}

void Scheduler::take_samples(Sequence& s, std::vector<Sampled>& sampled) {
  Group& group = *s.group;
  BATON_CHECK(static_cast<int>(sampled.size()) >= group.slots());
  if (group.wants_prompt_logprobs) {  // of a prompt of one token, nothing was asked of the device
    group.wants_prompt_logprobs = false;
    emit(group, Output::PromptLogprobs{std::move(group.prompt_logprobs)});
  }
  if (group.purpose == Purpose::kHandoffSource) return hand_off(s, sampled);
  const std::int32_t position = s.length();
  const auto take = [&](Sequence& choice, Sampled& token) {
    emit(group, wire::TokenEvent{.choice = group.request.first_choice + choice.choice,
                                 .position = position,
                                 .token = token.token,
                                 .logprob = token.logprob,
                                 .top = std::move(token.top)});
    append(choice, token.token, finish_of(group, choice.choice, position + 1, token.token));
  };
  if (group.forked) return take(s, sampled.front());
  fork(s);
  const int n = group.request.n;  // the last choice's end may end the group
  for (int i = 0; i < n; ++i) take(*group.sequences[static_cast<std::size_t>(i)], sampled[static_cast<std::size_t>(i)]);
}

void Scheduler::hand_off(Sequence& s, std::vector<Sampled>& sampled) {
  Group& group = *s.group;
  std::vector<FirstToken> first;
  for (int i = 0; i < group.request.n; ++i) {
    Sampled& t = sampled[static_cast<std::size_t>(i)];
    first.push_back({.token = {.choice = group.request.first_choice + i,
                               .position = s.length(),
                               .token = t.token,
                               .logprob = t.logprob,
                               .top = std::move(t.top)},
                     .finish = finish_of(group, i, s.length() + 1, t.token)});
    ++counters_.generation_tokens;
  }
  dequeue(s);
  s.state = Sequence::State::kAside;
  deadlines_.erase({group.deadline, group.id});
  group.deadline = kNever;
  emit(group, Output::First{std::move(first)});
}

void Scheduler::fork(Sequence& parent) {
  Group& group = *parent.group;
  group.forked = true;
  const auto full = static_cast<std::size_t>(parent.computed / options_.block_tokens);
  const bool partial = parent.computed % options_.block_tokens != 0 && !BATON_MUTANT(fork_shares_partial_block);
  for (int choice = 1; choice < group.request.n; ++choice) {
    auto child = std::make_unique<Sequence>();
    child->group = &group;
    child->id = SeqId(next_id_++);
    child->choice = choice;
    child->ids = parent.ids;
    child->chain = parent.chain;
    if (partial && spare() <= 0) {  // it computes the prompt again when there is room; the prefix cache makes that short
      child->preempted = true;
      ++counters_.preemptions;
      enqueue(waiting_, *child);
      emit(group, Output::Preempted{.choice = group.request.first_choice + choice});
    } else {
      child->state = Sequence::State::kRunning;
      child->computed = parent.computed;
      child->published = full;
      child->blocks.assign(parent.blocks.begin(), parent.blocks.begin() + static_cast<std::ptrdiff_t>(full));
      if (BATON_MUTANT(fork_shares_partial_block)) child->blocks = parent.blocks;
      for (const BlockId b : child->blocks) pool_.share(b);
      if (partial) {
        BATON_CHECK(pool_.allocate(1, child->blocks));
        pool_.share(parent.blocks[full]);
        child->copy = StepPlan::BlockCopy{.from = parent.blocks[full], .to = child->blocks.back()};
      }
      enqueue(running_, *child);
    }
    group.sequences.push_back(std::move(child));
  }
}

void Scheduler::append(Sequence& s, TokenId token, const std::optional<wire::FinishEvent>& finish) {
  s.ids.push_back(token);
  ++counters_.generation_tokens;
  if (finish) end_choice(s, *finish);
}

std::optional<wire::FinishEvent> Scheduler::finish_of(const Group& group, int choice, std::int64_t length, TokenId token) const {
  const wire::SamplingParams& p = group.request.sampling;
  const std::int64_t generated = length - group.request.n_prompt;
  const auto in = [token](const std::vector<TokenId>& ids) { return std::find(ids.begin(), ids.end(), token) != ids.end(); };
  wire::FinishEvent finish{.choice = group.request.first_choice + choice, .reason = wire::FinishReason::kStop, .stop_token = token};
  if (generated > p.min_tokens && ((!p.ignore_eos && in(p.eos_ids)) || in(p.stop_token_ids))) return finish;
  finish.reason = wire::FinishReason::kLength;
  finish.stop_token.reset();
  if (generated >= p.max_tokens || length >= options_.max_model_len) return finish;
  return std::nullopt;
}

void Scheduler::end_choice(Sequence& s, wire::FinishEvent finish) {
  Group& group = *s.group;
  emit(group, finish);
  detach(s);
  if (--group.live > 0) return;
  emit(group, Output::Done{});
  close(group);
}

}  // namespace baton::engine
