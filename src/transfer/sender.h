#pragma once
// The prefill side of one hand-off attempt, as a pure class: events and `now` in, actions out. It decides what may be announced and when
// P's KV may go; it touches no memory and no socket.
//
//   Queued -> Attaching -> Streaming -> Committing -> Acked
//   any    -> Nacked (D or the link ended it) | Aborting -> Aborted (we did) | NoKv (every choice ended with its first token)
//   Queued -> Unclaimed (computed, and there was no lease to hand it over for)
//
// An attempt that ended, or that is to be replaced, has a successor for another lease or attempt, which goes on from what is computed.
// Until then it goes on counting layers and keeps the first tokens.
//
// The KV stays until the attempt's physical end: D's ack, its answer to the abort that follows its nack or an end of ours, or the loss of
// the link, and no digest of our own still reading. After an abort that D does not answer in time the KV goes too: D only reads, and what
// it reads then fails its digest.

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "transfer/messages.h"

namespace baton::transfer {

struct SenderOptions {
  // D owes something (a grant, the proof of what was announced, the ack) and says nothing that brings it nearer.
  Duration progress_timeout = std::chrono::seconds(5);
  Duration abort_timeout = std::chrono::seconds(1);
  int digests_max = 4;  // in flight at once, but that of a range the chunks of all ranks go together; what is ready meanwhile coalesces
  std::int32_t chunk_tokens_max = 1024;
};

struct SenderSpec {
  LeaseId lease;  // zero: none yet; it never attaches
  Attempt attempt;
  std::string request_id;
  std::int32_t n_tokens = 0;
  Digest ids;
  int layers = 0;
  std::vector<Range> heads;     // that our pool announces, one a rank: their chunks travel side by side
  std::size_t row_bytes = 0;    // one head, one token, K or V
  int block_tokens = 0;         // chunks end at block borders where they can
  TimePoint deadline = kNever;  // the request's
  bool one_token = false;       // known to end with its first token: never attaches
  TimePoint start{};            // of the leg: times() counts from here
};

class Sender {
 public:
  enum class State : std::uint8_t { kQueued, kAttaching, kStreaming, kCommitting, kAborting, kAcked, kNacked, kAborted, kNoKv, kUnclaimed };
  static constexpr int kStates = 10;

  // --- actions
  struct Send {
    Message message;
  };
  struct DigestChunk {  // answer: digested(), always
    std::uint64_t id = 0;
    std::int32_t layer = 0;
    Range heads, tokens;
  };
  struct Outcome {  // once, the logical end: kAcked, kNacked, kAborted, kNoKv or kUnclaimed
    State state;
    Status status;
  };
  struct ReleaseKv {};  // once, the physical end
  using Action = std::variant<Send, DigestChunk, Outcome, ReleaseKv>;

  Sender(SenderSpec spec, SenderOptions options);

  // The prompt has entered a batch.
  void started(TimePoint now) { times_.started_us = since(now); }
  // The prompt is in a batch and the link is up: ask for a grant. Layers may be reported before.
  void attach(TimePoint now);
  // K and V of tokens [begin, end) of a layer are in our pool; a layer's reports are contiguous from 0.
  void layer_ready(TimePoint now, std::int32_t layer, std::int32_t begin, std::int32_t end);
  void first_tokens(TimePoint now, std::vector<FirstToken> first);
  void message(TimePoint now, const Message& message);
  void digested(TimePoint now, std::uint64_t id, Result<Digest> digest, std::string locator);
  void link_down(TimePoint now, Status why);
  // Nobody is there to attach to, or another one than the lease is of.
  void target_lost(TimePoint now, Status why);
  // The request was cancelled, or its computation failed.
  void cancel(TimePoint now, Status why);
  // Ends this one, if it has not ended, and returns the one that goes on: the same prompt, another lease or attempt. Nothing is computed
  // again; what of this one still reads ends by its own rules.
  std::unique_ptr<Sender> succeed(TimePoint now, SenderSpec spec);
  void tick(TimePoint now);
  TimePoint next_deadline() const { return deadline_; }
  std::vector<Action> take_actions() { return std::exchange(actions_, {}); }

  State state() const { return state_; }
  bool ended() const { return outcome_; }  // its outcome is known
  bool over() const { return released_; }  // nothing is awaited and nothing held
  Key key() const { return {spec_.lease, spec_.attempt, epoch_}; }
  std::uint64_t bytes_total() const;                        // that have to travel; after the grant
  std::uint64_t bytes_fetched() const { return fetched_; }  // that D says it has verified
  // Of these, what D had verified and we knew of when the last layer of the last token was computed: the part of the hand-off that cost no
  // time.
  std::uint64_t bytes_early() const { return early_; }
  std::int32_t cached_prefix() const { return cached_; }
  // What happened when, for whoever has to explain it; complete once there is an outcome.
  const wire::HandoffTimes& times() const { return times_; }
  TimePoint progress_at() const { return progress_at_; }  // when something was computed, said or heard last

 private:
  struct Layer {
    std::int32_t ready = 0;  // computed up to here
    std::int32_t cut = 0;    // given out as chunks up to here
  };
  std::int64_t since(TimePoint now) const { return (now - spec_.start).count(); }
  void set(std::vector<std::int64_t>& times, std::int32_t layer, TimePoint now) const;
  void on(TimePoint now, const Grant& m);
  void on(TimePoint now, const Fetched& m);
  void await_target(TimePoint now) { deadline_ = std::min(spec_.deadline, now + options_.progress_timeout); }
  std::uint64_t bytes(std::int64_t heads, Range tokens) const;  // of one layer
  void pump(TimePoint now);
  void end(TimePoint now, State state, Status status, bool tell_target);
  void release_if_quiet();

  const SenderSpec spec_;
  const SenderOptions options_;
  State state_ = State::kQueued;
  State final_ = State::kQueued;  // the outcome, once there is one
  TimePoint deadline_;
  Epoch epoch_;
  std::int32_t cached_ = 0;
  std::vector<Layer> layers_;
  std::map<std::uint64_t, DigestChunk> digests_;  // in flight
  std::uint64_t next_digest_ = 1;
  std::vector<FirstToken> first_;
  std::uint64_t announced_ = 0, fetched_ = 0, early_ = 0;  // bytes
  wire::HandoffTimes times_;
  TimePoint progress_at_{};
  bool outcome_ = false;  // the logical end was reached
  bool awaiting_abort_ack_ = false, released_ = false;
  std::vector<Action> actions_;
};

std::string_view to_string(Sender::State state);

}  // namespace baton::transfer
