// `baton chaos`: a cluster of its own, its answers while nothing fails, and the same requests again while workers and networks fail.

#include <signal.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <functional>

#include "app/args.h"
#include "app/bench/load.h"
#include "app/chaos/clients.h"
#include "app/chaos/cluster.h"
#include "app/chaos/fault_plan.h"
#include "app/chaos/report.h"
#include "app/chaos/requests.h"
#include "app/commands.h"
#include "app/options.h"
#include "app/paths.h"
#include "base/log.h"

namespace baton::app {
namespace {

constexpr std::size_t kConcurrency = 32;  // of the undisturbed run
constexpr double kShare = 0.7;            // of its rate that the load is
constexpr Duration kReady = std::chrono::seconds(300);
constexpr Duration kQuiet = std::chrono::seconds(15);  // until everybody's books must balance
constexpr Duration kOften = std::chrono::milliseconds(100);

struct ChaosFlags {
  EngineFlags engine;
  TopologyFlags topology;
  std::string faults = "kill,stop,term,proxy", json;
  std::size_t streams = 500;
  double rate = 0;  // 0: kShare of what was measured
  double kill_every_s = 5, fault_every_s = 10;
  std::uint64_t seed = 1;
};

class Chaos {
 public:
  explicit Chaos(ChaosFlags flags) : flags_(std::move(flags)), requests_(make_requests(flags_.streams, flags_.seed)) {}

  Result<ChaosReport> run() {
    loop_.on_signals({SIGTERM, SIGINT}, [this](int) {
      interrupted_ = true;
      loop_.stop();
    });
    BATON_ASSIGN_OR_RETURN(const std::vector<FaultKind> kinds, parse_faults(flags_.faults));
    report_.model = flags_.engine.model;
    report_.prefill = flags_.topology.prefill;
    report_.decode = flags_.topology.decode;
    report_.data_parallel_size = flags_.topology.data_parallel_size;
    report_.seed = flags_.seed;
    FaultPlanOptions plan;
    plan.kinds = kinds;
    plan.kill_every = seconds(flags_.kill_every_s);
    plan.other_every = seconds(flags_.fault_every_s);
    plan.seed = flags_.seed;
    BATON_RETURN_IF_ERROR(start_cluster());
    Clients undisturbed(loop_, requests_, client_options("calm", kConcurrency), [this](std::size_t) { progress(); });
    BATON_RETURN_IF_ERROR(run_undisturbed(undisturbed));
    BATON_RETURN_IF_ERROR(wait([this] { return cluster_->whole(); }, kReady, "all workers to be ready"));
    FaultPlan faults(plan);
    BATON_RETURN_IF_ERROR(run_disturbed(undisturbed, faults));
    BATON_RETURN_IF_ERROR(balance());
    report_.crashes = cluster_->crashes();
    return std::move(report_);
  }

 private:
  static Duration seconds(double s) { return Duration(static_cast<std::int64_t>(s * 1e6)); }
  TimePoint now() const { return loop_.clock().now(); }

  // Runs the loop until `done`, which is looked at every now and then.
  Status wait(const std::function<bool()>& done, Duration limit, const char* what) {
    const TimePoint until = now() + limit;
    net::Executor::TimerId timer = 0;
    std::function<void()> look = [&] {
      if (done() || now() >= until || cluster_->failure()) return loop_.stop();
      timer = loop_.after(kOften, look);
    };
    timer = loop_.after(Duration(0), look);
    if (!interrupted_) loop_.run();
    loop_.cancel(timer);
    if (interrupted_) return Status(Code::kCancelled, "interrupted; the cluster was stopped");
    if (cluster_->failure()) return Status(Code::kUnavailable, *cluster_->failure());
    if (!done()) return Status(Code::kDeadlineExceeded, fmt::format("waited {:.0f} s for {}; see {}", to_seconds(limit), what, log_));
    return {};
  }

  Status start_cluster() {
    ClusterOptions options;
    BATON_ASSIGN_OR_RETURN(options.model_path, resolve_model(flags_.engine.model));
    options.engine = flags_.engine;
    options.front.served_model_name = {flags_.engine.model};
    options.front.shutdown_timeout_s = 10;
    options.front.stats_interval_s = 0;
    options.front.host = "127.0.0.1";
    options.topology = flags_.topology;
    BATON_RETURN_IF_ERROR(make_dirs(home_dir() + "/run"));
    options.log_path = log_ = fmt::format("{}/run/chaos-{}.log", home_dir(), getpid());
    BATON_ASSIGN_OR_RETURN(cluster_, ChaosCluster::start(loop_, std::move(options)));
    const TopologyFlags& t = flags_.topology;
    const std::string workers = t.prefill.empty() ? fmt::format("{} workers of both roles", t.data_parallel_size)
                                                  : fmt::format("{} prefill and {} decode workers", t.prefill, t.decode);
    say("chaos    {}, {} streams, seed {}; their log: {}", workers, flags_.streams, flags_.seed, log_);
    return wait([this] { return cluster_->whole(); }, kReady, "all workers to be ready");
  }

