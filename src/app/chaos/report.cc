#include "app/chaos/report.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "app/bench/report.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

constexpr Difference kDifferences[] = {Difference::kMissing,  Difference::kRepeated, Difference::kWrongToken, Difference::kText,
                                       Difference::kLogprobs, Difference::kFinish,   Difference::kUsage};

std::size_t count(const ChaosReport& report, FaultKind kind) {
  return static_cast<std::size_t>(std::ranges::count(report.faults, kind, &Befallen::kind));
}

std::vector<double> sorted(const ChaosReport& report, FaultKind kind, double (*value)(const Stall&)) {
  std::vector<double> out;
  for (const Stall& stall : report.stalls)
    if (stall.kind == kind) out.push_back(value(stall));
  std::ranges::sort(out);
  return out;
}

struct Part {
  const char* name;
  double (*value)(const Stall&);
};
constexpr Part kBeyond{"beyond_prefill_ms", [](const Stall& s) { return s.beyond_prefill_ms(); }};
constexpr Part kParts[] = {{"gap_ms", [](const Stall& s) { return s.gap_ms; }},
                           {"noticed_ms", [](const Stall& s) { return s.noticed_ms; }},
                           {"reserved_ms", [](const Stall& s) { return s.reserved_ms; }},
                           {"queued_ms", [](const Stall& s) { return s.queued_ms; }},
                           {"prefill_ms", [](const Stall& s) { return s.prefill_ms; }},
                           {"resumed_ms", [](const Stall& s) { return s.resumed_ms; }},
                           kBeyond};

std::string faults_line(const ChaosReport& report) {
  std::string out;
  for (const FaultKind kind : kFaultKinds)
    if (const std::size_t n = count(report, kind); n > 0) out += fmt::format("{}{} {}", out.empty() ? "" : ", ", n, to_string(kind));
  return out.empty() ? "none" : out;
}

std::string stalls_table(const ChaosReport& report) {
  std::string out;
  for (const FaultKind kind : kFaultKinds) {
    const std::vector<double> beyond = sorted(report, kind, kBeyond.value);
    if (beyond.empty()) continue;
    if (out.empty())
      out =
          "stalls   of streams whose decode worker failed, in ms; medians\n"
          "                n  beyond prefill (p99, most)   gap = noticed + reserved + queued + prefill + resumed\n";
    const auto median = [&](std::size_t part) { return percentile(sorted(report, kind, kParts[part].value), 50); };
    out += fmt::format("  {:<10} {:>4}  {:>7.0f} ({:>7.0f}, {:>6.0f})  {:>6.0f} {:>9.0f} {:>10.0f} {:>8.0f} {:>9.0f} {:>9.0f}\n",
                       to_string(kind), beyond.size(), percentile(beyond, 50), percentile(beyond, 99), beyond.back(), median(0), median(1),
                       median(2), median(3), median(4), median(5));
  }
  return out;
}

}  // namespace

void ChaosReport::compare_all(const std::vector<StreamOutcome>& expected, const std::vector<StreamOutcome>& seen) {
  streams = seen.size();
  for (std::size_t i = 0; i < seen.size(); ++i) {
    const StreamOutcome& stream = seen[i];
    const Json served = Json::parse(stream.served, nullptr, false);
    if (served.is_object() && served.value("retries", 0) > 0) ++retried;
    refused += stream.refused > 0;
    cut += stream.cut > 0;
    bool stalled = false;
    for (const Befallen& fault : faults)
      if (fault.decode && fault.at > stream.sent && fault.at < stream.ended)
        if (auto stall = find_stall(stream, fault)) {
          stalls.push_back(std::move(*stall));
          stalled = true;
        }
    moved += stalled;
    std::string problem = stream.failure;
    if (!problem.empty()) {
      ++lost;
    } else if (const auto finding = compare(expected[i].record, stream.record)) {
      ++wrong[finding->difference];
      problem = fmt::format("{}: {}", to_string(finding->difference), finding->what);
    } else {
      ++right;
      continue;
    }
    if (problems.size() < kProblemsMax) problems.push_back({stream.id, problem, served.is_object() ? served : Json()});
  }
}

std::size_t ChaosReport::wrong_streams() const {
  std::size_t sum = 0;
  for (const auto& [difference, n] : wrong) sum += n;
  return sum;
}

