// `baton simulate`: the virtual cluster of sim/ over seeds. Each run is a process of its own, so that a failed check ends that run only.

#include <poll.h>
#include <spdlog/fmt/fmt.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

#include "app/args.h"
#include "app/commands.h"
#include "app/paths.h"
#include "base/log.h"
#include "sim/run.h"
#include "sim/shrink.h"

namespace baton::app {

extern const char kCommit[];

namespace {

using Json = nlohmann::ordered_json;
using Seeds = std::pair<std::uint64_t, std::uint64_t>;

constexpr int kRunMaxSeconds = 300;  // of one run's process; virtual time has limits of its own

Result<Seeds> parse_seeds(std::string_view text) {
  const auto number = [](std::string_view word, std::uint64_t& out) {
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), out);
    return error == std::errc() && end == word.data() + word.size();
  };
  Seeds seeds;
  const auto dots = text.find("..");
  const bool right = dots == text.npos ? number(text, seeds.first) && number(text, seeds.second)
                                       : number(text.substr(0, dots), seeds.first) && number(text.substr(dots + 2), seeds.second);
  if (!right || seeds.second < seeds.first)
    return {Code::kInvalidArgument, "--seeds wants A..B or one seed, not '" + std::string(text) + "'"};
  return seeds;
}

// A scenario by name, from a file, or the swarm's, which every seed draws anew.
class Source {
 public:
  static Result<Source> open(const std::string& word) {
    if (word == "swarm") return Source("swarm", std::nullopt);
    if (const sim::Scenario* known = sim::find_scenario(word)) return Source(word, *known);
    const auto text = read_text_file(word);
    if (!text.ok())
      return {Code::kInvalidArgument, "there is no scenario '" + word + "' (--list shows those with a name), nor such a file"};
    const auto scenario = sim::scenario_from_text(*text);
    if (!scenario.ok()) return scenario.status().with_context(word);
    Source source(word, *scenario);
    source.own_seed_ = scenario->seed;
    return source;
  }
  sim::Scenario at(std::uint64_t seed) const {
    if (!scenario_) return sim::draw_swarm(seed);
    sim::Scenario s = *scenario_;
    s.seed = seed;
    return s;
  }
  const std::string& name() const { return name_; }
  Seeds default_seeds() const { return own_seed_ ? Seeds{*own_seed_, *own_seed_} : Seeds{1, 100}; }

 private:
  Source(std::string name, std::optional<sim::Scenario> scenario) : name_(std::move(name)), scenario_(std::move(scenario)) {}
  std::string name_;
  std::optional<sim::Scenario> scenario_;
  std::optional<std::uint64_t> own_seed_;  // of a file
};

// ---------------------------------------------------------------------------------------------------------------- runs

struct Verdict {
  std::uint64_t seed = 0;
  std::string summary;
  int requests = 0;
  std::vector<std::string> failures;
};

// A run in a process of its own. What it says comes through a pipe: standard error too, where a failed BATON_CHECK speaks.
class RunProcess {
 public:
  static Result<RunProcess> start(const sim::Scenario& scenario) {
    int ends[2];
    if (pipe(ends) != 0) return {Code::kInternal, std::string("pipe: ") + std::strerror(errno)};
    const pid_t pid = fork();
    if (pid < 0) return {Code::kInternal, std::string("fork: ") + std::strerror(errno)};
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      alarm(kRunMaxSeconds);
      dup2(ends[1], STDOUT_FILENO);
      dup2(ends[1], STDERR_FILENO);
      close(ends[0]);
      close(ends[1]);
      const sim::RunResult r = sim::run(scenario);
      fmt::print("requests {}\nsummary {}\n", r.requests, sim::summary(scenario, r));
      for (const auto& f : r.failures) fmt::print("failure {}\n", f);
      std::fflush(stdout);
      _exit(0);
    }
    close(ends[1]);
    return RunProcess(scenario.seed, pid, ends[0]);
  }
  int fd() const { return fd_; }
  std::uint64_t seed() const { return seed_; }
  // True when it has ended.
  bool read() {
    char buffer[16384];
    const ssize_t n = ::read(fd_, buffer, sizeof buffer);
    if (n > 0) said_.append(buffer, static_cast<std::size_t>(n));
    return n == 0 || (n < 0 && errno != EINTR);
  }
  Verdict verdict() {
    close(fd_);
    int status = 0;
    waitpid(pid_, &status, 0);
    Verdict v;
    v.seed = seed_;
    std::string check;
    for (std::size_t at = 0; at < said_.size();) {
      const std::size_t end = std::min(said_.find('\n', at), said_.size());
      const std::string line = said_.substr(at, end - at);
      at = end + 1;
      if (line.starts_with("requests ")) v.requests = std::atoi(line.c_str() + 9);
      if (line.starts_with("summary ")) v.summary = line.substr(8);
      if (line.starts_with("failure ")) v.failures.push_back(line.substr(8));
      if (line.find("check failed: ") != line.npos) check = line;
    }
    if (v.summary.empty()) {
      const std::string how = WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "exit " + std::to_string(WEXITSTATUS(status));
      v.failures = {check.empty() ? "crash: " + how : "check " + check};
    }
    return v;
  }

 private:
  RunProcess(std::uint64_t seed, pid_t pid, int fd) : seed_(seed), pid_(pid), fd_(fd) {}
  std::uint64_t seed_;
  pid_t pid_;
  int fd_;
  std::string said_;
};

