#include "transfer/sender.h"

#include <algorithm>

#include "base/mutant.h"

namespace baton::transfer {

std::string_view to_string(Sender::State state) {
  constexpr std::string_view kNames[] = {"queued", "attaching", "streaming", "committing", "aborting",
                                         "acked",  "nacked",    "aborted",   "no_kv",      "unclaimed"};
  return kNames[static_cast<int>(state)];
}

Sender::Sender(SenderSpec spec, SenderOptions options)
    : spec_(std::move(spec)), options_(options), deadline_(spec_.deadline), layers_(static_cast<std::size_t>(spec_.layers)) {
  BATON_CHECK(spec_.layers > 0 && spec_.n_tokens > 0 && spec_.block_tokens > 0 && !spec_.heads.empty());
  times_.attempt = spec_.attempt;
  progress_at_ = spec_.start;
}

std::uint64_t Sender::bytes(std::int64_t heads, Range tokens) const {
  return static_cast<std::uint64_t>(tokens.size()) * 2 * spec_.row_bytes * static_cast<std::uint64_t>(heads);
}

std::uint64_t Sender::bytes_total() const {
  std::int64_t heads = 0;
  for (const Range& of_rank : spec_.heads) heads += of_rank.size();
  return bytes(heads, {cached_, spec_.n_tokens}) * static_cast<std::uint64_t>(spec_.layers);
}

void Sender::set(std::vector<std::int64_t>& times, std::int32_t layer, TimePoint now) const {
  const auto at = static_cast<std::size_t>(layer);
  if (at >= wire::HandoffTimes::kLayersMax) return;
  if (times.empty()) times.assign(std::min(layers_.size(), wire::HandoffTimes::kLayersMax), -1);
  times[at] = since(now);
}

void Sender::attach(TimePoint now) {
  if (state_ != State::kQueued || spec_.lease == LeaseId() || spec_.one_token || outcome_) return;
  state_ = State::kAttaching;
  times_.attached_us = since(progress_at_ = now);
  await_target(now);
  actions_.push_back(Send{Attach{key(), spec_.request_id, spec_.n_tokens, spec_.ids}});
}

void Sender::layer_ready(TimePoint now, std::int32_t layer, std::int32_t begin, std::int32_t end) {
  Layer& l = layers_.at(static_cast<std::size_t>(BATON_MUTANT(announced_unwritten) ? spec_.layers - 1 - layer : layer));
  BATON_CHECK_MSG(begin <= l.ready && end <= spec_.n_tokens, "layer reports leave no gap");
  l.ready = std::max(l.ready, end);
  progress_at_ = now;
  set(times_.ready_us, layer, now);
  if (layer == spec_.layers - 1) {
    if (times_.chunks.size() < wire::HandoffTimes::kChunksMax) times_.chunks.emplace_back(end, since(now));
    if (end == spec_.n_tokens) early_ = fetched_, times_.computed_us = since(now);
  }
  pump(now);
}

void Sender::first_tokens(TimePoint now, std::vector<FirstToken> first) {
  BATON_CHECK(first_.empty() && !first.empty());
  first_ = std::move(first);
  times_.first_token_us = since(progress_at_ = now);
  if (outcome_) return;
  if (std::all_of(first_.begin(), first_.end(), [](const FirstToken& f) { return f.finish.has_value(); })) {
    return end(now, State::kNoKv, Status(), /*tell_target=*/true);
  }
  if (spec_.lease == LeaseId()) return end(now, State::kUnclaimed, Status(), /*tell_target=*/false);
  pump(now);
}

void Sender::message(TimePoint now, const Message& message) {
  const auto* key = std::visit(
      [](const auto& m) -> const Key* {
        if constexpr (requires { m.key; }) {
          return &m.key;
        }
        return nullptr;
      },
      message);
  // Leases and attempts name us; the epoch fences what belongs to an earlier life of the same lease.
  if (key == nullptr || key->lease != spec_.lease || key->attempt != spec_.attempt) return;
  progress_at_ = now;
  if (const auto* m = std::get_if<Grant>(&message)) return on(now, *m);
  if (const auto* m = std::get_if<Refuse>(&message)) {
    if (!outcome_) end(now, State::kNacked, m->status, /*tell_target=*/false);
  } else if (const auto* m = std::get_if<Nack>(&message)) {
    // D will use nothing more, but a copy that runs still reads: its answer to the abort says when none does.
    if (!outcome_) end(now, State::kNacked, m->status, /*tell_target=*/true);
  } else if (const auto* m = std::get_if<Fetched>(&message)) {
    on(now, *m);
  } else if (std::holds_alternative<Ack>(message)) {
    if (state_ != State::kCommitting || *key != this->key()) return;
    fetched_ = bytes_total();
    end(now, State::kAcked, Status(), /*tell_target=*/false);
  } else if (std::holds_alternative<AbortAck>(message)) {
    awaiting_abort_ack_ = false;
    release_if_quiet();
  }
}

void Sender::on(TimePoint now, const Grant& m) {
  if (state_ != State::kAttaching || outcome_) return;
  epoch_ = times_.epoch = m.key.epoch;
  times_.granted_us = since(now);
  if (m.cached_prefix > spec_.n_tokens || epoch_ == Epoch(0)) {
    return end(now, State::kNacked, Status(Code::kDataLoss, "the decode worker granted nonsense"), /*tell_target=*/true);
  }
  cached_ = m.cached_prefix;
  for (Layer& l : layers_) l.cut = cached_;
  state_ = State::kStreaming;
  deadline_ = spec_.deadline;  // from here the computation sets the pace, until D owes something
  pump(now);
}

// Each proof buys D another while; a D that only says that it lives buys none.
void Sender::on(TimePoint now, const Fetched& m) {
  if (outcome_ || m.key != key() || m.bytes <= fetched_) return;
  fetched_ = std::min(m.bytes, announced_);
  if (state_ == State::kStreaming && fetched_ == announced_) {
    deadline_ = spec_.deadline;
  } else {
    await_target(now);
  }
}

// Gives out chunks, then the commit.
void Sender::pump(TimePoint now) {
  if (state_ != State::kStreaming || outcome_) return;
  for (std::size_t i = 0; i < layers_.size() && digests_.size() < static_cast<std::size_t>(options_.digests_max);) {
    Layer& l = layers_[i];
    if (l.cut >= l.ready) {
      ++i;
      continue;
    }
    std::int32_t end = std::min(l.ready, l.cut + options_.chunk_tokens_max);
    if (end < l.ready) end = std::max(l.cut + 1, end - end % spec_.block_tokens);
    const Range tokens{l.cut, end};
    l.cut = end;
    for (const Range& heads : spec_.heads) {
      const DigestChunk chunk{next_digest_++, static_cast<std::int32_t>(i), heads, tokens};
      digests_.emplace(chunk.id, chunk);
      actions_.push_back(chunk);
    }
  }
  const bool all_announced = (digests_.empty() || BATON_MUTANT(committed_before_last_chunk)) &&
                             std::all_of(layers_.begin(), layers_.end(), [&](const Layer& l) { return l.cut >= spec_.n_tokens; });
  if (first_.empty() || !all_announced) return;
  state_ = State::kCommitting;
  times_.commit_us = since(now);
  await_target(now);
  actions_.push_back(Send{Commit{key(), first_}});
}

void Sender::digested(TimePoint now, std::uint64_t id, Result<Digest> digest, std::string locator) {
  auto it = digests_.find(id);
  BATON_CHECK_MSG(it != digests_.end(), "a digest completes once");
  const DigestChunk chunk = it->second;
  digests_.erase(it);
  if (outcome_) return release_if_quiet();
  if (!digest.ok()) return end(now, State::kAborted, digest.status().with_context("digest of our own KV"), /*tell_target=*/true);
  set(times_.announced_us, chunk.layer, progress_at_ = now);
  if (announced_ == fetched_) await_target(now);
  announced_ += bytes(chunk.heads.size(), chunk.tokens);
  actions_.push_back(Send{Chunk{key(), chunk.layer, chunk.heads, chunk.tokens, *digest, std::move(locator)}});
  pump(now);
}

void Sender::link_down(TimePoint now, Status why) {
  awaiting_abort_ack_ = false;
  if (outcome_) return release_if_quiet();
  // Before the attach nothing has been said: a new link will do.
  if (state_ != State::kQueued) end(now, State::kNacked, std::move(why), /*tell_target=*/false);
}

void Sender::target_lost(TimePoint now, Status why) {
  if (!outcome_) end(now, State::kNacked, std::move(why), /*tell_target=*/true);
}

std::unique_ptr<Sender> Sender::succeed(TimePoint now, SenderSpec spec) {
  BATON_CHECK_MSG(spec.n_tokens == spec_.n_tokens && spec.layers == spec_.layers && spec.ids == spec_.ids,
                  "a successor is of the same prompt");
  auto next = std::make_unique<Sender>(std::move(spec), options_);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    next->layers_[i].ready = layers_[i].ready;
    if (layers_[i].ready > 0) next->set(next->times_.ready_us, static_cast<std::int32_t>(i), now);
  }
  next->first_ = first_;
  cancel(now, Status(Code::kCancelled, "claimed by attempt " + std::to_string(next->spec_.attempt.value)));
  return next;
}

