// `baton serve`: the supervisor. Owns the listening sockets, starts the gateway and the workers as children, restarts what dies, takes all
// down with it.

#include <fcntl.h>
#include <signal.h>
#include <spdlog/fmt/fmt.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>

#include "app/api_keys.h"
#include "app/args.h"
#include "app/commands.h"
#include "app/options.h"
#include "app/paths.h"
#include "app/supervisor.h"
#include "app/topology.h"
#include "base/log.h"
#include "device/gloo/tcp.h"
#include "model/model_files.h"
#include "net/event_loop.h"
#include "net/http.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

struct ServeFlags {
  EngineFlags engine;
  FrontFlags front;
  TopologyFlags topology;
  bool detach = false;
  int lifetime_fd = -1;
  std::optional<double> ready_timeout_s;  // default: ready_s()

  // Other hosts have their own time to come and to load.
  double ready_s() const { return ready_timeout_s.value_or(engine.nodes.several() ? std::max(600.0, 2 * engine.nodes.timeout_s) : 600.0); }
};

// What the user sees while it starts: to the terminal, or through a pipe to the process that waits for a detached server.
class Progress {
 public:
  explicit Progress(std::FILE* out) : out_(out) {}
  template <class... A>
  void line(fmt::format_string<A...> format, A&&... args) {
    if (!out_) return;
    fmt::print(out_, "{}\n", fmt::format(format, std::forward<A>(args)...));
    std::fflush(out_);
  }
  // What the children said belongs before the next line: the waiting process shows the log.
  void show_log(bool detached) {
    if (detached && out_) std::fputs("\x02\n", out_);
  }
  // The waiting process may go.
  void finished(bool detached) {
    if (!detached || !out_) return;
    std::fputs("\x01\n", out_);
    std::fclose(out_);
    out_ = nullptr;
  }

 private:
  std::FILE* out_;
};

class Serve {
 public:
  // `listen_fd`: a socket that listens on the front port already, or -1.
  Serve(ServeFlags flags, std::FILE* out, bool detached, int listen_fd = -1)
      : flags_(std::move(flags)), progress_(out), detached_(detached), listen_fd_(listen_fd) {}

  int run() {
    started_ = loop_.clock().now();
    // Before there are children: a signal that comes now is acted upon once the loop runs, and nothing stays behind.
    loop_.on_signals({SIGTERM, SIGINT}, [this](int) { on_signal(); });
    watch_lifetime(loop_, flags_.lifetime_fd);
    if (const Status status = prepare(); !status.ok()) return report(status);
    if (const Status status = start(); !status.ok()) return report(status);
    if (follows()) {
      await_ready();
    } else {
      poll_ready();
    }
    const double limit = flags_.ready_s();
    loop_.after(Duration(static_cast<std::int64_t>(limit * 1e6)), [this, limit] {
      if (!ready_) give_up(fmt::format("not ready after {:.0f} s; the log above says what it waits for", limit));
    });
    loop_.run();
    if (owns_state_) unlink(state_file(flags_.front.port).c_str());
    return exit_code_;
  }

 private:
  int report(const Status& status) {
    progress_.line("error: {}", status.message());
    if (detached_) std::fprintf(stderr, "baton: error: %s\n", status.message().c_str());
    return kExitFailed;
  }

  // Whether another host schedules, and this one has neither gateway nor ports.
  bool follows() const { return !flags_.engine.nodes.leads(); }

  double seconds() const { return to_seconds(loop_.clock().now() - started_); }

