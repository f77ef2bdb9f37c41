#include "app/topology.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <charconv>
#include <set>
#include <utility>

#include "app/devices.h"
#include "model/decoder.h"
#include "transfer/messages.h"

namespace baton::app {
namespace {

constexpr int kInstancesMax = 256;  // of one role

// Reads a number of one to three digits, and moves `at` behind it.
std::optional<int> number(const char*& at, const char* end) {
  int value = 0;
  const auto parsed = std::from_chars(at, end, value);
  if (parsed.ec != std::errc() || parsed.ptr - at > 3 || value < 1) return std::nullopt;
  at = parsed.ptr;
  return value;
}

// The degree of each instance: "2" are two of `degree`, "1xTP2,2xTP1" are three.
Result<std::vector<int>> degrees_of(const char* flag, const std::string& text, int degree) {
  std::vector<int> out;
  const Status bad(
      Code::kInvalidArgument,
      fmt::format("{} {}: expected how many workers, and their tensor-parallel degree if you like: 2, 1xTP4 or 1xTP2,2xTP1", flag, text));
  for (const char *at = text.data(), *end = at + text.size(); at < end;) {
    const std::optional<int> instances = number(at, end);
    std::optional<int> ranks = degree;
    if (at < end && (*at == 'x' || *at == 'X')) {
      const std::string_view tp(at + 1, static_cast<std::size_t>(std::min<std::ptrdiff_t>(2, end - at - 1)));
      if (tp != "TP" && tp != "tp") return bad;
      at += 3;
      ranks = number(at, end);
    }
    if (!instances || !ranks || (at < end && (*at != ',' || at + 1 == end))) return bad;
    if (std::ssize(out) + *instances > kInstancesMax)
      return Status(Code::kInvalidArgument, fmt::format("{} {}: at most {} workers of one role", flag, text, kInstancesMax));
    out.insert(out.end(), static_cast<std::size_t>(*instances), *ranks);
    if (at < end) ++at;
  }
  return out;
}

bool repeats_a_core(const CoreSets& devices) {
  std::set<int> seen;
  return std::ranges::any_of(devices,
                             [&](const auto& d) { return std::ranges::any_of(d, [&](int core) { return !seen.insert(core).second; }); });
}

ChildSpec worker_spec(const std::string& model_path, EngineFlags engine, const FrontFlags& front, const WorkerPlan& worker,
                      std::size_t peers) {
  engine.tensor_parallel_size = worker.ranks;
  engine.cores = format_core_sets(worker.devices);
  engine.cores_shared = repeats_a_core(worker.devices);
  engine.threads = 0;  // --cores says it all
  ChildSpec spec;
  spec.name = worker.name;
  spec.args = {"worker",
               model_path,
               "--name",
               worker.name,
               "--role",
               worker.role,
               "--peers",
               std::to_string(peers),
               "--shutdown-timeout",
               fmt::format("{}", front.shutdown_timeout_s)};
  const auto hand_over = [&spec](const char* flag, int fd) {
    if (fd < 0) return;
    spec.args.insert(spec.args.end(), {flag, std::to_string(fd)});
    spec.fds.push_back(fd);
  };
  hand_over("--http-fd", worker.http_fd);
  hand_over("--link-fd", worker.link_fd);
  hand_over("--ready-fd", worker.ready_fd);
  hand_over("--master-fd", engine.nodes.master_fd);
  if (worker.link_port_seen > 0) spec.args.insert(spec.args.end(), {"--advertise-link-port", std::to_string(worker.link_port_seen)});
  const auto more = engine.args();
  spec.args.insert(spec.args.end(), more.begin(), more.end());
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

void TopologyFlags::add_to(CLI::App& app) {
  const char* group = "Topology";
  app.add_option("--prefill", prefill,
                 "prefill workers, and the tensor-parallel degree of each: 2, 1xTP4, or a list of these; a bare number takes "
                 "--tensor-parallel-size")
      ->capture_default_str()
      ->group(group);
  app.add_option("--decode", decode, "decode workers, likewise")->capture_default_str()->group(group);
  app.add_option("--data-parallel-size", data_parallel_size,
                 "engines that do both phases, side by side behind the gateway; not with --prefill and --decode (-dp)")
      ->check(CLI::Range(1, kInstancesMax))
      ->capture_default_str()
      ->group(group);
}

Result<std::vector<WorkerPlan>> plan_topology(const TopologyFlags& flags, int tensor_parallel_size) {
  BATON_ASSIGN_OR_RETURN(const std::vector<int> prefills, degrees_of("--prefill", flags.prefill, tensor_parallel_size));
  BATON_ASSIGN_OR_RETURN(const std::vector<int> decodes, degrees_of("--decode", flags.decode, tensor_parallel_size));
  if (prefills.empty() != decodes.empty())
    return Status(Code::kInvalidArgument, "--prefill and --decode go together: one without the other cannot answer a request");
  if (!prefills.empty() && flags.data_parallel_size > 1)
    return Status(
        Code::kInvalidArgument,
        fmt::format("--data-parallel-size {} is of engines that do both phases, and --prefill and --decode are of engines that do one; "
                    "give the numbers of the latter instead: --prefill 2 --decode 2",
                    flags.data_parallel_size));
  std::vector<WorkerPlan> workers;
  const auto add = [&](char letter, const char* role, const std::vector<int>& degrees) {
    for (std::size_t i = 0; i < degrees.size(); ++i) {
      WorkerPlan& worker = workers.emplace_back();
      worker.name = fmt::format("{}{}", letter, i);
      worker.role = role;
      worker.ranks = degrees[i];
    }
  };
  add('p', "prefill", prefills);
  add('d', "decode", decodes);
  if (workers.empty()) add('w', "both", std::vector<int>(static_cast<std::size_t>(flags.data_parallel_size), tensor_parallel_size));
  return workers;
}

Status span_nodes(std::vector<WorkerPlan>& workers, const NodeFlags& nodes) {
  if (nodes.several() && (workers.size() != 1 || workers[0].role != "both"))
    return {Code::kInvalidArgument,
            fmt::format("--nnodes {} is of one engine that does both phases: KV is handed over through shared memory, "
                        "which hosts do not have in common; leave out --prefill, --decode and --data-parallel-size",
                        nodes.nnodes)};
  BATON_RETURN_IF_ERROR(nodes.check(workers[0].ranks));
  if (nodes.several()) workers[0].nodes = nodes.nnodes;
  return {};
}

Result<std::vector<std::string>> place_workers(std::vector<WorkerPlan>& workers, std::span<const device::cpu::Cpu> cpus,
                                               const EngineFlags& engine) {
  int count = 0;
  for (const WorkerPlan& worker : workers) count += worker.ranks / worker.nodes;
  BATON_ASSIGN_OR_RETURN(DevicePlan plan, plan_devices(cpus, engine, count));
  auto next = plan.devices.begin();
  for (WorkerPlan& worker : workers) {
    worker.devices.assign(next, next + worker.ranks / worker.nodes);
    next += worker.ranks / worker.nodes;
    limit_threads(worker.devices, engine.threads);
  }
  return notices_of(plan);
}

Status check_degrees(const model::ModelFiles& files, std::span<const WorkerPlan> workers) {
  std::set<int> sound;
  for (const WorkerPlan& worker : workers) {
    if (!sound.insert(worker.ranks).second) continue;
    if (const auto plan = model::shard_plan(files, worker.ranks); !plan.ok()) return plan.status().with_context(worker.name);
    // A hand-off names a part of the pool for each rank.
    constexpr std::size_t kMost = transfer::Limits::kParts;
    if (std::cmp_greater(worker.ranks, kMost))
      return {Code::kInvalidArgument, fmt::format("{}: a degree of {}; at most {} are possible", worker.name, worker.ranks, kMost)};
  }
  return {};
}

std::string describe(const WorkerPlan& worker, std::span<const device::cpu::Cpu> cpus) {
  return fmt::format(
      "{}: {}, {}cores {}", worker.name, worker.role == "both" ? "prefill and decode" : worker.role,
      worker.ranks > 1 ? fmt::format("TP={}{}, ", worker.ranks, worker.nodes > 1 ? fmt::format(" over {} nodes", worker.nodes) : "") : "",
      describe_devices(cpus, worker.devices));
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
  std::vector<ChildSpec> children;
  if (engine.nodes.leads()) children.push_back(gateway_spec(model_path, engine, front, workers, listen_fd));
  for (const WorkerPlan& worker : workers) children.push_back(worker_spec(model_path, engine, front, worker, workers.size()));
  return children;
}

}  // namespace baton::app
