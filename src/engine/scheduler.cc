#include "engine/scheduler.h"

#include <algorithm>
#include <string>
#include <tuple>

#include "base/mutant.h"
#include "engine/scheduler_state.h"

namespace baton::engine {
namespace {

// How much output a lease's credit covers. More is taken on demand: holding max_tokens for everyone would leave most of the pool idle.
constexpr std::int64_t kCreditOutputTokens = 128;

constexpr int kPriorityMax = 6;  // further ones count as that
constexpr Duration kPriorityStep = std::chrono::seconds(10);
constexpr Duration kWorkMax = std::chrono::seconds(10);  // by which a long prompt stands back
static_assert(2 * kPriorityMax * kPriorityStep + kWorkMax == Scheduler::kAgeing);

std::string count(std::int64_t n, std::string_view what) { return std::to_string(n) + " " + std::string(what); }

}  // namespace

Scheduler::Scheduler(const EngineOptions& options) : options_(options), pool_(options.kv_blocks) {
  BATON_CHECK_MSG(options.block_tokens > 0 && options.kv_blocks > 0, "an engine needs a KV pool");
  BATON_CHECK(options.max_num_seqs > 0 && options.max_model_len > 1);
  options_.max_num_batched_tokens = std::max(options.max_num_batched_tokens, options.max_num_seqs);
  options_.max_logit_rows = std::max(options.max_logit_rows, options.max_num_seqs);
  plan_.rows.reserve(static_cast<std::size_t>(options.max_num_seqs));
  planned_.reserve(static_cast<std::size_t>(options.max_num_seqs));
}

Scheduler::~Scheduler() = default;

Status Scheduler::validate(const wire::GenerateRequest& request, Purpose purpose) const {
  const auto refuse = [](std::string why) { return Status(Code::kInvalidArgument, std::move(why)); };
  const auto length = static_cast<std::int64_t>(request.ids.size());
  const std::int64_t emitted = length - request.n_prompt;
  if (counters_.failed) return {Code::kUnavailable, "the engine's device has failed; its worker must be restarted"};
  if (length == 0) return refuse("the prompt is empty: at least one token is needed");
  if (request.n_prompt < 1 || emitted < 0) return refuse("n_prompt must be between 1 and the number of ids, " + std::to_string(length));
  if (request.n < 1) return refuse("n must be at least 1");
  if (request.n > options_.max_num_seqs) {
    return refuse("n is " + std::to_string(request.n) + ", but at most " + std::to_string(options_.max_num_seqs) +
                  " sequences run at once (--max-num-seqs)");
  }
  if (request.n > 1 && emitted > 0) return refuse("a continuation is of one choice, not of n = " + std::to_string(request.n));
  if (request.sampling.max_tokens < 1) return refuse("max_tokens must be at least 1");
  if (emitted >= request.sampling.max_tokens) {
    return refuse("all of max_tokens (" + std::to_string(request.sampling.max_tokens) + ") have been generated already");
  }
  if (length >= options_.max_model_len) {
    return refuse("This model's maximum context length is " + count(options_.max_model_len, "tokens, but the prompt has ") +
                  count(length, "tokens") + ", which leaves no room for output. Shorten the prompt.");
  }
  if (options_.vocab > 0) {
    for (const TokenId id : request.ids) {
      if (id < 0 || id >= options_.vocab) {
        return refuse("token id " + std::to_string(id) + " is outside the vocabulary of " + count(options_.vocab, "tokens"));
      }
    }
  }
  // The last token of a sequence is never computed; a source computes what it is given and nothing more.
  const std::int64_t longest = purpose == Purpose::kHandoffSource
                                   ? length
                                   : std::min(options_.max_model_len, request.n_prompt + std::int64_t{request.sampling.max_tokens}) - 1;
  if (blocks_for(longest) > pool_.total()) {
    return refuse("the request may need the KV cache of " + count(longest, "tokens") + " at once, but the whole cache holds " +
                  count(std::int64_t{pool_.total()} * options_.block_tokens, "tokens") +
                  ". Lower max_tokens or shorten the prompt, or start with a larger --kv-cache-memory-bytes.");
  }
  return {};
}

Scheduler::Group* Scheduler::find(SeqId request) const {
  const auto it = groups_.find(request);
  return it == groups_.end() ? nullptr : it->second.get();
}

Scheduler::Group& Scheduler::make_group(wire::GenerateRequest request, Purpose purpose, TimePoint now) {
  auto group = std::make_unique<Group>();
  group->id = SeqId(next_id_++);
  group->purpose = purpose;
  group->since = now;
  group->due = now + std::clamp(request.priority, -kPriorityMax, kPriorityMax) * kPriorityStep;
  if (options_.chunked_prefill && purpose != Purpose::kHandoffTarget) {
    const Duration work(static_cast<std::int64_t>(request.ids.size()) * prefill_token_ns_ / 1000);
    group->due += std::min(work, kWorkMax);
  }
  group->continues = static_cast<std::size_t>(request.n_prompt) < request.ids.size();
  group->live = request.n;
  group->forked = request.n == 1;
  group->wants_prompt_logprobs = request.sampling.prompt_logprobs >= 0 && purpose != Purpose::kHandoffTarget;
  if (group->wants_prompt_logprobs) group->prompt_logprobs.resize(static_cast<std::size_t>(request.n_prompt));
  auto sequence = std::make_unique<Sequence>();
  sequence->group = group.get();
  sequence->id = group->id;
  sequence->ids = std::move(request.ids);
  group->sequences.push_back(std::move(sequence));
  group->request = std::move(request);
  group->request.ids.clear();
  Group& g = *group;
  groups_.emplace(g.id, std::move(group));
  return g;
}

void Scheduler::set_deadline(Group& group, TimePoint now) {
  group.deadline = now + group.request.timeout;
  deadlines_.emplace(group.deadline, group.id);
}

Result<SeqId> Scheduler::add(wire::GenerateRequest request, Purpose purpose, TimePoint now) {
  BATON_CHECK(purpose != Purpose::kHandoffTarget);
  BATON_RETURN_IF_ERROR(validate(request, purpose));
  if (static_cast<std::int32_t>(waiting_.size()) >= options_.max_waiting) {
    return {Code::kResourceExhausted, "the queue is full: " + count(options_.max_waiting, "requests wait already")};
  }
  Group& group = make_group(std::move(request), purpose, now);
  set_deadline(group, now);
  enqueue(waiting_, *group.sequences.front());
  return group.id;
}

std::int32_t Scheduler::credit(const wire::GenerateRequest& request) const {
  const auto length = static_cast<std::int64_t>(request.ids.size());
  const std::int64_t output = std::min(
      {kCreditOutputTokens, request.n_prompt + std::int64_t{request.sampling.max_tokens} - length, options_.max_model_len - length});
  return std::min(pool_.total(), blocks_for(length) + request.n * blocks_for(output));
}

Status Scheduler::reserve(LeaseId lease, const wire::GenerateRequest& request) {
  BATON_RETURN_IF_ERROR(validate(request, Purpose::kHandoffTarget));
  if (leases_.contains(lease)) return {Code::kInvalidArgument, "lease " + std::to_string(lease.value) + " is reserved already"};
  if (preempted_waiting_ > 0) {
    return {Code::kResourceExhausted, "preempted sequences wait for KV blocks: " + std::to_string(preempted_waiting_)};
  }
  const int slots = slots_used() + promised_slots_;
  if (slots + request.n > options_.max_num_seqs) {
    return {Code::kResourceExhausted, std::to_string(slots) + " of " +
                                          count(options_.max_num_seqs, "sequences run or are promised; wanted: ") +
                                          std::to_string(request.n)};
  }
  const std::int32_t wanted = credit(request);
  const std::int32_t left = spare() - static_cast<std::int32_t>(running_.size());  // each that runs may need one more soon
  if (wanted > left) {
    blocks_short_ = std::max(blocks_short_, wanted - std::max(left, 0));
    return {Code::kResourceExhausted, "KV blocks free: " + std::to_string(std::max(left, 0)) + ", wanted: " + std::to_string(wanted) +
                                          ", of " + std::to_string(pool_.total())};
  }
  leases_.emplace(lease, Lease{.blocks = wanted, .slots = request.n});
  promised_blocks_ += wanted;
  promised_slots_ += request.n;
  return {};
}

void Scheduler::unreserve(LeaseId lease) {
  const auto it = leases_.find(lease);
  if (it == leases_.end()) return;
  promised_blocks_ -= it->second.blocks;
  if (!BATON_MUTANT(credit_kept)) promised_slots_ -= it->second.slots;
  leases_.erase(it);
}

Result<Grant> Scheduler::grant(LeaseId lease, wire::GenerateRequest request, TimePoint now) {
  BATON_RETURN_IF_ERROR(validate(request, Purpose::kHandoffTarget));
  const auto it = leases_.find(lease);
  if (it == leases_.end()) return {Code::kNotFound, "there is no lease " + std::to_string(lease.value) + ", or it has ended"};
  const auto length = static_cast<std::int64_t>(request.ids.size());
  if (blocks_for(length) > it->second.blocks || request.n != it->second.slots) {
    return {Code::kInvalidArgument, "lease " + std::to_string(lease.value) + " was reserved for another request"};
  }
  promised_blocks_ -= it->second.blocks;  // its slots stay promised until start_decode()
  leases_.erase(it);

  Group& group = make_group(std::move(request), Purpose::kHandoffTarget, now);
  group.deadline = now + group.request.timeout;  // whoever transfers watches it until start_decode()
  Sequence& sequence = *group.sequences.front();
  sequence.state = Sequence::State::kAside;
  std::int32_t cached = 0;
  if (options_.prefix_cache) {
    extend_chain(sequence);
    cached = pool_.match(sequence.chain, sequence.blocks);
    if (BATON_MUTANT(granted_prefix_not_pinned)) pool_.release(sequence.blocks);
    sequence.published = static_cast<std::size_t>(cached);
    counters_.prefix_queries += static_cast<std::uint64_t>(length);
    counters_.prefix_hits += static_cast<std::uint64_t>(cached) * static_cast<std::uint64_t>(options_.block_tokens);
  }
  BATON_CHECK(pool_.allocate(blocks_for(length) - cached, sequence.blocks));  // the credit was never lent out
  if (BATON_MUTANT(published_at_grant)) sequence.computed = sequence.length(), publish(sequence);
  return Grant{.seq = group.id, .cached_tokens = cached * options_.block_tokens, .blocks = sequence.blocks};
}

Status Scheduler::start_decode(SeqId request, std::vector<FirstToken> first) {
  Group* group = find(request);
  if (group == nullptr || group->purpose != Purpose::kHandoffTarget || group->started) {
    return {Code::kNotFound, "sequence " + std::to_string(request.value) + " was not granted, has ended, or decodes already"};
  }
  Sequence& parent = *group->sequences.front();
  bool sound = static_cast<int>(first.size()) == group->request.n;
  for (std::size_t i = 0; sound && i < first.size(); ++i) {
    const wire::TokenEvent& t = first[i].token;
    sound = t.choice == group->request.first_choice + static_cast<int>(i) && t.position == parent.length() && t.token >= 0 &&
            (options_.vocab == 0 || t.token < options_.vocab);
  }
  if (!sound) return {Code::kInvalidArgument, "the first tokens do not fit the request: one of each choice is needed, at the prompt's end"};

  group->started = true;
  promised_slots_ -= group->request.n;
  deadlines_.emplace(group->deadline, group->id);
  parent.computed = parent.length();
  publish(parent);
  parent.state = Sequence::State::kRunning;
  enqueue(running_, parent);
  const int n = group->request.n;
  fork(parent);
  // Ending the last choice ends the group.
  std::vector<Sequence*> choices;
  for (const auto& s : group->sequences) choices.push_back(s.get());
  for (int i = 0; i < n; ++i) {
    const FirstToken& f = first[static_cast<std::size_t>(i)];
    Sequence& s = *choices[static_cast<std::size_t>(i)];
    append(s, f.token.token, f.finish ? f.finish : finish_of(*group, i, s.length() + 1, f.token.token));
  }
  return {};
}

void Scheduler::finish_choice(SeqId request, int choice) {
  Group* group = find(request);
  if (group == nullptr || !group->forked || group->purpose == Purpose::kHandoffSource) return;
  const int offset = (choice - group->request.first_choice) ^ (BATON_MUTANT(wrong_choice_finished) ? 1 : 0);
  for (const auto& s : group->sequences) {
    if (s->choice != offset || (s->state != Sequence::State::kRunning && s->state != Sequence::State::kWaiting)) continue;
    end_choice(*s, {.choice = choice, .reason = wire::FinishReason::kStop, .stop_token = std::nullopt});
    return;
  }
}

void Scheduler::release(SeqId request) {
  if (Group* group = find(request)) close(*group);
}

void Scheduler::expire(TimePoint now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    Group& group = *find(deadlines_.begin()->second);
    const Status late(Code::kDeadlineExceeded, "the request's time of " + count(group.request.timeout.count() / 1000, "ms is over"));
    emit(group, Output::Done{late});
    if (group.purpose != Purpose::kHandoffSource) {
      close(group);
      continue;
    }
    deadlines_.erase(deadlines_.begin());
    group.deadline = kNever;
    Sequence& s = *group.sequences.front();
    dequeue(s);
    s.state = Sequence::State::kAside;
  }
}