  Status prepare() {
    BATON_RETURN_IF_ERROR(load_api_keys(flags_.front.api_keys(), flags_.front.api_key_file).status());  // before anything is loaded
    BATON_ASSIGN_OR_RETURN(model_path_, resolve_model(flags_.engine.model));
    BATON_ASSIGN_OR_RETURN(const auto files, model::ModelFiles::open(model_path_));
    const model::ModelConfig& config = files->config();
    progress_.line("model    {} ({:.2f} s): {}, {} layers, hidden {}, {} query and {} KV heads, {} weights, {}", flags_.engine.model,
                   seconds(), config.architecture, config.layers, config.hidden, config.heads, config.kv_heads,
                   to_string(files->dominant_format()), format_bytes(static_cast<double>(files->weight_bytes())));
    look_at_file_limit();
    BATON_ASSIGN_OR_RETURN(workers_, plan_topology(flags_.topology, flags_.engine.tensor_parallel_size));
    BATON_RETURN_IF_ERROR(span_nodes(workers_, flags_.engine.nodes));
    BATON_RETURN_IF_ERROR(check_degrees(*files, workers_));
    const std::vector<device::cpu::Cpu> cpus = device::cpu::allowed_cpus();
    BATON_ASSIGN_OR_RETURN(const std::vector<std::string> notices, place_workers(workers_, cpus, flags_.engine));
    for (const std::string& notice : notices) progress_.line("notice   {}", notice);
    for (const WorkerPlan& worker : workers_) progress_.line("worker   {}", describe(worker, cpus));
    if (follows()) return open_ready_pipe();
    if (flags_.engine.nodes.several()) {
      BATON_ASSIGN_OR_RETURN(const NodeFlags::Address master, flags_.engine.nodes.address());
      BATON_ASSIGN_OR_RETURN(master_, device::gloo::Socket::listen(master.host, master.port));
      flags_.engine.nodes.master_fd = master_.fd();
    }
    if (listen_fd_ < 0) {
      BATON_ASSIGN_OR_RETURN(listen_fd_, listen_socket(flags_.front.host, flags_.front.port, &flags_.front.port));
    }
    return open_sockets(workers_);
  }

