#pragma once
// A whole cluster in one thread: the production gateway and workers (gateway::Gateway, worker::Node, engine::Engine with its scheduler,
// pool and hand-off protocol, and every codec between them), on simulated hosts, network, devices and fabrics.

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/engine.h"
#include "gateway/gateway.h"
#include "sim/checks.h"
#include "sim/device.h"
#include "sim/event_queue.h"
#include "sim/fabric.h"
#include "sim/host.h"
#include "sim/http.h"
#include "sim/leg_audit.h"
#include "sim/model.h"
#include "sim/network.h"
#include "sim/scenario.h"
#include "sim/trace.h"
#include "worker/node.h"

namespace baton::sim {

// What all processes share: time, the record of what happened, the wires, the machine's memory.
struct World {
  World(const Scenario& scenario, std::ostream* text)
      : trace(text), network(queue, trace, scenario.seed, scenario.network), memories(scenario.faults.empty()), fabric(scenario.fabric) {}
  EventQueue queue;
  Trace trace;
  Network network;
  Memories memories;
  const FabricModel fabric;
  KnownBlocks known;
  Failures failures;
};

struct WorkerShape {
  std::string name;
  wire::Role role = wire::Role::kBoth;
  std::uint64_t seed = 0;  // of its incarnation, leases and clock
  ModelShape model;
  int block_tokens = 0;
  std::int32_t blocks = 0;
  int ranks = 1;
  std::int64_t max_model_len = 0;
  std::int32_t max_num_seqs = 0, max_num_batched_tokens = 0;
  DeviceModel device;
};

// One worker process. Destroying it is kill -9.
class WorkerProcess {
 public:
  static constexpr int kHttpPort = 8001, kLinkPort = 8002;
  WorkerProcess(World& world, const WorkerShape& shape);
  ~WorkerProcess();

  // Its own books: pool, scheduler, and what is published.
  Status check();
  // After every event of it: O(1) of those, and who touches which block.
  void check_turn();
  // Empty if it holds nothing: no request, lease, hand-off, copy or connection, and free + cached = total. Otherwise what it holds.
  std::string held() const;
  WorkerBooks books() const;
  wire::WorkerStatus status() const { return node_->status(); }
  worker::Node& node() { return *node_; }
  const worker::Node& node() const { return *node_; }
  engine::Engine& engine() { return *engine_; }
  Device& device() { return *device_; }
  Fabric& fabric() { return *fabric_; }
  Host& host() { return host_; }
  const std::string& name() const { return name_; }
  // Somebody else takes so much of what its pool has to give, until it is given back.
  void squeeze(std::int64_t percent);
  void relax();

 private:
  World& world_;
  const std::string name_;
  Host host_;
  const std::int64_t max_model_len_;
  std::unique_ptr<PoolAudit> audit_;
  Device* device_ = nullptr;  // the engine's
  std::unique_ptr<Fabric> fabric_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<worker::Node> node_;
  std::unique_ptr<HttpServer> server_;
  std::vector<LeaseId> squeezed_;
  int squeezes_ = 0;
  std::uint64_t turns_seen_ = 0;
};

class GatewayProcess {
 public:
  GatewayProcess(World& world, std::vector<gateway::WorkerConfig> workers, Duration ahead);
  ~GatewayProcess();
  gateway::Gateway& gateway() { return *gateway_; }
  const gateway::Gateway& gateway() const { return *gateway_; }
  std::string held() const;
  Host& host() { return host_; }

 private:
  // Null if it does not know it.
  const gateway::Worker* believes(const std::string& worker) const;

  World& world_;
  Host host_;
  HttpClient client_;
  LegAudit audit_;
  std::unique_ptr<gateway::Gateway> gateway_;
};

// What processes that have died had counted.
struct Totals {
  std::uint64_t handoffs = 0, digest_mismatches = 0, kv_bytes = 0, preemptions = 0, prefix_hits = 0;
  std::uint64_t queued = 0, retries = 0, resumed = 0, moved = 0, fallbacks = 0;
  int kills = 0, drains = 0;
};

class Cluster {
 public:
  Cluster(World& world, const Scenario& scenario);
  static constexpr std::int64_t kMaxModelLen = 512;

  const ModelShape& model() const { return model_; }
  GatewayProcess* gateway() { return gateway_.get(); }  // null while it is dead
  const GatewayProcess* gateway() const { return gateway_.get(); }
  // Called when the gateway has died.
  void on_gateway_death(std::function<void()> tell) { tell_ = std::move(tell); }
  // Those that live.
  std::vector<WorkerProcess*> workers() const;
  // What a name's process has been: its incarnation, and since when it is that, or dead.
  struct Life {
    Incarnation incarnation;
    TimePoint since{};
    bool alive = false;
  };
  Life life(const std::string& worker) const;
  std::set<int> block_sizes() const;

  // Does it now; what undoes it happens when the fault has lasted.
  void apply(const Fault& fault);
  void check_turn();
  // The books of every worker.
  Status check() const;
  std::string held() const;
  // Of the dead and the living.
  Totals totals() const;

 private:
  struct Slot {
    WorkerShape shape;
    std::unique_ptr<WorkerProcess> process;  // null while it is dead
    std::uint64_t generation = 0;            // of its processes
    TimePoint since{};
    bool draining = false;
  };
  Host* host(const std::string& name);  // null while it is dead
  std::uint64_t generation(const std::string& name) const;
  // Does something to a process now, and later undoes it if it is the same process still.
  void to_process(const Fault& fault, const std::function<void(Host&)>& now, const std::function<void(Host&)>& later);
  void to_worker(const Fault& fault, const std::function<void(WorkerProcess&)>& now, const std::function<void(WorkerProcess&)>& later);
  void to_paths(const Fault& fault, void (Network::*now)(const std::string&, const std::string&),
                void (Network::*later)(const std::string&, const std::string&));
  std::vector<std::pair<std::string, std::string>> paths(const Fault& fault) const;
  void kill(const std::string& name, Duration down);
  void start(const std::string& name);
  void drain(const Fault& fault);
  void after(Duration wait, std::function<void()> work) { world_.queue.at(world_.queue.now() + wait, std::move(work)); }
  static void count(Totals& totals, const WorkerProcess& worker);
  static void count(Totals& totals, const gateway::Stats& stats);

  World& world_;
  const bool sockets_inherited_;
  ModelShape model_;
  std::map<std::string, Slot> workers_;
  std::vector<gateway::WorkerConfig> configs_;
  std::uint64_t gateway_generation_ = 0;
  Duration gateway_ahead_{};
  std::unique_ptr<GatewayProcess> gateway_;
  std::function<void()> tell_;
  Totals totals_;
};

}  // namespace baton::sim