TimePoint Scheduler::next_deadline() const { return deadlines_.empty() ? kNever : deadlines_.begin()->first; }

void Scheduler::close(Group& group) {
  if (group.purpose == Purpose::kHandoffTarget && !group.started) promised_slots_ -= group.request.n;
  if (group.deadline != kNever) deadlines_.erase({group.deadline, group.id});
  for (const auto& s : group.sequences) detach(*s);
  const auto it = groups_.find(group.id);
  if (step_running_) graveyard_.push_back(std::move(it->second));
  groups_.erase(it);
}

void Scheduler::detach(Sequence& s) {
  if (s.state == Sequence::State::kOver) return;
  dequeue(s);
  s.state = Sequence::State::kOver;
  if (!s.in_step || BATON_MUTANT(freed_under_step)) give_back(s);
}

void Scheduler::give_back(Sequence& s) {
  pool_.release(s.blocks);
  s.blocks.clear();
  if (s.copy) pool_.release(s.copy->from);
  s.copy.reset();
}

void Scheduler::fail_all(const Status& status) {
  counters_.failed = true;
  while (!groups_.empty()) {
    Group& group = *groups_.begin()->second;
    emit(group, Output::Done{status});
    close(group);
  }
  while (!leases_.empty()) unreserve(leases_.begin()->first);
}

