#pragma once
// Which processes a cluster on one host consists of: planned from the flags of `baton serve`, with sockets that outlive them, and turned
// into children for the supervisor.

#include <string>
#include <vector>

#include "app/options.h"
#include "app/supervisor.h"
#include "base/status.h"

namespace baton::app {

struct WorkerPlan {
  std::string name, role;
  std::vector<int> cores;
  int http_fd = -1, link_fd = -1;
  int http_port = 0, link_port = 0;
  // Where others reach it, if not at these ports: through a proxy. 0: directly.
  int http_port_seen = 0, link_port_seen = 0;
};

// p0.. and d0.. for the counts of --prefill and --decode ("": none; both or neither), else one worker w0 of both roles; with their shares
// of the cores.
Result<std::vector<WorkerPlan>> plan_workers(const std::string& prefill, const std::string& decode, const EngineFlags& engine);
// Their listening sockets, on free ports of loopback.
Status open_sockets(std::vector<WorkerPlan>& workers);
// The gateway first, then the workers. `listen_fd`: the gateway's listening socket.
std::vector<ChildSpec> child_specs(const std::string& model_path, const EngineFlags& engine, const FrontFlags& front,
                                   const std::vector<WorkerPlan>& workers, int listen_fd);

}  // namespace baton::app
