#pragma once
// The prefill side of hand-offs on a worker: joins an engine's prefill with a transfer::Sender for each attempt, which decides about the
// attempt, the transfer::Retention ledger, which decides what is kept between attempts and who may claim it, and the links to the decode
// workers.

#include <map>
#include <memory>
#include <vector>

#include "base/rng.h"
#include "engine/engine.h"
#include "net/event_loop.h"
#include "transfer/fabric.h"
#include "transfer/retention.h"
#include "transfer/sender.h"
#include "wire/worker_api.h"
#include "worker/peer_links.h"

namespace baton::worker {

// Events of one leg, in order; on_end is the last. After on_retained the others may still come: the computation goes on.
class HandoffSink {
 public:
  virtual ~HandoffSink() = default;
  virtual void on_claimed(bool found) = 0;  // first, of a leg that claims
  // `times` are those of the attempt that ended with `reason`.
  virtual void on_retained(HoldId hold, const std::optional<Status>& reason, const wire::HandoffTimes& times) = 0;
  virtual void on_started(std::int32_t cached_tokens) = 0;
  virtual void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>> entries) = 0;
  virtual void on_first(const std::vector<engine::PrefillSink::First>& first) = 0;
  struct End {
    transfer::Sender::State state;  // kAcked, kNacked, kAborted or kNoKv
    Status status;
    std::uint64_t kv_bytes = 0, kv_bytes_early = 0;
    wire::HandoffTimes times;
  };
  virtual void on_end(const End& end) = 0;
};

class HandoffSource {
 public:
  struct Stats {
    std::size_t open = 0;  // prompts that are computed or still held
    std::size_t legs = 0;  // for which they are
    // Attempts by state, kStates of them; the last one of a retained prompt counts as retained.
    int by_state[transfer::Sender::kStates] = {};
    Duration idle_handoff{}, idle_retained{};  // longest time without progress of one that has blocks
    std::uint64_t acked = 0, failed = 0, kv_bytes = 0, links_refused = 0;
    transfer::Retention::Stats retention;
    Duration oldest_held{};
    TimePoint next_deadline = kNever;  // of any wait
  };
  struct Options {
    transfer::SenderOptions sender;
    transfer::RetentionOptions retention;
    std::uint64_t hold_key = 0;  // secret: names of prompts without a lease are drawn from it
  };
  HandoffSource(net::Executor& loop, engine::Engine& engine, transfer::Fabric& fabric, transfer::Hello hello, PeerLinks::Dialer dialer,
                Options options);
  ~HandoffSource();
  HandoffSource(const HandoffSource&) = delete;
  HandoffSource& operator=(const HandoffSource&) = delete;

  using Id = std::uint64_t;  // of a leg
  // A claim that finds what it names takes it over, and the leg that had it ends. kInvalidArgument: it is another request's.
  Result<Id> start(wire::PrefillLeg leg, std::shared_ptr<HandoffSink> sink);
  // The leg's connection is gone: nobody listens any more. What it holds is given up, in every state, unless another leg has claimed it.
  // Idempotent.
  void close(Id id);
  Stats stats() const;
  struct Held {
    std::string request_id, target;
    std::string_view state;
    Attempt attempt;
    Epoch epoch;
    std::int32_t blocks = 0;
    bool retained = false;
    TimePoint since, progress_at, deadline;
  };
  std::vector<Held> held() const;  // prompts that have blocks

 private:
  class EngineSink;
  using Key = transfer::Retention::Key;
  using First = engine::PrefillSink::First;
  struct Try {  // an attempt: the last one, or one that still reads
    std::uint64_t number = 0;
    std::unique_ptr<transfer::Sender> sender;
    PeerAddress peer;
  };
  struct Prompt {  // one sequence of the engine, whoever it is for
    Id leg_id = 0;
    wire::PrefillLeg leg;               // the latest; without its ids
    std::shared_ptr<HandoffSink> sink;  // null once the leg has ended
    SeqId seq;
    std::vector<Try> tries{};  // the last one is of `leg`
    TimePoint since;
    bool started = false, one_token = false;
    bool wanted = true;  // otherwise it goes when nobody reads it
    // For the leg that claims it.
    std::int32_t cached_tokens = 0;
    std::vector<First> first{};
    std::vector<std::optional<wire::TokenEvent>> prompt_logprobs{};

    transfer::Sender& sender() { return *tries.back().sender; }
  };

  TimePoint now() const { return loop_.clock().now(); }
  transfer::SenderSpec spec_of(const wire::PrefillLeg& leg, const wire::GenerateRequest& request, bool one_token) const;
  HoldId name_of(const wire::PrefillLeg& leg);
  void take_over(Key key, Prompt& prompt, wire::PrefillLeg leg, std::shared_ptr<HandoffSink> sink);
  // Runs `event` on a prompt if it still exists, then carries out what follows.
  template <class F>
  void with(Key key, F event);
  void act(Key key);
  void act(Key key, Prompt& prompt, std::uint64_t number, transfer::Sender::Action& action);
  void attach_if_possible(Prompt& prompt);
  void digest(Key key, const Prompt& prompt, std::uint64_t number, const transfer::Sender::DigestChunk& a);
  void ended(Key key, Prompt& prompt, const transfer::Sender::Outcome& outcome);
  void give_up(Key key, Prompt& prompt, const Status& why);
  void end_leg(Key key, Prompt& prompt, HandoffSink::End end);
  void drop_unretained();
  void on_link(const PeerAddress& peer, const std::function<void(Prompt&, transfer::Sender&)>& event);
  TimePoint next_deadline() const;
  void set_timer();

  net::Executor& loop_;
  engine::Engine& engine_;
  transfer::Fabric& fabric_;
  const transfer::SourceRegion own_;
  const wire::KvSchema kv_;
  const transfer::SenderOptions options_;
  PeerLinks links_;
  transfer::Retention retention_;
  Rng hold_ids_;
  std::map<Key, Prompt> prompts_;
  std::map<Id, Key> legs_;
  Id next_id_ = 1;
  Key next_key_ = 1;
  std::uint64_t next_try_ = 1;
  Stats totals_;
  TimePoint timer_at_ = kNever;
  net::Executor::TimerId timer_ = 0;
  const std::shared_ptr<HandoffSource*> self_;
};

}  // namespace baton::worker
