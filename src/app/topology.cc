#include "app/topology.h"

#include <spdlog/fmt/fmt.h>

#include "app/args.h"
#include "app/cpus.h"

namespace baton::app {
namespace {

Result<int> count(const std::string& flag, const std::string& text) {
  if (text.empty()) return 0;
  if (text.find_first_not_of("0123456789") != std::string::npos || text.size() > 3 || std::stoi(text) < 1)
    return Status(Code::kInvalidArgument, fmt::format("{} {}: expected how many workers, 1 or more", flag, text));
  return std::stoi(text);
}

ChildSpec worker_spec(const std::string& model_path, EngineFlags engine, const FrontFlags& front, const WorkerPlan& worker,
                      std::size_t peers) {
  engine.cores = format_cores(worker.cores);
  engine.threads = static_cast<int>(worker.cores.size());
  ChildSpec spec;
  spec.name = worker.name;
  spec.args = {"worker",
               model_path,
               "--name",
               worker.name,
               "--role",
               worker.role,
               "--http-fd",
               std::to_string(worker.http_fd),
               "--link-fd",
               std::to_string(worker.link_fd),
               "--peers",
               std::to_string(peers),
               "--shutdown-timeout",
               fmt::format("{}", front.shutdown_timeout_s)};
  if (worker.link_port_seen > 0) spec.args.insert(spec.args.end(), {"--advertise-link-port", std::to_string(worker.link_port_seen)});
  const auto more = engine.args();
  spec.args.insert(spec.args.end(), more.begin(), more.end());
  spec.fds = {worker.http_fd, worker.link_fd};
  return spec;
}

ChildSpec gateway_spec(const std::string& model_path, const EngineFlags& engine, const FrontFlags& front,
                       const std::vector<WorkerPlan>& workers, int listen_fd) {
  ChildSpec spec;
  spec.name = "gateway";
  spec.args = {"gateway", model_path, "--listen-fd", std::to_string(listen_fd)};
  const auto logs = engine.log.args();
  spec.args.insert(spec.args.end(), logs.begin(), logs.end());
  if (!engine.max_model_len.empty()) spec.args.insert(spec.args.end(), {"--max-model-len", engine.max_model_len});
  for (const WorkerPlan& worker : workers)
    spec.args.insert(spec.args.end(), {"--worker", fmt::format("{}={}@127.0.0.1:{}", worker.name, worker.role,
                                                               worker.http_port_seen > 0 ? worker.http_port_seen : worker.http_port)});
  const auto more = front.args();
  spec.args.insert(spec.args.end(), more.begin(), more.end());
  std::string keys;
  for (const std::string& key : front.api_key) keys += (keys.empty() ? "" : ",") + key;
  if (!keys.empty()) spec.environment.push_back("BATON_API_KEY=" + keys);
  spec.fds = {listen_fd};
  return spec;
}

}  // namespace

Result<std::vector<WorkerPlan>> plan_workers(const std::string& prefill, const std::string& decode, const EngineFlags& engine) {
  BATON_ASSIGN_OR_RETURN(const int prefills, count("--prefill", prefill));
  BATON_ASSIGN_OR_RETURN(const int decodes, count("--decode", decode));
  if ((prefills == 0) != (decodes == 0))
    return Status(Code::kInvalidArgument, "--prefill and --decode go together: one without the other cannot answer a request");
  std::vector<WorkerPlan> workers;
  const auto add = [&](std::string name, const char* role) {
    WorkerPlan worker;
    worker.name = std::move(name);
    worker.role = role;
    workers.push_back(std::move(worker));
  };
  for (int i = 0; i < prefills; ++i) add(fmt::format("p{}", i), "prefill");
  for (int i = 0; i < decodes; ++i) add(fmt::format("d{}", i), "decode");
  if (workers.empty()) add("w0", "both");

  BATON_ASSIGN_OR_RETURN(const std::vector<int> wanted, parse_cores(engine.cores));
  BATON_ASSIGN_OR_RETURN(const auto shares, share_cores(wanted, static_cast<int>(workers.size()), engine.threads));
  for (std::size_t i = 0; i < workers.size(); ++i) workers[i].cores = shares[i];
  return workers;
}

Status open_sockets(std::vector<WorkerPlan>& workers) {
  for (WorkerPlan& worker : workers) {
    BATON_ASSIGN_OR_RETURN(worker.http_fd, listen_socket("127.0.0.1", 0, &worker.http_port));
    BATON_ASSIGN_OR_RETURN(worker.link_fd, listen_socket("127.0.0.1", 0, &worker.link_port));
  }
  return {};
}

std::vector<ChildSpec> child_specs(const std::string& model_path, const EngineFlags& engine, const FrontFlags& front,
                                   const std::vector<WorkerPlan>& workers, int listen_fd) {
  std::vector<ChildSpec> children = {gateway_spec(model_path, engine, front, workers, listen_fd)};
  for (const WorkerPlan& worker : workers) children.push_back(worker_spec(model_path, engine, front, worker, workers.size()));
  return children;
}

}  // namespace baton::app