  ClientsOptions client_options(const char* name, std::size_t concurrency) const {
    ClientsOptions options;
    options.port = cluster_->port();
    options.model = flags_.engine.model;
    // Not shared by the two runs: the second would find every prompt cached.
    options.cache_salt = fmt::format("{}-{}", name, flags_.seed);
    options.id_prefix = fmt::format("{}-", name);
    options.concurrency = concurrency;
    return options;
  }

  // The answers that are right, and the rate at which the cluster is busy all the time.
  Status run_undisturbed(Clients& clients) {
    start_progress("calm", clients);
    clients.start();
    BATON_RETURN_IF_ERROR(wait([&] { return clients.finished(); }, kForever, "the undisturbed streams"));
    for (const StreamOutcome& stream : clients.outcomes())
      if (!stream.failure.empty())
        return Status(Code::kInternal,
                      fmt::format("stream {} failed while nothing was wrong: {}; see {}", stream.id, stream.failure, log_));
    // All of the first slots were in work until the last was sent, those that were open then half done.
    const std::size_t open = std::min(kConcurrency, flags_.streams);
    const double full = to_seconds(clients.last_sent() - clients.started()), all = to_seconds(now() - clients.started());
    const auto n = static_cast<double>(flags_.streams);
    report_.saturation = flags_.streams > 2 * open ? (n - static_cast<double>(open) / 2) / full : n / all;
    report_.rate = flags_.rate > 0 ? flags_.rate : kShare * report_.saturation;
    say("calm     {} streams right by definition, {:.2f} requests/s", flags_.streams, report_.saturation);
    return {};
  }

  Status run_disturbed(const Clients& undisturbed, FaultPlan& faults) {
    ClientsOptions options = client_options("chaos", 0);
    for (const double at : arrival_times(flags_.streams, report_.rate, 1.0, flags_.seed)) options.arrivals.push_back(seconds(at));
    options.ask_served = true;
    options.excused = [this](TimePoint sent) { return gateway_killed_ > sent; };
    Clients clients(loop_, requests_, std::move(options), [this](std::size_t) { progress(); });
    start_progress("chaos", clients);
    report_.began = now();
    clients.start();
    next_fault_ = faults.next();
    const Status ended = wait(
        [&] {
          fall(faults);
          return clients.finished();
        },
        kForever, "the disturbed streams");
    clients_ = nullptr;
    BATON_RETURN_IF_ERROR(ended);
    report_.seconds = to_seconds(now() - report_.began);
    report_.compare_all(undisturbed.outcomes(), clients.outcomes());
    return {};
  }

  // One that finds nobody whom it may befall waits for somebody.
  void fall(FaultPlan& faults) {
    while (next_fault_ && report_.began + next_fault_->at <= now()) {
      auto befallen = cluster_->inject(*next_fault_);
      if (!befallen) return;
      if (befallen->took_streams) gateway_killed_ = befallen->at;
      report_.faults.push_back(std::move(*befallen));
      next_fault_ = faults.next();
      progress();
    }
  }

  Status balance() {
    bool asked = false, balanced = false;
    const TimePoint until = now() + kQuiet;
    const auto look = [&](const std::map<std::string, std::string>& statuses) {
      asked = false;
      report_.workers = statuses.size();
      report_.unbalanced.clear();
      for (const auto& [worker, status] : statuses)
        if (const std::string what = imbalance(status); !what.empty()) report_.unbalanced[worker] = what;
      balanced = report_.unbalanced.empty() && cluster_->whole();
    };
    return wait(
        [&] {
          if (asked) return false;
          if (balanced || now() >= until) return true;
          asked = true;
          cluster_->ask_workers(look);
          return false;
        },
        kQuiet + std::chrono::seconds(10), "the workers' books");
  }

  template <class... A>
  void say(fmt::format_string<A...> format, A&&... args) {
    clients_ = nullptr;
    std::fprintf(stderr, "%s%s\n", terminal_ ? "\r\x1b[K" : "", fmt::format(format, std::forward<A>(args)...).c_str());
  }

