#pragma once
// The cluster that a chaos run owns: gateway and workers as children, a fault proxy on every path between gateway and worker and from
// prefill to decode workers, and the faults that befall them.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/chaos/fault_plan.h"
#include "app/options.h"
#include "app/supervisor.h"
#include "app/topology.h"
#include "net/event_loop.h"
#include "net/fault_proxy.h"
#include "net/http.h"

namespace baton::app {

struct ClusterOptions {
  std::string model_path;
  EngineFlags engine;
  FrontFlags front;
  TopologyFlags topology;
  std::string log_path;  // what gateway and workers say
};

// A fault that has befallen somebody.
struct Befallen {
  TimePoint at{};
  FaultKind kind{};
  std::string target;         // a worker, or "gateway"
  bool decode = false;        // of the worker's role
  std::string what;           // for a reader
  bool took_streams = false;  // the gateway is gone, and the connections of clients with it
};

class ChaosCluster {
 public:
  // Starts the processes; they end with this object.
  static Result<std::unique_ptr<ChaosCluster>> start(net::EventLoop& loop, ClusterOptions options);
  ~ChaosCluster();
  ChaosCluster(const ChaosCluster&) = delete;
  ChaosCluster& operator=(const ChaosCluster&) = delete;

  int port() const { return port_; }  // the gateway's
  // Every worker is known to the gateway as ready, and no fault is on.
  bool whole() const;
  // Why the cluster will never be ready, if so.
  const std::optional<std::string>& failure() const { return failure_; }

  // Nothing if now is no time for it: it would take the last sound worker of a role, whose streams have nowhere to go.
  std::optional<Befallen> inject(const Fault& fault);
  // Processes that ended though nobody asked them to.
  const std::vector<std::string>& crashes() const { return crashes_; }

  // What each worker says of itself, past every proxy; "" of one that does not answer. `done` on the loop.
  void ask_workers(std::function<void(std::map<std::string, std::string> statuses)> done);

 private:
  struct Node;
  ChaosCluster(net::EventLoop& loop, ClusterOptions options);
  Status prepare();
  Status add_proxies(Node& node);
  Result<std::unique_ptr<net::FaultProxy>> proxy_to(int target_port);
  void poll();
  void on_workers(const std::string& body);
  void on_exit(const std::string& name, const std::string& how, Duration restart_in);
  int pid_of(const std::string& name) const;
  Node* choose(std::uint64_t number);
  std::string break_path(Node& node, const Fault& fault);
  // SIGSTOP, and SIGCONT after a while; then `lifted`. What was done, in words.
  std::string stop(const std::string& name, std::function<void()> lifted);
  void get(int port, const std::string& target, std::function<void(std::string body)> done);

  net::EventLoop& loop_;
  const ClusterOptions options_;
  int listen_fd_ = -1, log_fd_ = -1, port_ = 0;
  std::vector<WorkerPlan> plans_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::unique_ptr<net::HttpClient> client_;
  std::unique_ptr<Supervisor> supervisor_;
  std::optional<std::string> failure_;
  std::vector<std::string> crashes_;
  bool gateway_killed_ = false;
  bool gateway_stopped_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for callbacks that outlive this object
};

}  // namespace baton::app