  Status open_ready_pipe() {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0) return {Code::kInternal, "cannot create a pipe"};
    ready_pipe_ = fds[0];
    workers_[0].ready_fd = fds[1];
    return {};
  }

  // A node that follows says once that it does; one that is started again says so to nobody.
  void await_ready() {
    loop_.on_readable(ready_pipe_, [this] {
      ready_ = true;
      supervisor_->mark_ready();
      const NodeFlags& nodes = flags_.engine.nodes;
      progress_.line("joined   after {:.2f} s: node {} of {}, which follows {}", seconds(), nodes.node_rank, nodes.nnodes,
                     nodes.master_addr);
    });
  }

  void look_at_file_limit() {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    const auto wanted = static_cast<rlim_t>(2 * flags_.front.max_requests + 64);
    if (limit.rlim_cur < wanted)
      progress_.line("notice   only {} open files are allowed, {} streams want {}; raise it with: ulimit -n {}", limit.rlim_cur,
                     flags_.front.max_requests, wanted, wanted);
  }

  Status start() {
    FrontFlags front = flags_.front;
    if (front.served_model_name.empty()) front.served_model_name = {flags_.engine.model};
    const std::vector<ChildSpec> children = child_specs(model_path_, flags_.engine, front, workers_, listen_fd_);
    supervisor_ = std::make_unique<Supervisor>(
        loop_, children,
        Supervisor::Events{[this](const std::string& name, const std::string& how, Duration delay) {
                             if (delay.count() < 0) return give_up(fmt::format("{} {} while starting; its message is above", name, how));
                             log::warn("{} {}; restarting in {:.1f} s", name, how, to_seconds(delay));
                           },
                           [this](const std::string&, int) {
                             if (!follows()) write_state();
                           }});
    client_ = net::HttpClient::create(loop_);
    return supervisor_->start();
  }

  // The record by which status and stop find this server.
  void write_state() {
    Json children = Json::object();
    if (supervisor_)
      for (const auto& child : supervisor_->children()) children[child.name] = child.pid;
    const Json state{
        {"pid", getpid()},           {"started", process_started(getpid())}, {"host", flags_.front.host},
        {"port", flags_.front.port}, {"model", flags_.engine.model},         {"log", detached_ ? log_file(flags_.front.port) : ""},
        {"children", children}};
    const Status written = write_text_file(state_file(flags_.front.port), state.dump(2) + "\n");
    if (!written.ok()) log::warn("{}; 'baton stop' will not find this server", written.message());
    owns_state_ = owns_state_ || written.ok();
  }

  // /debug/workers lists who is there; the server is ready when all are.
  void poll_ready() {
    net::HttpClientRequest request;
    request.method = "GET";
    request.host = flags_.front.host == "0.0.0.0" || flags_.front.host == "::" ? "127.0.0.1" : flags_.front.host;
    request.port = flags_.front.port;
    request.target = "/debug/workers";
    request.idle_timeout = std::chrono::seconds(2);
    poll_body_.clear();
    poll_ = client_->call(std::move(request), {[this](int status, const net::Headers&) { poll_status_ = status; },
                                               [this](std::string_view data) { poll_body_ += data; },
                                               [this](Status done) {
                                                 if (stopping_ || ready_) return;
                                                 if (done.ok() && poll_status_ == 200 && look_at_workers()) return on_ready();
                                                 loop_.after(std::chrono::milliseconds(20), [this] { poll_ready(); });
                                               }});
  }

  // Tells of each worker once, when it is ready; true when all are.
  bool look_at_workers() {
    const Json list = Json::parse(poll_body_, nullptr, false);
    for (const Json& w : list) {
      if (!w.is_object()) continue;
      const std::string name = w.value("name", "");
      if (!w.value("ready", false) || !workers_ready_.insert(name).second) continue;
      const double tokens = w.value("blocks_total", 0.0) * w.value("block_tokens", 0.0), length = w.value("max_model_len", 0.0);
      progress_.line("KV cache {}: {:.0f} tokens; max concurrency at {:.0f} tokens: {:.2f} (loaded after {:.2f} s)", name, tokens, length,
                     length > 0 ? tokens / length : 0.0, seconds());
    }
    return workers_ready_.size() == workers_.size();
  }

  void on_ready() {
    ready_ = true;
    supervisor_->mark_ready();
    const std::string url =
        fmt::format("http://{}:{}", flags_.front.host == "0.0.0.0" ? "127.0.0.1" : flags_.front.host, flags_.front.port);
    progress_.line("ready    after {:.2f} s: {}", seconds(), url);
    progress_.line(
        "try      curl {}/v1/chat/completions -H 'Content-Type: application/json' -d "
        "'{{\"messages\":[{{\"role\":\"user\",\"content\":\"hello\"}}]}}'",
        url);
    progress_.finished(detached_);
  }

  void give_up(const std::string& why) {
    if (stopping_) return;
    progress_.show_log(detached_);
    progress_.line("error: {}", why);
    exit_code_ = kExitFailed;
    stopping_ = true;
    supervisor_->kill_all();
    loop_.stop();
  }

  void on_signal() {
    if (stopping_) {
      log::warn("second signal: stopping at once");
      supervisor_->kill_all();
      loop_.stop();
      return;
    }
    stopping_ = true;
    log::info("stopping: running requests get up to {:.0f} s", flags_.front.shutdown_timeout_s);
    supervisor_->stop(Duration(static_cast<std::int64_t>((flags_.front.shutdown_timeout_s + 5) * 1e6)), [this] {
      log::info("stopped");
      loop_.stop();
    });
  }

  ServeFlags flags_;
  Progress progress_;
  const bool detached_;
  net::EventLoop loop_;
  TimePoint started_{};
  std::string model_path_;
  std::vector<WorkerPlan> workers_;
  int listen_fd_;
  device::gloo::Socket master_;  // where the other nodes come to; it outlives the worker that waits for them there
  int ready_pipe_ = -1;
  std::unique_ptr<Supervisor> supervisor_;
  std::unique_ptr<net::HttpClient> client_;
  std::unique_ptr<net::HttpCall> poll_;
  int poll_status_ = 0;
  std::string poll_body_;
  std::set<std::string> workers_ready_;
  bool ready_ = false, stopping_ = false, owns_state_ = false;
  int exit_code_ = 0;
};

