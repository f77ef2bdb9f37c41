#pragma once
// Which processes a cluster on one host consists of: planned from the flags of `baton serve`, with sockets that outlive them, and turned
// into children for the supervisor.

#include <CLI/CLI.hpp>
#include <span>
#include <string>
#include <vector>

#include "app/args.h"
#include "app/options.h"
#include "app/supervisor.h"
#include "base/status.h"
#include "device/cpu/cores.h"
#include "model/model_files.h"

namespace baton::app {

// Of the commands that start a cluster, or expect one.
struct TopologyFlags {
  // Instances of each role, and their tensor-parallel degrees: "2", "1xTP4", "1xTP2,2xTP1"; "": none.
  std::string prefill = {}, decode = {};
  int data_parallel_size = 1;  // instances of both roles, where there is neither

  void add_to(CLI::App& app);
};

struct WorkerPlan {
  std::string name, role;
  int ranks = 1;     // tensor-parallel degree
  int nodes = 1;     // hosts that they are on, as many on each
  CoreSets devices;  // by rank on this host
  int http_fd = -1, link_fd = -1;
  int ready_fd = -1;  // of a node that follows another: a pipe, told when it is ready; it has no ports
  int http_port = 0, link_port = 0;
  // Where others reach it, if not at these ports: through a proxy. 0: directly.
  int http_port_seen = 0, link_port_seen = 0;
};

// p0.. and d0.. for --prefill and --decode (both or neither), else w0.. of both roles; of `tensor_parallel_size` ranks where the flags name
// no degree. Without devices.
Result<std::vector<WorkerPlan>> plan_topology(const TopologyFlags& flags, int tensor_parallel_size);
// Lets the one worker of a server be on several hosts, where the flags say so. kInvalidArgument: they do not fit, or there is another
// worker.
Status span_nodes(std::vector<WorkerPlan>& workers, const NodeFlags& nodes);
// Gives each its devices, of the machine's `cpus`; what one should be told of that.
Result<std::vector<std::string>> place_workers(std::vector<WorkerPlan>& workers, std::span<const device::cpu::Cpu> cpus,
                                               const EngineFlags& engine);
// kInvalidArgument names a worker whose degree the model does not allow, and the degrees that it does.
Status check_degrees(const model::ModelFiles& files, std::span<const WorkerPlan> workers);
// "p0: prefill, TP=2, cores 0-3; 4-7"
std::string describe(const WorkerPlan& worker, std::span<const device::cpu::Cpu> cpus);

// Their listening sockets, on free ports of loopback.
Status open_sockets(std::vector<WorkerPlan>& workers);
// The gateway first, then the workers. Of a node that follows another: its worker alone. `listen_fd`: the gateway's listening socket.
std::vector<ChildSpec> child_specs(const std::string& model_path, const EngineFlags& engine, const FrontFlags& front,
                                   const std::vector<WorkerPlan>& workers, int listen_fd);

}  // namespace baton::app