Verdict run_alone(const sim::Scenario& scenario) {
  auto process = RunProcess::start(scenario);
  if (!process.ok()) return {scenario.seed, "", 0, {"crash: " + process.status().to_string()}};
  while (!process->read()) continue;
  return process->verdict();
}

// Every seed's, `jobs` at a time, until one fails; of several, the lowest seed counts, whatever the number of jobs.
class Hunt {
 public:
  Hunt(const Source& source, Seeds seeds, int jobs, bool verbose) : source_(source), seeds_(seeds), jobs_(jobs), verbose_(verbose) {}

  Status run() {
    std::uint64_t next = seeds_.first;
    bool more = true;
    while (more || !running_.empty()) {
      while (more && !failed && running_.size() < static_cast<std::size_t>(jobs_)) {
        BATON_ASSIGN_OR_RETURN(RunProcess process, RunProcess::start(source_.at(next)));
        running_.push_back(std::move(process));
        more = next++ != seeds_.second;
      }
      if (failed) more = false;
      wait();
    }
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
    if (progress_) fmt::print(stderr, "\r{:40}\r", "");
    return {};
  }

  std::optional<Verdict> failed;
  std::uint64_t runs = 0, requests = 0;
  double seconds = 0;

 private:
  void wait() {
    std::vector<pollfd> ready;
    for (const RunProcess& p : running_) ready.push_back({p.fd(), POLLIN, 0});
    (void)poll(ready.data(), ready.size(), -1);
    for (std::size_t i = ready.size(); i > 0; --i) {
      if (ready[i - 1].revents == 0 || !running_[i - 1].read()) continue;
      take(running_[i - 1].verdict());
      running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(i - 1));
    }
  }
  void take(Verdict v) {
    ++runs;
    requests += static_cast<std::uint64_t>(v.requests);
    if (verbose_) fmt::print("{}\n", v.summary.empty() ? v.failures.at(0) : v.summary);
    if (progress_ && runs % 16 == 0) {
      const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
      fmt::print(stderr, "\r{} seeds, {:.0f} a second ", runs, static_cast<double>(runs) / s);
    }
    if (!v.failures.empty() && (!failed || v.seed < failed->seed)) failed = std::move(v);
  }

  const Source& source_;
  const Seeds seeds_;
  const int jobs_;
  const bool verbose_, progress_ = isatty(STDERR_FILENO) != 0;
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  std::vector<RunProcess> running_;
};

// In this process, with every event on standard output.
int trace(const sim::Scenario& scenario) {
  std::cout << sim::to_text(scenario);
  const auto result = sim::run(scenario, &std::cout);
  std::cout << sim::summary(scenario, result) << '\n';
  for (const auto& f : result.failures) std::cout << "    " << f << '\n';
  return result.ok() ? 0 : kExitFailed;
}

int list() {
  fmt::print("{:<14} {}\n", "swarm", "each seed draws its own cluster, load and faults");
  for (const auto& s : sim::scenarios()) fmt::print("{:<14} {}\n", s.name, s.about);
  return 0;
}

struct Options {
  std::string scenario = "swarm", seeds, out;
  int jobs = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  int shrink_runs = 500;
  bool trace = false, verbose = false, json = false, list = false;
};