std::string table(const ChaosReport& r) {
  std::string out = fmt::format("load     {:.2f} requests/s of {:.2f} at saturation, for {:.0f} s\n", r.rate, r.saturation, r.seconds);
  out += fmt::format("faults   {}\n", faults_line(r));
  out += fmt::format("streams  {} of {} right, {} lost, {} wrong; {} were tried again by the gateway, {} moved while they ran\n", r.right,
                     r.streams, r.lost, r.wrong_streams(), r.retried, r.moved);
  for (const auto& [difference, n] : r.wrong) out += fmt::format("         {}: {}\n", to_string(difference), n);
  if (r.refused + r.cut > 0)
    out += fmt::format("         {} were refused, {} went down with the gateway; their clients sent them again\n", r.refused, r.cut);
  out += stalls_table(r);
  out += fmt::format("books    {} of {} workers balanced: nothing runs or waits, free + cached = all KV blocks\n",
                     r.workers - r.unbalanced.size(), r.workers);
  for (const auto& [worker, what] : r.unbalanced) out += fmt::format("         {}: {}\n", worker, what);
  for (const std::string& crash : r.crashes) out += fmt::format("crash    {}\n", crash);
  for (const ChaosReport::Problem& problem : r.problems) out += fmt::format("problem  {}: {}\n", problem.stream, problem.what);
  out += r.passed() ? "result   nothing was lost\n" : "result   NOT all is well\n";
  return out;
}

Json to_json(const ChaosReport& r) {
  Json wrong = Json::object();
  for (const Difference difference : kDifferences) {
    const auto found = r.wrong.find(difference);
    wrong[to_string(difference)] = found == r.wrong.end() ? 0 : found->second;
  }
  Json faults = Json::array(), problems = Json::array(), stalls = Json::object(), counts = Json::object();
  for (const Befallen& fault : r.faults)
    faults.push_back({{"s", to_seconds(fault.at - r.began)}, {"kind", to_string(fault.kind)}, {"what", fault.what}});
  for (const ChaosReport::Problem& problem : r.problems)
    problems.push_back({{"stream", problem.stream}, {"what", problem.what}, {"served", problem.served}});
  for (const FaultKind kind : kFaultKinds) {
    counts[to_string(kind)] = count(r, kind);
    const std::vector<double> beyond = sorted(r, kind, kBeyond.value);
    if (beyond.empty()) continue;
    Json& of = stalls[to_string(kind)];
    of["count"] = beyond.size();
    for (const Part& part : kParts) {
      const std::vector<double> values = sorted(r, kind, part.value);
      of[part.name] = {{"median", percentile(values, 50)}, {"p99", percentile(values, 99)}, {"max", values.back()}};
    }
    const Stall& worst =
        *std::ranges::max_element(r.stalls, {}, [&](const Stall& s) { return s.kind == kind ? s.beyond_prefill_ms() : -1; });
    of["worst"] = {{"stream", worst.stream}, {"served", Json::parse(worst.served, nullptr, false)}};
  }
  return {{"passed", r.passed()},
          {"model", r.model},
          {"prefill", r.prefill},
          {"decode", r.decode},
          {"data_parallel_size", r.data_parallel_size},
          {"seed", r.seed},
          {"saturation_requests_per_s", r.saturation},
          {"requests_per_s", r.rate},
          {"seconds", r.seconds},
          {"streams", r.streams},
          {"right", r.right},
          {"lost", r.lost},
          {"wrong", r.wrong_streams()},
          {"wrong_by_kind", wrong},
          {"retried", r.retried},
          {"moved", r.moved},
          {"refused", r.refused},
          {"cut_with_gateway", r.cut},
          {"faults_by_kind", counts},
          {"stalls", stalls},
          {"unbalanced", r.unbalanced},
          {"crashes", r.crashes},
          {"faults", faults},
          {"problems", problems}};
}

std::string imbalance(const std::string& worker_status) {
  const Json s = Json::parse(worker_status, nullptr, false);
  if (!s.is_object()) return "does not answer";
  const int running = s.value("running", -1), waiting = s.value("waiting", -1), total = s.value("blocks_total", -1);
  const int free = s.value("blocks_free", 0), cached = s.value("blocks_cached", 0);
  if (running == 0 && waiting == 0 && free + cached == total) return "";
  return fmt::format("{} run, {} wait, {} free + {} cached of {} blocks", running, waiting, free, cached, total);
}

}  // namespace baton::app
