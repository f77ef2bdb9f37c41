#pragma once
// A worker without its sockets: routes, legs and their life, status and drain. worker.h listens for it; the simulation calls it over its
// own network.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "engine/engine.h"
#include "net/event_loop.h"
#include "net/http.h"
#include "net/link.h"
#include "transfer/fabric.h"
#include "wire/kv_report.h"
#include "worker/handoff_source.h"
#include "worker/handoff_target.h"
#include "worker/leg_stream.h"
#include "worker/peer_links.h"
#include "worker/worker.h"

namespace baton::worker {

class Node {
 public:
  // `loop`, `engine` and `fabric` outlive it; `options.link_port` is the one to advertise. What it answers may outlive it, and then does
  // nothing.
  Node(net::Executor& loop, engine::Engine& engine, transfer::Fabric& fabric, PeerLinks::Dialer dialer, WorkerOptions options);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  void handle(net::HttpRequest request, std::shared_ptr<net::HttpResponder> responder);
  // A hand-off link that a prefill worker has opened.
  void accept(std::unique_ptr<net::Link> link) { target_.accept(std::move(link)); }

  wire::WorkerStatus status() const;
  // Who holds KV now. O(blocks): for whoever looks, not for polls.
  wire::KvReport kv_report() const;
  void drain(Duration limit, std::function<void()> done);

  // What it holds at this moment, for tests and the simulation; check_books() says that the lease of every open leg is there.
  Status check_books() const;
  std::size_t open_legs() const { return legs_.size(); }
  std::size_t open_prefill_legs() const;
  transfer::Receiver::Stats target_stats() const { return target_.stats(); }
  HandoffSource::Stats source_stats() const { return source_.stats(); }

 private:
  struct Leg {
    std::optional<wire::LegName> name;         // decode leg
    std::optional<LeaseId> lease;              // decode leg
    std::unique_ptr<wire::GenerateCall> call;  // decode leg with local prefill
    std::optional<HandoffSource::Id> handoff;  // prefill leg
    std::shared_ptr<LegStream> stream;
  };
  using LegNo = std::uint64_t;

  int retry_after_s() const;
  Status admission(bool claim) const;
  Status handoff_possible() const;
  void decode_leg(wire::DecodeLeg leg, std::shared_ptr<net::HttpResponder> responder);
  void prefill_leg(wire::PrefillLeg leg, std::shared_ptr<net::HttpResponder> responder);
  Status finish_choice(const std::string& query);
  void accept_leg(LegNo no, Leg leg, net::HttpResponder& responder);
  std::function<void()> closer(LegNo no);
  void close_leg(LegNo no);
  std::string imbalance(const engine::EngineStatus& engine, const transfer::Receiver::Stats& target, std::size_t prompts) const;
  void watch_books();
  void drain_step();
  void beat();

  net::Executor& loop_;
  engine::Engine& engine_;
  const WorkerOptions options_;
  const transfer::SourceRegion own_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  HandoffTarget target_;
  HandoffSource source_;
  std::map<LegNo, Leg> legs_;
  LegNo next_leg_ = 1;
  std::optional<net::Executor::TimerId> beat_timer_;  // while there are legs
  std::string alarmed_;                               // what did not add up when it was looked at last
  bool draining_ = false;
  TimePoint drain_deadline_ = kNever;
  std::function<void()> drained_;
  std::optional<net::Executor::TimerId> drain_timer_;
};

}  // namespace baton::worker
