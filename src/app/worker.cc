// `baton worker`: one engine on the network.

#include "worker/worker.h"

#include <signal.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <optional>
#include <utility>

#include "app/args.h"
#include "app/commands.h"
#include "app/engine_setup.h"
#include "app/options.h"
#include "app/supervisor.h"
#include "base/log.h"
#include "base/rng.h"
#include "net/event_loop.h"

namespace baton::app {
namespace {

constexpr Duration kWatch = std::chrono::milliseconds(100);     // of the engine
constexpr Duration kHangs = std::chrono::minutes(2);            // a part of a step that takes longer has lost its device
constexpr Duration kFarewell = std::chrono::milliseconds(200);  // in which legs are told that it has failed

struct WorkerFlags {
  EngineFlags engine;
  std::string name = "w0", role = "both", host = "127.0.0.1";
  int port = 0, link_port = 0, advertise_link_port = 0, http_fd = -1, link_fd = -1, lifetime_fd = -1, peers = 1;
  int ready_fd = -1;
  double shutdown_timeout_s = 30;
};

// A rank that hangs shows at the next collective, unless it has no sibling here.
bool hangs(const engine::DeviceExecutor& executor) {
  if (executor.part_running() < kHangs) return false;
  log::error("a step has been running for {:.0f} s", to_seconds(executor.part_running()));
  return true;
}

Status check(const WorkerFlags& flags) {
  const NodeFlags& nodes = flags.engine.nodes;
  if (nodes.several() && flags.role != "both")
    return {Code::kInvalidArgument, fmt::format("--role {} with --nnodes {}: KV is handed over through shared memory, which hosts do not "
                                                "have in common, so an instance over several takes --role both only",
                                                flags.role, nodes.nnodes)};
  return nodes.check(flags.engine.tensor_parallel_size);
}

// Node 1 and up: computes what node 0 says, and ends with it.
Status follow(const WorkerFlags& flags) {
  net::EventLoop loop;
  watch_lifetime(loop, flags.lifetime_fd);
  std::optional<Status> end;
  BATON_ASSIGN_OR_RETURN(const EngineSetup setup, set_up_engine(flags.engine, flags.peers, loop, [&](Status status) {
                           end = std::move(status);
                           loop.stop();
                         }));
  const NodeFlags& nodes = flags.engine.nodes;
  log::info("{} follows node 0 at {}, as node {} of {}", flags.name, nodes.master_addr, nodes.node_rank, nodes.nnodes);
  if (flags.ready_fd >= 0 && write(flags.ready_fd, "1", 1) != 1) log::warn("cannot tell the supervisor that this node is ready");
  std::function<void()> watch = [&] {
    if (!end && hangs(*setup.executor)) end = Status(Code::kUnavailable, "a rank hangs"), loop.stop();
    loop.after(kWatch, watch);
  };
  watch();
  loop.on_signals({SIGTERM, SIGINT}, [&](int) {
    log::info("stopping: the instance ends, whatever it does");
    // A step ends in milliseconds, or its thread cannot be joined.
    if (setup.executor->part_running() > std::chrono::seconds(1)) std::_Exit(0);
    loop.stop();
  });
  loop.run();
  if (end && end->ok()) log::info("node 0 has stopped");
  // Without destructors: the thread of a rank that hangs cannot be joined.
  if (end && !end->ok()) std::_Exit(flags.engine.log.end(end->with_context("this node ends")));
  return {};
}

Status run(const WorkerFlags& flags) {
  net::EventLoop loop;
  watch_lifetime(loop, flags.lifetime_fd);
  bool failed = false;
  BATON_ASSIGN_OR_RETURN(EngineSetup setup, set_up_engine(flags.engine, flags.peers, loop, [&](const Status& lost) {
                           log::error("{}", lost.message());
                           failed = true;
                           loop.stop();
                         }));
  const model::ModelConfig& config = setup.files->config();
  std::vector<transfer::RankPool> ranks;
  for (int rank = 0; rank < setup.executor->ranks(); ++rank) {
    const model::Extent heads = setup.loaded->ranks[static_cast<std::size_t>(rank)].decoder->shard().kv_heads;
    ranks.push_back({&setup.executor->pool(rank), {heads.begin, heads.end}});
  }

  worker::WorkerOptions options;
  options.name = flags.name;
  options.role = *wire::role_from_string(flags.role);
  options.host = flags.host;
  options.http_port = flags.port;
  options.http_listen_fd = flags.http_fd;
  options.link_port = flags.link_port;
  options.link_listen_fd = flags.link_fd;
  options.link_port_advertised = flags.advertise_link_port;
  options.incarnation = Incarnation(entropy_u64() | 1);
  options.lease_key = entropy_u64();
  options.model_digest = setup.files->digest();
  options.numerics_id = setup.executor->numerics_id();
  options.kv = {config.layers, config.kv_heads, config.head_dim, std::string(to_string(setup.kv_dtype))};
  options.max_model_len = setup.options.max_model_len;
  options.max_num_seqs = setup.options.max_num_seqs;
  options.tensor_parallel_size = flags.engine.tensor_parallel_size;
  options.takes_handoffs = !flags.engine.nodes.several();
  const engine::DeviceExecutor& executor = *setup.executor;  // the engine's, which lives as long
  const auto engine = engine::Engine::create(loop, std::move(setup.executor), setup.options);
  BATON_ASSIGN_OR_RETURN(const auto server, worker::Worker::create(loop, *engine, ranks, std::move(options)));
  log::info("{} ({}) listens on {}:{}, hand-off links on {}", flags.name, flags.role, flags.host, server->http_port(), server->link_port());
  // A device that has failed does not come back: the process ends, and whoever supervises it starts another.
  std::function<void()> watch = [&] {
    if (failed) return loop.stop();
    failed = engine->status().failed || hangs(executor);
    loop.after(failed ? kFarewell : kWatch, watch);
  };
  watch();
  bool draining = false;
  loop.on_signals({SIGTERM, SIGINT}, [&](int) {
    if (draining) return loop.stop();
    draining = true;
    server->drain(Duration(static_cast<std::int64_t>(flags.shutdown_timeout_s * 1e6)), [&] { loop.stop(); });
  });
  loop.run();
  // Without destructors: the thread of a rank that hangs cannot be joined.
  if (failed) std::_Exit(flags.engine.log.end(Status(Code::kUnavailable, "the device has failed, so this worker ends")));
  return {};
}

}  // namespace

int run_worker(Args args) {
  WorkerFlags flags;
  CLI::App app("One worker alone: loads MODEL and takes legs from a gateway (`baton gateway`). `baton serve` starts both.", "baton worker");
  app.set_help_flag("-h,--help", "this text");
  app.add_option("model,--model", flags.engine.model, "the model to load")->required();
  app.add_option("--name", flags.name, "its name in logs and headers")->capture_default_str();
  app.add_option("--role", flags.role, "prefill, decode or both")
      ->check(CLI::IsMember({"prefill", "decode", "both"}))
      ->capture_default_str();
  app.add_option("--host", flags.host, "address to listen on; anyone who reaches it can use it")->capture_default_str();
  app.add_option("--port", flags.port, "port for the gateway (0: any)")->check(CLI::Range(0, 65535))->capture_default_str();
  app.add_option("--link-port", flags.link_port, "port for hand-off links (0: any)")->check(CLI::Range(0, 65535))->capture_default_str();
  app.add_option("--advertise-link-port", flags.advertise_link_port,
                 "port that prefill workers are told to dial for hand-offs, where it is not --link-port: a proxy, a mapped port")
      ->check(CLI::Range(0, 65535));
  app.add_option("--peers", flags.peers, "engines that share this machine's memory")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--shutdown-timeout", flags.shutdown_timeout_s, "seconds that running requests get after SIGTERM")->capture_default_str();
  app.add_option("--http-fd", flags.http_fd, "an inherited listening socket, from the supervisor")->group("");
  app.add_option("--link-fd", flags.link_fd, "an inherited listening socket, from the supervisor")->group("");
  app.add_option("--ready-fd", flags.ready_fd, "a pipe that is told when a node that follows is ready")->group("");
  app.add_option("--lifetime-fd", flags.lifetime_fd, "a pipe whose end means: exit")->group("");
  std::string config;
  app.add_option("--config", config, "YAML file of flags; the command line wins");
  flags.engine.add_to(app);
  flags.engine.nodes.add_to(app);
  if (const auto code = parse_args(app, std::move(args))) return *code;
  flags.engine.log.init(flags.name);
  if (flags.lifetime_fd >= 0) signal(SIGINT, SIG_IGN);  // the supervisor decides
  if (const Status sound = check(flags); !sound.ok()) return flags.engine.log.end(sound);
  return flags.engine.log.end(flags.engine.nodes.leads() ? run(flags) : follow(flags));
}

}  // namespace baton::app
