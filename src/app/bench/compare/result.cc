#include "app/bench/compare/result.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

namespace baton::app {
namespace {

ReportOptions report_options(const std::map<std::string, double>& goodput_ms) {
  ReportOptions options;
  options.percentiles.assign(std::begin(kComparePercentiles), std::end(kComparePercentiles));
  options.goodput_ms = goodput_ms;
  return options;
}

const Report::Summary& ttft(const Report& r) { return r.ms.at("ttft"); }
const Report::Summary& tpot(const Report& r) { return r.ms.at("tpot"); }
const Report::Summary& itl(const Report& r) { return r.ms.at("itl"); }

}  // namespace

ArmRun make_run(const Step& step, std::vector<RequestOutcome> outcomes, double duration, const std::map<std::string, double>& goodput_ms) {
  ArmRun run;
  run.purpose = step.purpose;
  run.rate = step.rate;
  run.repeat = step.repeat;
  run.kept_up = kept_up(outcomes, step.rate, duration);
  const ReportOptions options = report_options(goodput_ms);
  run.report = summarize(outcomes, duration, options);
  run.by_kind = summarize_by_kind(outcomes, duration, options);
  run.outcomes = std::move(outcomes);
  return run;
}

std::vector<const ArmRun*> ArmResult::measured() const {
  std::vector<const ArmRun*> out;
  for (const ArmRun& run : runs)
    if (run.purpose == Purpose::kMeasure && run.report.completed > 0) out.push_back(&run);
  return out;
}

int ArmResult::failed() const {
  int sum = 0;
  for (const ArmRun& run : runs) sum += static_cast<int>(run.report.failed);
  return sum;
}

int Comparison::failed() const {
  int sum = 0;
  for (const ArmResult& arm : arms) sum += arm.failed();
  return sum;
}

const ArmResult* Comparison::first() const {
  for (const ArmResult& arm : arms)
    if (!arm.measured().empty()) return &arm;
  return nullptr;
}

const std::vector<Measure>& measures() {
  static const std::vector<Measure> kMeasures = {
      {"duration", "", "Benchmark time", "s", false, [](const Report& r) { return r.duration; }},
      {"mean_ttft", "TTFT", "mean", "ms", false, [](const Report& r) { return ttft(r).mean; }},
      {"mean_tpot", "TPOT", "mean", "ms", false, [](const Report& r) { return tpot(r).mean; }},
      {"median_tpot", "TPOT", "median", "ms", false, [](const Report& r) { return tpot(r).median; }},
      {"p99_tpot", "TPOT", "P99", "ms", false, [](const Report& r) { return tpot(r).percentiles.at(kP99); }},
      {"mean_itl", "ITL", "mean", "ms", false, [](const Report& r) { return itl(r).mean; }},
      {"p99_itl", "ITL", "P99", "ms", false, [](const Report& r) { return itl(r).percentiles.at(kP99); }},
      {"request_throughput", "Throughput", "requests", "/s", true, [](const Report& r) { return r.request_throughput; }},
      {"output_throughput", "Throughput", "tokens", "/s", true, [](const Report& r) { return r.output_throughput; }},
  };
  return kMeasures;
}

const Measure& measure(const std::string& key) {
  static const std::vector<Measure> kOthers = {
      {"mean_e2el", "End to end", "mean", "ms", false, [](const Report& r) { return r.ms.at("e2el").mean; }},
      {"median_itl", "ITL", "median", "ms", false, [](const Report& r) { return itl(r).median; }},
      {"goodput", "Goodput", "requests", "/s", true, [](const Report& r) { return std::max(0.0, r.goodput); }},
  };
  for (const auto* list : {&measures(), &kOthers})
    for (const Measure& m : *list)
      if (key == m.key) return m;
  BATON_CHECK_MSG(false, key);
  return kOthers.front();
}

std::optional<Figure> figure(const ArmResult& arm, const Measure& measure, const std::string& kind) {
  std::vector<double> values;
  for (const ArmRun* run : arm.measured()) {
    if (kind.empty()) {
      values.push_back(measure.of(run->report));
    } else if (const auto found = run->by_kind.find(kind); found != run->by_kind.end() && found->second.completed > 0) {
      values.push_back(measure.of(found->second));
    }
  }
  if (values.empty()) return std::nullopt;
  std::ranges::sort(values);
  return Figure{percentile(values, 50), values.front(), values.back()};
}

std::optional<double> difference(const ArmResult& arm, const ArmResult& first, const Measure& measure) {
  const auto mine = figure(arm, measure), other = figure(first, measure);
  if (!mine || !other || other->median == 0) return std::nullopt;
  return (mine->median - other->median) / other->median;
}

std::optional<std::pair<double, double>> best_goodput(const Comparison& comparison, const ArmResult& arm) {
  const auto was_given = [](const ArmResult& a, double rate) {
    return std::ranges::any_of(a.runs, [&](const ArmRun& r) { return r.purpose != Purpose::kSearch && r.rate == rate; });
  };
  std::map<double, std::vector<double>> by_rate;  // several repeats at one rate count as their median
  for (const ArmRun& run : arm.runs)
    if (run.purpose != Purpose::kSearch && run.rate > 0 && run.report.goodput >= 0) by_rate[run.rate].push_back(run.report.goodput);
  std::optional<std::pair<double, double>> best;
  for (auto& [rate, values] : by_rate) {
    if (!std::ranges::all_of(comparison.arms, [&](const ArmResult& a) { return a.measured().empty() || was_given(a, rate); })) continue;
    std::ranges::sort(values);
    const double median = percentile(values, 50);
    if (!best || median > best->first) best = {median, rate};
  }
  return best;
}

std::string too_short(const ArmResult& arm, std::size_t requests) {
  constexpr double kAnswersMin = 4;  // that an arm should live through while requests come
  for (const ArmRun& run : arm.runs) {
    if (run.purpose != Purpose::kSearch || run.rate <= 0 || run.rate != arm.sustained) continue;
    const double lasts = static_cast<double>(requests) / run.rate, answer = run.report.ms.at("e2el").mean / 1e3;
    if (lasts < kAnswersMin * answer)
      return fmt::format(
          "{}: requests come for {:.0f} s at what it sustains, and an answer takes {:.1f} s; more --num-prompts would tell better",
          arm.arm.name, lasts, answer);
  }
  return "";
}

}  // namespace baton::app
