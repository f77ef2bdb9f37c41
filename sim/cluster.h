#pragma once
// A whole cluster in one thread: the production gateway and workers (gateway::Gateway, worker::Node, engine::Engine with its scheduler,
// pool and hand-off protocol, and every codec between them), on simulated hosts, network, devices and fabrics.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/engine.h"
#include "gateway/gateway.h"
#include "sim/device.h"
#include "sim/event_queue.h"
#include "sim/fabric.h"
#include "sim/host.h"
#include "sim/http.h"
#include "sim/model.h"
#include "sim/network.h"
#include "sim/scenario.h"
#include "sim/trace.h"
#include "worker/node.h"

namespace baton::sim {

// What all processes share: time, the record of what happened, the wires, the machine's memory.
struct World {
  World(std::uint64_t seed, const Scenario& scenario, std::ostream* text)
      : trace(text), network(queue, trace, seed, scenario.network), fabric(scenario.fabric) {}
  EventQueue queue;
  Trace trace;
  Network network;
  Memories memories;
  const FabricModel fabric;
};

struct WorkerShape {
  std::string name;
  wire::Role role = wire::Role::kBoth;
  std::uint64_t seed = 0;  // of its incarnation and leases
  ModelShape model;
  int block_tokens = 0;
  std::int32_t blocks = 0;
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

  // The pool's and the scheduler's own books.
  Status check() const { return engine_->check(); }
  // Empty if it holds nothing: no request, lease, hand-off, copy or connection, and free + cached = total. Otherwise what it holds.
  std::string held() const;
  wire::WorkerStatus status() const { return node_->status(); }
  const worker::Node& node() const { return *node_; }
  Host& host() { return host_; }

 private:
  World& world_;
  const std::string name_;
  Host host_;
  Memory memory_;
  std::unique_ptr<Fabric> fabric_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<worker::Node> node_;
  std::unique_ptr<HttpServer> server_;
};

class GatewayProcess {
 public:
  GatewayProcess(World& world, std::vector<gateway::WorkerConfig> workers);
  ~GatewayProcess();
  gateway::Gateway& gateway() { return *gateway_; }
  const gateway::Gateway& gateway() const { return *gateway_; }
  std::string held() const;
  Host& host() { return host_; }

 private:
  World& world_;
  Host host_;
  HttpClient client_;
  std::unique_ptr<gateway::Gateway> gateway_;
};

class Cluster {
 public:
  Cluster(World& world, const Scenario& scenario, std::uint64_t seed);
  static constexpr std::int64_t kMaxModelLen = 512;

  const ModelShape& model() const { return model_; }
  GatewayProcess& gateway() { return *gateway_; }
  // Those that live.
  std::vector<WorkerProcess*> workers() const;
  void apply(const Fault& fault);
  // The books of every worker.
  Status check() const;
  std::string held() const;

 private:
  struct Slot {
    WorkerShape shape;
    std::unique_ptr<WorkerProcess> process;  // null while it is dead
  };
  Host& host(const std::string& name);

  World& world_;
  ModelShape model_;
  std::map<std::string, Slot> workers_;
  std::unique_ptr<GatewayProcess> gateway_;
};

}  // namespace baton::sim