void Sender::cancel(TimePoint now, Status why) {
  if (!outcome_) end(now, State::kAborted, std::move(why), /*tell_target=*/true);
}

void Sender::tick(TimePoint now) {
  if (now < deadline_) return;
  if (!outcome_) {
    // A stage that takes too long may go better elsewhere; the request's own deadline may not.
    const Code code = now < spec_.deadline ? Code::kUnavailable : Code::kDeadlineExceeded;
    const Status why(code, "hand-off " + std::string(to_string(state_)) + " for too long" +
                               (code == Code::kUnavailable ? ": the decode worker makes no progress with it" : ""));
    const bool queued = state_ == State::kQueued;  // not the target's fault
    return end(now, queued ? State::kAborted : State::kNacked, why, /*tell_target=*/true);
  }
  deadline_ = kNever;
  awaiting_abort_ack_ = false;
  release_if_quiet();
}

void Sender::end(TimePoint now, State state, Status status, bool tell_target) {
  const bool attached = state_ != State::kQueued;
  outcome_ = true;
  times_.ended_us = since(now);
  if (!status.ok()) times_.failure = status;
  actions_.push_back(Outcome{state, std::move(status)});
  if (attached && tell_target) {
    actions_.push_back(Send{Abort{key()}});
    awaiting_abort_ack_ = true;
    deadline_ = now + options_.abort_timeout;
    state_ = State::kAborting;
  } else {
    deadline_ = kNever;
    state_ = state;
  }
  final_ = state;
  release_if_quiet();
}

void Sender::release_if_quiet() {
  if (!outcome_ || awaiting_abort_ack_ || !digests_.empty() || released_) return;
  released_ = true;
  state_ = final_;
  deadline_ = kNever;
  actions_.push_back(ReleaseKv{});
}

}  // namespace baton::transfer