int report_failure(const Options& o, const Source& source, const Hunt& hunt, Json& json) {
  const Verdict& failed = *hunt.failed;
  if (!o.json) {
    fmt::print("{}: seed {} FAILED at commit {}\n", source.name(), failed.seed, kCommit);
    for (const auto& f : failed.failures) fmt::print("    {}\n", f);
  }
  sim::Shrunk shrunk{source.at(failed.seed), failed.failures[0], 0};
  if (o.shrink_runs > 0) {
    const auto fails = [](const sim::Scenario& s) -> std::string {
      const Verdict v = run_alone(s);
      return v.failures.empty() ? "" : v.failures[0];
    };
    shrunk = sim::shrink(shrunk.scenario, shrunk.failure, fails, o.shrink_runs);
  }
  const std::string text = sim::to_text(shrunk.scenario);
  const std::string file = o.out.empty() ? fmt::format("failed-{}.scenario", failed.seed) : o.out;
  std::ofstream(file) << text;
  const std::size_t requests =
      static_cast<std::size_t>(shrunk.scenario.load.requests + shrunk.scenario.load.probes) - shrunk.scenario.load.skip.size();
  if (o.json) {
    json["failure"] = {{"seed", failed.seed},
                       {"invariant", sim::failure_kind(failed.failures[0])},
                       {"failures", failed.failures},
                       {"shrink_runs", shrunk.runs},
                       {"shrunk_failure", shrunk.failure},
                       {"faults", shrunk.scenario.faults.size()},
                       {"requests", requests},
                       {"reproduction", text},
                       {"file", file}};
    fmt::print("{}\n", json.dump(2));
    return kExitFailed;
  }
  fmt::print("\nshortest reproduction after {} runs: {} faults, {} requests, {} workers; it fails with\n    {}\n\n{}\n", shrunk.runs,
             shrunk.scenario.faults.size(), requests, sim::worker_names(shrunk.scenario).size(), shrunk.failure, text);
  fmt::print("reproduce: baton simulate --scenario {} --trace\n", file);
  return kExitFailed;
}

}  // namespace

int run_simulate(Args args) {
  Options o;
  CLI::App app(
      "Runs a whole cluster (gateway, prefill and decode workers: the code that serves) in one thread under a virtual clock, with a "
      "modelled\n"
      "device and network, under faults that a seed draws; checks after every event that nothing is lost. The same seed and commit are "
      "the\n"
      "same run, event by event. A failure is shrunk and written as a scenario file that fails again.\n"
      "Exit code 1 if something was violated.",
      "baton simulate");
  app.set_help_flag("-h,--help", "this text");
  app.add_option("--seeds", o.seeds, "A..B, both included, or one (default 1..100; of a scenario file: its own)");
  app.add_option("--scenario", o.scenario, "a name of --list, or a scenario file")->capture_default_str();
  app.add_option("--jobs", o.jobs, "runs at a time (default: one a CPU)")->check(CLI::Range(1, 1024));
  app.add_option("--shrink-runs", o.shrink_runs, "runs spent on making a failure small; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--out", o.out, "where the reproduction is written (default: failed-SEED.scenario)");
  app.add_flag("--trace", o.trace, "one run, with the scenario and every event on standard output, logs on standard error");
  app.add_flag("-v,--verbose", o.verbose, "a line for each seed, with the hash of its trace");
  app.add_flag("--list", o.list, "the scenarios with a name");
  app.add_flag("--json", o.json, "the result as JSON");
  if (const auto code = parse_args(app, std::move(args))) return *code;
  if (o.list) return list();
  const auto wrong = [](const Status& s) { return fail(s), kExitUsage; };
  const auto source = Source::open(o.scenario);
  if (!source.ok()) return wrong(source.status());
  const auto seeds = o.seeds.empty() ? Result<Seeds>(source->default_seeds()) : parse_seeds(o.seeds);
  if (!seeds.ok()) return wrong(seeds.status());
  log::init({.level = o.trace ? "info" : "off", .process = "sim"});
  if (o.trace) return trace(source->at(seeds->first));

  std::fflush(stdout);
  Hunt hunt(*source, *seeds, o.jobs, o.verbose && !o.json);
  if (Status s = hunt.run(); !s.ok()) return fail(s);
  const double rate = static_cast<double>(hunt.runs) / std::max(hunt.seconds, 1e-9);
  Json json{{"commit", std::string(kCommit)},
            {"scenario", source->name()},
            {"seeds", Json::array({seeds->first, seeds->second})},
            {"runs", hunt.runs},
            {"requests", hunt.requests},
            {"seconds", hunt.seconds},
            {"seeds_per_s", rate},
            {"ok", !hunt.failed}};
  if (hunt.failed) return report_failure(o, *source, hunt, json);
  if (o.json) {
    fmt::print("{}\n", json.dump(2));
  } else {
    fmt::print("{}: {} seeds held, {} requests, {:.1f} s, {:.1f} seeds a second with {} jobs, commit {}\n", source->name(), hunt.runs,
               hunt.requests, hunt.seconds, rate, o.jobs, kCommit);
  }
  return 0;
}

}  // namespace baton::app
