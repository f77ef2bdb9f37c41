#include "app/bench/compare/runner.h"

#include <signal.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace baton::app {
namespace {

constexpr Duration kStop = std::chrono::seconds(10);
constexpr Duration kSilence = std::chrono::minutes(30);  // of one request: longer than the gateway lets one live

std::string duration_words(double seconds) {
  return seconds < 90 ? fmt::format("{:.0f} s", seconds) : fmt::format("{:.0f} min", seconds / 60);
}

}  // namespace

Runner::Runner(RunnerOptions options, const CampaignOptions& campaign, Comparison& comparison)
    : options_(std::move(options)), campaign_(campaign), comparison_(comparison), terminal_(isatty(2)) {
  loop_.on_signals({SIGINT, SIGTERM}, [this](int) { interrupted_ = true; });
}

// Lets the loop take what signals there are.
bool Runner::interrupted() {
  loop_.after(Duration(0), [this] { loop_.stop(); });
  loop_.run();
  return interrupted_;
}

void Runner::run() {
  std::fprintf(stderr, "%-9s%s\n", "plan", what_is_left().c_str());
  comparison_.finished = true;
  while (const auto step = campaign_.next()) {
    comparison_.finished = false;
    const Went went = carry_out(*step);
    take_stock();
    if (went == Went::kInterrupted || interrupted()) {
      comparison_.notes.push_back("interrupted: what had ended by then is all that follows");
      break;
    }
    options_.on_run();
    comparison_.finished = true;
  }
  stop();
  for (const ArmResult& arm : comparison_.arms)
    if (std::string note = too_short(arm, comparison_.requests); !note.empty()) comparison_.notes.push_back(std::move(note));
}

void Runner::take_stock() {
  comparison_.rate = campaign_.rate();
  if (const auto from = campaign_.rate_from())
    comparison_.rate_from = campaign_.search(*from)->saturation_words(comparison_.arms[*from].arm.name);
  for (std::size_t a = 0; a < comparison_.arms.size(); ++a) {
    ArmResult& arm = comparison_.arms[a];
    arm.failure = campaign_.failure(a);
    if (const SaturationSearch* search = campaign_.search(a); search && !search->probes().empty()) {
      arm.sustained = search->sustained();
      arm.beyond = search->beyond();
      arm.saturation = search->saturation();
      arm.bracketed = search->bracketed();
    }
  }
}

Runner::Went Runner::carry_out(const Step& step) {
  ArmResult& arm = comparison_.arms[step.arm];
  const auto fail = [&](const std::string& why) {
    std::fprintf(stderr, "%-9s%s: %s\n", "ERROR", arm.arm.name.c_str(), why.c_str());
    stop();
    campaign_.on_failure(why);
    return Went::kFailed;
  };
  if (step.fresh || !server_) {
    stop();
    if (const Status started = start(step.arm); !started.ok())
      return started.code() == Code::kCancelled ? Went::kInterrupted : fail(started.message());
  }
  const auto requests = options_.requests(step.rate, step.draw);
  if (!requests.ok()) return fail(requests.status().message());
  LoadOptions load = load_options(arm.arm.name, step.draw);
  load.request_rate = options_.own_times ? 0 : step.rate;
  LoadResult result = run_load(*requests, load, [&](std::size_t done) { progress(step, done, requests->size()); });
  if (result.interrupted) return Went::kInterrupted;
  if (const std::string what = what_ended(); !what.empty())
    return fail(fmt::format("{} during a run, which does not count; the log is {}", what, options_.log_path));
  arm.runs.push_back(make_run(step, std::move(result.outcomes), result.duration, comparison_.goodput_ms));
  campaign_.on_run(arm.runs.back().kept_up);
  tell(step, arm.runs.back());
  return Went::kWell;
}

std::string Runner::what_ended() {
  if (const std::string how = server_->ended(); !how.empty()) return "baton serve " + how;
  const auto now = server_->workers();
  return now.ok() ? change(workers_, *now) : now.status().message();
}

