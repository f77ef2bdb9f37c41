#pragma once
// The prefill side of hand-offs on a worker: joins an engine's prefill with a transfer::Sender, which decides, and the link to the decode
// worker.

#include <map>
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "net/event_loop.h"
#include "transfer/fabric.h"
#include "transfer/sender.h"
#include "wire/worker_api.h"
#include "worker/peer_links.h"

namespace baton::worker {

// Events of one hand-off, in order; on_end is the last.
class HandoffSink {
 public:
  virtual ~HandoffSink() = default;
  virtual void on_started(std::int32_t cached_tokens) = 0;
  virtual void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>> entries) = 0;
  virtual void on_first(const std::vector<engine::PrefillSink::First>& first) = 0;
  struct End {
    transfer::Sender::State state;  // kAcked, kNacked, kAborted or kNoKv
    Status status;
    std::uint64_t kv_bytes = 0, kv_bytes_early = 0;
  };
  virtual void on_end(const End& end) = 0;
};

class HandoffSource {
 public:
  struct Stats {
    std::size_t open = 0;  // hand-offs that still hold KV
    std::uint64_t acked = 0, failed = 0, kv_bytes = 0;
    Duration oldest_held{};
    TimePoint next_deadline = kNever;  // of any wait
  };
  HandoffSource(net::Executor& loop, engine::Engine& engine, transfer::Fabric& fabric, transfer::Hello hello, PeerLinks::Dialer dialer,
                transfer::SenderOptions options);
  ~HandoffSource();
  HandoffSource(const HandoffSource&) = delete;
  HandoffSource& operator=(const HandoffSource&) = delete;

  using Id = std::uint64_t;
  Result<Id> start(wire::PrefillLeg leg, std::shared_ptr<HandoffSink> sink);
  // The leg's connection is gone: nobody listens any more. Unless the hand-off has ended it is aborted. Idempotent.
  void close(Id id);
  Stats stats() const;

 private:
  class EngineSink;
  struct Handoff {
    wire::PrefillLeg leg;
    std::shared_ptr<HandoffSink> sink;  // null once ended or closed
    SeqId seq;
    std::unique_ptr<transfer::Sender> sender;
    PeerAddress peer;
    TimePoint since;
    bool started = false;
    bool one_token = false;
  };

  TimePoint now() const { return loop_.clock().now(); }
  // Runs `event` on a hand-off's sender if it still exists, then carries out what follows.
  template <class F>
  void with(Id id, F event);
  void act(Id id);
  bool act(Id id, Handoff& h, transfer::Sender::Action& action);  // false: the hand-off is gone
  void attach_if_possible(Handoff& h);
  void digest(Id id, Handoff& h, const transfer::Sender::DigestChunk& a);
  void ended(Handoff& h, const transfer::Sender::Outcome& outcome);
  void on_link(const PeerAddress& peer, const std::function<void(Handoff&)>& event);
  void set_timer();

  net::Executor& loop_;
  engine::Engine& engine_;
  transfer::Fabric& fabric_;
  const transfer::SourceRegion own_;
  const wire::KvSchema kv_;
  const transfer::SenderOptions options_;
  PeerLinks links_;
  std::map<Id, Handoff> handoffs_;
  Id next_id_ = 1;
  Stats totals_;
  TimePoint timer_at_ = kNever;
  net::Executor::TimerId timer_ = 0;
  const std::shared_ptr<HandoffSource*> self_;
};

}  // namespace baton::worker
