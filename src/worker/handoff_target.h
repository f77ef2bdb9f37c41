#pragma once
// The decode side of hand-offs on a worker: carries out what transfer::Receiver decides, on the worker's links, fabric and engine. No
// decision is made here.

#include <map>
#include <memory>
#include <optional>

#include "base/rng.h"
#include "engine/engine.h"
#include "net/event_loop.h"
#include "net/link.h"
#include "transfer/fabric.h"
#include "transfer/receiver.h"
#include "wire/worker_api.h"

namespace baton::worker {

// Where a lease reports: failed attempts, on_committed, then a generation's events; or on_lease_failed at any time.
class LeaseSink : public wire::GenerateSink {
 public:
  struct Committed {
    Attempt attempt;
    std::vector<wire::TokenEvent> first;
    std::uint64_t kv_bytes = 0;
    std::int32_t cached_tokens = 0;
    wire::HandoffTimes times;
  };
  virtual void on_committed(Committed committed) = 0;
  virtual void on_attempt_failed(wire::HandoffTimes times) = 0;  // another may follow
  virtual void on_lease_failed(Status status) = 0;
};

class HandoffTarget {
 public:
  // `fabric`, `engine` outlive it. `lease_key` is secret: lease ids are drawn from it, and whoever knows one may attach.
  HandoffTarget(net::Executor& loop, engine::Engine& engine, transfer::Fabric& fabric, transfer::LocalWorker local,
                transfer::ReceiverOptions options, std::uint64_t lease_key);
  ~HandoffTarget();
  HandoffTarget(const HandoffTarget&) = delete;
  HandoffTarget& operator=(const HandoffTarget&) = delete;

  // Takes the engine's credit. kResourceExhausted: backpressure starts here.
  Result<LeaseId> reserve(const wire::GenerateRequest& request, std::shared_ptr<LeaseSink> sink);
  // The leg is over, for whatever reason: cancels what still runs, forgets the rest. No call to the sink after it. Idempotent.
  void close(LeaseId lease);
  void finish_choice(LeaseId lease, int choice);
  bool holds(LeaseId lease) const { return leases_.contains(lease); }

  // A link that a source has opened.
  void accept(std::unique_ptr<net::Link> link);

  // Links that were closed for bytes that are no frame are counted here, the others by the receiver.
  transfer::Receiver::Stats stats() const;
  std::vector<transfer::Receiver::Held> held() const { return receiver_.held(); }

 private:
  using Receiver = transfer::Receiver;
  struct Peer {  // whose memory we read; lives as long as a lease may need it
    transfer::LinkId link;
    transfer::SourceRegion region;
    std::shared_ptr<transfer::PeerRegion> memory;
  };
  struct Connection {
    std::unique_ptr<net::Link> link;
    transfer::FrameReader reader;
    std::shared_ptr<Peer> peer;
  };
  struct Lease {
    wire::GenerateRequest request;
    TimePoint deadline;
    std::shared_ptr<LeaseSink> sink;  // null once closed
    std::optional<engine::Grant> grant;
    std::shared_ptr<Peer> peer;
    std::unique_ptr<wire::GenerateCall> call;
    std::vector<int> ended_early;  // choices that were finished before there was a call
  };

  TimePoint now() const { return loop_.clock().now(); }
  void on_bytes(transfer::LinkId id, std::string_view bytes);
  void drop(transfer::LinkId id);
  // Carries out the receiver's actions until there are none; not re-entered.
  void act();
  void act(Receiver::SendTo& a);
  void act(Receiver::CloseLink& a);
  void act(Receiver::OpenPeer& a);
  void act(Receiver::TakeBlocks& a);
  void act(Receiver::Fetch& a);
  void act(Receiver::CancelFetch& a);
  void act(Receiver::StartDecode& a);
  void act(Receiver::AttemptFailed& a);
  void act(Receiver::LeaseFailed& a);
  void act(Receiver::FreeLease& a);
  Result<transfer::CopyPlan> plan_of(const Peer& peer, const Receiver::Fetch& a) const;
  void set_timer();

  net::Executor& loop_;
  engine::Engine& engine_;
  transfer::Fabric& fabric_;
  const transfer::SourceRegion own_;  // our pool's addressing
  Receiver receiver_;
  Rng lease_ids_;
  std::map<transfer::LinkId, Connection> links_;
  std::map<LeaseId, Lease> leases_;
  std::map<std::uint64_t, transfer::Fabric::JobId> fetches_;
  std::uint64_t next_link_ = 1;
  std::uint64_t links_garbled_ = 0;
  bool acting_ = false;
  TimePoint timer_at_ = kNever;
  net::Executor::TimerId timer_ = 0;
  const std::shared_ptr<HandoffTarget*> self_;  // callbacks hold it weakly
};

}  // namespace baton::worker