LoadOptions Runner::load_options(const std::string& name, int draw) {
  LoadOptions load;
  load.port = server_->port();
  load.model = options_.model;
  load.seed = options_.seed + static_cast<std::uint64_t>(draw);
  load.burstiness = options_.burstiness;
  load.ignore_eos = options_.ignore_eos;
  load.request_id_prefix = fmt::format("{}-{}-", name, ++runs_);
  // What a run left in a prefix cache must not help the next one; what requests of one run share does.
  load.extra_body = {{"temperature", 0}, {"cache_salt", fmt::format("{}-{}", getpid(), runs_)}};
  load.timeout = kSilence;
  load.stop_on_signals = true;
  return load;
}

Status Runner::start(std::size_t arm) {
  const Arm& which = comparison_.arms[arm].arm;
  if (terminal_) std::fprintf(stderr, "\r\x1b[Kstart    %s", which.name.c_str());
  const SystemClock clock;
  const TimePoint begin = clock.now();
  BATON_ASSIGN_OR_RETURN(server_, ArmServer::start(with_flags(options_.serve_args, which.flags), options_.log_path, options_.start_limit,
                                                   [this] { return interrupted(); }));
  if (options_.warmups > 0) {
    BATON_ASSIGN_OR_RETURN(const auto requests, options_.requests(0, 0));
    std::vector<BenchRequest> some;  // of all lengths
    const std::size_t count = std::min(requests.size(), static_cast<std::size_t>(options_.warmups));
    for (std::size_t i = 0; i < count; ++i) {
      some.push_back(requests[i * requests.size() / count]);
      some.back().arrival_s = -1;
    }
    const LoadResult result = run_load(some, load_options(which.name + "-warm", 0), [](std::size_t) {});
    if (result.interrupted) return Status(Code::kCancelled, "interrupted");
    for (const RequestOutcome& o : result.outcomes)
      if (!o.ok) return Status(Code::kUnavailable, fmt::format("a warm-up request failed: {}; the log is {}", o.error, options_.log_path));
  }
  BATON_ASSIGN_OR_RETURN(workers_, server_->workers());
  start_seconds_ = to_seconds(clock.now() - begin);
  return {};
}

void Runner::stop() {
  if (server_) server_->stop(kStop);
  server_.reset();
}

void Runner::tell(const Step& step, const ArmRun& run) {
  constexpr const char* kNames[] = {"search", "measure", "sweep"};
  const bool searched = step.purpose == Purpose::kSearch && step.rate > 0;
  std::string line =
      fmt::format("{:<9}{:<18} {:<18} {:.1f} s, {:.2f} {}/s", kNames[static_cast<int>(step.purpose)], comparison_.arms[step.arm].arm.name,
                  rate_words(step.rate), run.report.duration, searched ? run.kept_up.completed : run.report.request_throughput,
                  searched ? comparison_.unit : "requests");
  if (searched) line += run.kept_up.sustained ? ", sustained" : ", not sustained";
  if (searched && !run.kept_up.clear()) line += step.draw == 0 ? " (a narrow case)" : " (a narrow case; both runs decide)";
  if (!searched)
    line += fmt::format(", TPOT {:.1f} ms, P99 ITL {:.1f} ms", measure("mean_tpot").of(run.report), measure("p99_itl").of(run.report));
  if (run.report.failed > 0) line += fmt::format(", {} FAILED: {}", run.report.failed, run.report.errors.front().first);
  const std::string left = what_is_left();
  std::fprintf(stderr, "%s%s%s%s\n", terminal_ ? "\r\x1b[K" : "", line.c_str(), left.empty() ? "" : "; left: ", left.c_str());
}

std::string Runner::rate_words(double rate) const { return rate > 0 ? comparison_.at(rate) : "all at once"; }

std::string Runner::what_is_left() const {
  const Campaign::Estimate left = campaign_.left(comparison_.requests, start_seconds_);
  if (left.runs == 0) return "";
  return left.seconds < 0 ? fmt::format("about {} runs; how long one takes is known after the first", left.runs)
                          : fmt::format("about {} runs, {}", left.runs, duration_words(left.seconds));
}

void Runner::progress(const Step& step, std::size_t done, std::size_t all) const {
  if (!terminal_) return;
  std::fprintf(stderr, "\r\x1b[K%s",
               fmt::format("{:<9}{:<18} {:<18} {:>3} %|{:<20}| {}/{}", "run", comparison_.arms[step.arm].arm.name, rate_words(step.rate),
                           done * 100 / all, std::string(done * 20 / all, '#'), done, all)
                   .c_str());
  std::fflush(stderr);
}

}  // namespace baton::app