bool Scheduler::before(const Sequence& a, const Sequence& b) {
  const auto rank = [](const Sequence& s) { return std::tuple(!s.group->continues, s.group->due, s.group->id, s.choice); };
  return rank(a) < rank(b);
}

void Scheduler::enqueue(std::vector<Sequence*>& queue, Sequence& s) {
  queue.insert(std::upper_bound(queue.begin(), queue.end(), &s, [](const Sequence* a, const Sequence* b) { return before(*a, *b); }), &s);
  if (&queue == &waiting_ && s.preempted) ++preempted_waiting_;
}

void Scheduler::dequeue(Sequence& s) {
  if (s.state != Sequence::State::kWaiting && s.state != Sequence::State::kRunning) return;
  std::vector<Sequence*>& queue = s.state == Sequence::State::kWaiting ? waiting_ : running_;
  const auto it = std::find(queue.begin(), queue.end(), &s);
  BATON_CHECK(it != queue.end());
  queue.erase(it);
  if (&queue == &waiting_ && s.preempted) --preempted_waiting_;
}

std::span<const BlockId> Scheduler::blocks(SeqId request) const {
  const Group* group = find(request);
  if (group == nullptr) return {};
  return group->sequences.front()->blocks;
}

EngineStatus Scheduler::status() const {
  EngineStatus s = counters_;
  s.running = static_cast<int>(running_.size());
  s.waiting = static_cast<int>(waiting_.size());
  s.requests = static_cast<int>(groups_.size());
  s.blocks_total = pool_.total();
  s.blocks_free = pool_.free();
  s.blocks_cached = pool_.cached();
  s.blocks_held = pool_.held();
  const bool nobody = groups_.empty() && !step_running_;
  s.balanced = pool_.free() + pool_.cached() + pool_.held() == pool_.total() && !(nobody && pool_.held() != 0) &&
               !(leases_.empty() && promised_blocks_ != 0);
  s.blocks_reserved = promised_blocks_;
  s.step_unmeasured = step_running_ && (prefill_tokens_ > 0 ? prefill_token_ns_ == 0 : decode_step_ns_ == 0);
  if (step_running_ && !options_.chunked_prefill) {
    s.step_expected = Duration((std::int64_t{prefill_tokens_} * prefill_token_ns_ + (decode_rows_ > 0 ? decode_step_ns_ : 0)) / 1000);
  }
  s.prefill_tokens_per_s = prefill_token_ns_ > 0 ? 1e9 / static_cast<double>(prefill_token_ns_) : 0;
  for (const Sequence* q : waiting_) s.queued_prefill_tokens += q->length();
  for (const Sequence* r : running_) s.queued_prefill_tokens += r->remaining() > 1 ? r->remaining() : 0;
  return s;
}