// Starts the server in a session of its own and waits until it is ready.
int run_detached(ServeFlags flags) {
  // Before anything of a server that already runs on this port is touched, and so that the port is known for --port 0.
  const auto listen_fd = listen_socket(flags.front.host, flags.front.port, &flags.front.port);
  if (!listen_fd.ok()) return fail(listen_fd.status());
  const std::string log = log_file(flags.front.port);
  if (const Status made = make_dirs(home_dir() + "/run"); !made.ok()) return fail(made);
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return fail(Status(Code::kInternal, "cannot create a pipe"));
  const int pid = fork();
  if (pid < 0) return fail(Status(Code::kInternal, "cannot fork"));
  if (pid == 0) {
    close(pipe_fds[0]);
    setsid();
    const int log_fd = open(log.c_str(), O_CREAT | O_WRONLY | O_TRUNC | O_APPEND, 0644);
    const int null_fd = open("/dev/null", O_RDONLY);
    dup2(null_fd, 0);
    dup2(log_fd, 1);
    dup2(log_fd, 2);
    flags.engine.log.init("serve");
    const int code = Serve(flags, fdopen(pipe_fds[1], "w"), true, *listen_fd).run();
    std::fflush(nullptr);
    _exit(code);
  }
  close(pipe_fds[1]);
  close(*listen_fd);
  std::FILE* in = fdopen(pipe_fds[0], "r");
  char line[4096];
  bool ready = false, failed = false, shown = false;
  const auto show_log = [&] {
    const auto text = read_text_file(log);
    if (!shown && text.ok() && !text->empty())
      std::fprintf(stderr, "--- the end of %s\n%s", log.c_str(), text->substr(text->size() > 3000 ? text->size() - 3000 : 0).c_str());
    shown = true;
  };
  while (!ready && std::fgets(line, sizeof line, in)) {
    ready = line[0] == '\x01';
    failed = failed || std::string_view(line).starts_with("error:");
    if (line[0] == '\x02') {
      show_log();
    } else if (!ready) {
      std::fputs(line, failed ? stderr : stdout);
    }
    std::fflush(stdout);
  }
  std::fclose(in);
  if (ready) {
    std::printf("log      %s\nstop     baton stop --port %d\n", log.c_str(), flags.front.port);
    return 0;
  }
  if (!failed) show_log();  // it ended without a word
  return kExitFailed;
}

}  // namespace

int run_serve(Args args) {
  ServeFlags flags;
  CLI::App app(
      "Serves MODEL: starts the gateway and the workers, restarts what dies, and stops them on SIGTERM or Ctrl-C.\n"
      "Without --prefill and --decode one engine does both phases.",
      "baton serve");
  app.set_help_flag("-h,--help", "this text");
  app.add_option("model,--model", flags.engine.model,
                 "a .gguf file, a Hugging Face folder, a name that `baton pull` knows, or ORG/NAME that was pulled")
      ->required();
  flags.topology.add_to(app);
  app.add_flag("--detach", flags.detach, "return once the server is ready; it goes on in the background");
  app.add_option("--ready-timeout", flags.ready_timeout_s, "seconds to become ready (default: 600, or twice --node-timeout)");
  app.add_option("--lifetime-fd", flags.lifetime_fd, "a pipe whose end means: exit")->group("");
  std::string config;
  app.add_option("--config", config, "YAML file of flags; the command line wins");
  flags.engine.add_to(app);
  flags.engine.nodes.add_to(app);
  flags.front.add_to(app);
  if (const auto code = parse_args(app, std::move(args))) return *code;
  if (flags.detach && !flags.engine.nodes.leads())
    return fail(Status(Code::kInvalidArgument, "--detach is for a server that answers requests; run node 1 and up under what restarts it"));
  if (flags.detach) return run_detached(std::move(flags));
  flags.engine.log.init("serve");
  return Serve(std::move(flags), stdout, false).run();
}

}  // namespace baton::app
