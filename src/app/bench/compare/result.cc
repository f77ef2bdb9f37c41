#include "app/bench/compare/result.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>

namespace baton::app {
namespace {

ReportOptions report_options(const std::map<std::string, double>& goodput_ms) {
  ReportOptions options;
  options.percentiles.assign(std::begin(kComparePercentiles), std::end(kComparePercentiles));
  options.goodput_ms = goodput_ms;
  return options;
}

// `values` is not empty.
Figure figure_of(std::vector<double> values) {
  std::ranges::sort(values);
  return {percentile(values, 50), values.front(), values.back(), static_cast<int>(values.size())};
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

bool ArmResult::clean() const {
  return std::ranges::none_of(runs, [](const ArmRun& run) { return run.purpose == Purpose::kMeasure && run.report.failed > 0; });
}

int Comparison::failed() const {
  int sum = 0;
  for (const ArmResult& arm : arms) sum += arm.failed();
  return sum;
}

std::string Comparison::at(double rate) const { return fmt::format("{:.2f} {}/s", rate, unit); }

std::size_t Comparison::requests_a_run() const {
  const ArmResult* arm = first();
  return arm ? static_cast<std::size_t>(arm->measured().front()->report.completed + arm->measured().front()->report.failed) : requests;
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
  return figure_of(std::move(values));
}

bool told_apart(const Figure& a, const Figure& b) {
  if (a.low <= b.high && b.low <= a.high) return false;
  const double least = a.runs > 1 && b.runs > 1 ? kLeastEffect : kLeastEffectOfOne;
  return std::abs(a.median - b.median) >= least * std::min(a.median, b.median);
}

int judge(const ArmResult& arm, const ArmResult& first, const Measure& measure) {
  const auto mine = figure(arm, measure), other = figure(first, measure);
  if (!mine || !other || !arm.clean() || !first.clean() || !told_apart(*mine, *other)) return 0;
  return (mine->median > other->median) == measure.more_is_better ? 1 : -1;
}

std::optional<double> difference(const ArmResult& arm, const ArmResult& first, const Measure& measure) {
  const auto mine = figure(arm, measure), other = figure(first, measure);
  if (!mine || !other || other->median == 0) return std::nullopt;
  return (mine->median - other->median) / other->median;
}

std::optional<BestGoodput> best_goodput(const Comparison& comparison, const ArmResult& arm) {
  const auto was_given = [](const ArmResult& a, double rate) {
    return std::ranges::any_of(a.runs, [&](const ArmRun& r) { return r.purpose != Purpose::kSearch && r.rate == rate; });
  };
  struct AtRate {
    std::vector<double> goodput;
    bool failed = false;
  };
  std::map<double, AtRate> by_rate;
  for (const ArmRun& run : arm.runs) {
    if (run.purpose == Purpose::kSearch || run.rate <= 0 || run.report.goodput < 0) continue;
    if (!std::ranges::all_of(comparison.arms, [&](const ArmResult& a) { return a.measured().empty() || was_given(a, run.rate); })) continue;
    AtRate& at = by_rate[run.rate];
    at.goodput.push_back(run.report.goodput);
    at.failed = at.failed || run.report.failed > 0;
  }
  std::optional<BestGoodput> best;
  for (auto at = by_rate.begin(); at != by_rate.end(); ++at) {
    const Figure f = figure_of(at->second.goodput);
    if (best && at->second.failed != best->failed ? at->second.failed : best && f.median <= best->goodput.median) continue;
    best = {f, at->first, at == by_rate.begin() ? 0 : std::prev(at)->first, std::next(at) == by_rate.end() ? 0 : std::next(at)->first,
            at->second.failed};
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