std::vector<SequenceHold> Scheduler::holds() const {
  std::vector<SequenceHold> out;
  std::vector<BlockId> blocks;
  const auto add = [&](const Group& group, bool ending) {
    if (group.purpose == Purpose::kHandoffSource || (group.purpose == Purpose::kHandoffTarget && !group.started)) return;
    blocks.clear();
    bool waits = false;
    for (const auto& s : group.sequences) {
      blocks.insert(blocks.end(), s->blocks.begin(), s->blocks.end());
      waits |= s->state == Sequence::State::kWaiting;
    }
    std::sort(blocks.begin(), blocks.end());
    const auto distinct = static_cast<std::int32_t>(std::unique(blocks.begin(), blocks.end()) - blocks.begin());
    if (distinct > 0)
      out.push_back({group.request.id, ending ? "ending" : waits ? "waiting" : "running", distinct, group.since, group.deadline});
  };
  for (const auto& [id, group] : groups_) add(*group, false);
  for (const auto& group : graveyard_) add(*group, true);
  return out;
}

Status Scheduler::check() const {
  BATON_RETURN_IF_ERROR(pool_.check());
  std::vector<std::int32_t> references(static_cast<std::size_t>(pool_.total()), 0);
  int targets = 0;
  const auto count_group = [&](const Group& group) {
    for (const auto& s : group.sequences) {
      for (const BlockId b : s->blocks) ++references[static_cast<std::size_t>(b.value)];
      if (s->copy) ++references[static_cast<std::size_t>(s->copy->from.value)];
    }
  };
  for (const auto& [id, group] : groups_) {
    count_group(*group);
    if (group->purpose == Purpose::kHandoffTarget && !group->started) targets += group->request.n;
  }
  for (const auto& group : graveyard_) count_group(*group);
  for (std::int32_t i = 0; i < pool_.total(); ++i) {
    if (pool_.references(BlockId(i)) != references[static_cast<std::size_t>(i)]) {
      return {Code::kInternal, "block " + std::to_string(i) + " has " + std::to_string(pool_.references(BlockId(i))) +
                                   " references, of which " + std::to_string(references[static_cast<std::size_t>(i)]) + " are sequences'"};
    }
  }
  std::int32_t blocks = 0;
  int slots = targets, preempted = 0;
  for (const auto& [id, lease] : leases_) {
    blocks += lease.blocks;
    slots += lease.slots;
  }
  for (const Sequence* s : waiting_) preempted += s->preempted ? 1 : 0;
  if (blocks != promised_blocks_ || slots != promised_slots_ || preempted != preempted_waiting_)
    return {Code::kInternal, "promises do not add up"};
  if (promised_blocks_ > pool_.available()) return {Code::kInternal, "more blocks are promised than there are"};
  if (!step_running_ && !graveyard_.empty()) return {Code::kInternal, "the dead outlived their step"};
  if (idle() && !step_running_ && pool_.held() != 0) return {Code::kInternal, "idle, but blocks are held"};
  return {};
}

}  // namespace baton::engine