  void start_progress(const char* name, const Clients& clients) {
    phase_ = name;
    clients_ = &clients;
    tenth_ = 0;
  }

  void progress() {
    if (!clients_) return;
    const std::size_t done = clients_->ended(), tenth = done * 10 / flags_.streams;
    if (!terminal_ && tenth == tenth_) return;
    tenth_ = tenth;
    const std::string last = report_.faults.empty() ? "" : report_.faults.back().what;
    std::fprintf(stderr, "%s%-8s %3zu %%|%-20s| %zu/%zu [%.0f s, %zu faults]%s%s%s", terminal_ ? "\r\x1b[K" : "", phase_,
                 done * 100 / flags_.streams, std::string(done * 20 / flags_.streams, '#').c_str(), done, flags_.streams,
                 to_seconds(now() - clients_->started()), report_.faults.size(), last.empty() ? "" : " ", last.c_str(),
                 terminal_ ? "" : "\n");
    std::fflush(stderr);
  }

  static constexpr Duration kForever = std::chrono::hours(6);

  const ChaosFlags flags_;
  const std::vector<ChaosRequest> requests_;
  const bool terminal_ = isatty(2);
  net::EventLoop loop_;
  std::string log_;
  std::unique_ptr<ChaosCluster> cluster_;
  std::optional<Fault> next_fault_;
  TimePoint gateway_killed_{};
  ChaosReport report_;
  const Clients* clients_ = nullptr;  // whose progress is shown
  const char* phase_ = "";
  std::size_t tenth_ = 0;
  bool interrupted_ = false;
};

}  // namespace

int run_chaos(Args args) {
  forget_api_keys();
  ChaosFlags flags;
  CLI::App app(
      "Shows that a deployment loses nothing. Starts a cluster of its own, takes its answers to a set of streams while nothing fails, "
      "then\n"
      "sends the same requests again while workers are killed, stopped and told to end and networks fail, and compares every token, text,\n"
      "log-probability and usage. Exit code 0: nothing was lost, wrong, missing or repeated, no process crashed, and at the end no worker\n"
      "holds a KV block for anybody.",
      "baton chaos");
  app.set_help_flag("-h,--help", "this text");
  app.add_option("model,--model", flags.engine.model, "as of `baton serve`")->required();
  flags.topology.prefill = flags.topology.decode = "2";
  flags.topology.add_to(app);
  app.add_option("--streams", flags.streams, "requests, each sent twice")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str()
      ->group("Load");
  app.add_option("--rate", flags.rate, "requests per second under faults (default: 70 % of what the cluster did without)")
      ->check(CLI::Range(0.001, 1e6))
      ->group("Load");
  app.add_option("--seed", flags.seed, "of requests, arrivals and faults")->capture_default_str()->group("Load");
  app.add_option(
         "--faults", flags.faults,
         "which: kill (SIGKILL), stop (SIGSTOP for 3 s), term (SIGTERM: a drain), proxy (the network: delay, throttle, hold, black\n"
         "hole, reset, end, half-close, refusal), gateway (SIGKILL, after which clients send again what it took along, or SIGSTOP for 3 "
         "s); all; none")
      ->capture_default_str()
      ->group("Faults");
  app.add_option("--kill-every", flags.kill_every_s, "seconds between kills, on average")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str()
      ->group("Faults");
  app.add_option("--fault-every", flags.fault_every_s, "seconds between other faults, on average")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str()
      ->group("Faults");
  app.add_option("--json", flags.json, "file for the figures, the faults, and what is known of each stream that was not right");
  flags.engine.add_to(app);
  if (const auto code = parse_args(app, std::move(args))) return *code;
  // Two of each, unless another kind of cluster is asked for.
  if (app.count("--data-parallel-size") > 0 && app.count("--prefill") + app.count("--decode") == 0)
    flags.topology.prefill = flags.topology.decode = "";
  if (!parse_faults(flags.faults).ok()) {
    std::fprintf(stderr, "baton chaos: error: %s\n", parse_faults(flags.faults).status().message().c_str());
    return kExitUsage;
  }
  log::init({"warn", "chaos"});
  const std::string json = flags.json;
  auto report = [&] {
    Chaos chaos(std::move(flags));
    return chaos.run();
  }();
  if (!report.ok()) return fail(report.status());
  fmt::print("{}", table(*report));
  if (!json.empty()) {
    const std::string path = json.find('/') == std::string::npos ? "./" + json : json;
    const Status written =
        write_text_file(path, to_json(*report).dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
    if (!written.ok()) return fail(written);
  }
  return report->passed() ? 0 : kExitFailed;
}

}  // namespace baton::app
