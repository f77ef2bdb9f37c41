// Which plots a comparison has, and their points.

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>

#include "app/bench/compare/html.h"

namespace baton::app {
namespace {

constexpr double kLeastPercentile = 5, kMostPercentile = 99.99;

// Percentiles on an axis on which each nine takes as much room as the one before: value 1 / (share above).
double nines(double percentile) { return 1 / (1 - percentile / 100); }

std::vector<Tick> percentile_ticks(double most) {
  std::vector<Tick> out;
  for (const double p : {0.0, 50.0, 90.0, 99.0, 99.9, 99.99})
    if (p <= most + 1e-9) out.push_back({nines(p), p == 0 ? "0" : fmt::format("P{:g}", p)});
  return out;
}

// Values in seconds -> (nines, ms).
std::vector<std::pair<double, double>> quantiles(std::vector<double> seconds) {
  std::vector<std::pair<double, double>> out;
  if (seconds.empty()) return out;
  std::ranges::sort(seconds);
  // Beyond 1 - 1/n a percentile is the largest value again.
  const double most = std::min(kMostPercentile, 100 * (1 - 1 / static_cast<double>(seconds.size() + 1)));
  constexpr int kPoints = 120;
  for (int i = 0; i <= kPoints; ++i) {
    const double x = std::pow(nines(most), static_cast<double>(i) / kPoints), p = 100 * (1 - 1 / x);
    out.emplace_back(x, percentile(seconds, p) * 1e3);
  }
  return out;
}

std::optional<Plot> distribution(const Comparison& c, const char* title, void (*take)(const RequestOutcome&, std::vector<double>&)) {
  Plot plot;
  plot.title = title;
  plot.x = {"percentile", true, 1, std::numeric_limits<double>::quiet_NaN(), {}};
  plot.y.title = "ms";
  plot.y.log = true;
  double most = 1, low = std::numeric_limits<double>::infinity();
  for (std::size_t a = 0; a < c.arms.size(); ++a) {
    std::vector<double> values;
    for (const ArmRun* run : c.arms[a].measured())
      for (const RequestOutcome& o : run->outcomes)
        if (o.ok) take(o, values);
    Series series{c.arms[a].arm.name, static_cast<int>(a % 6), quantiles(std::move(values)), false, false};
    if (series.points.empty()) continue;
    most = std::max(most, series.points.back().first);
    // Tokens that arrive together are no time apart: a log axis down to them would show nothing else.
    const auto after = std::ranges::find_if(series.points, [](const auto& p) { return p.first > nines(kLeastPercentile); });
    low = std::min(low, std::max(after->second, series.points.back().second / 1e4));
    plot.series.push_back(std::move(series));
  }
  if (plot.series.empty()) return std::nullopt;
  plot.x.high = most;
  plot.y.low = low;
  plot.x.ticks = percentile_ticks(100 * (1 - 1 / most));
  return plot;
}

// Gaps between tokens by when they ended: median and P99 of each slice of the run's time, of the arm's repeat in the middle.
std::optional<Plot> itl_over_time(const ArmResult& arm, int colour, double seconds, double low_ms, double high_ms) {
  const auto runs = arm.measured();
  if (runs.empty()) return std::nullopt;
  const ArmRun& run = *runs[runs.size() / 2];
  const int count = std::clamp(static_cast<int>(seconds), 10, 60);
  std::vector<std::vector<double>> slices(static_cast<std::size_t>(count));
  for (const RequestOutcome& o : run.outcomes) {
    double at = o.start + o.ttft;
    for (const double gap : o.itl) {
      at += gap;
      slices[static_cast<std::size_t>(std::clamp(at / seconds * count, 0.0, count - 1.0))].push_back(gap * 1e3);
    }
  }
  Series median{"median", colour, {}, false, false}, p99{"P99", colour, {}, false, true};
  for (int i = 0; i < count; ++i) {
    auto& slice = slices[static_cast<std::size_t>(i)];
    std::ranges::sort(slice);
    const double x = (i + 0.5) * seconds / count, none = std::numeric_limits<double>::quiet_NaN();
    median.points.emplace_back(x, slice.empty() ? none : percentile(slice, 50));
    p99.points.emplace_back(x, slice.empty() ? none : percentile(slice, 99));
  }
  Plot plot;
  plot.title = "ITL over time: " + arm.arm.name;
  plot.x = {"seconds", false, 0, seconds, {}};
  plot.y = {"ms", true, low_ms, high_ms, {}};
  plot.series = {std::move(median), std::move(p99)};
  return plot;
}

// One panel an arm, all with the same axes.
void add_itl_over_time(const Comparison& c, std::vector<Plot>& out) {
  double seconds = 0;
  std::vector<double> gaps;
  for (const ArmResult& arm : c.arms)
    for (const ArmRun* run : arm.measured()) {
      seconds = std::max(seconds, run->report.duration);
      for (const RequestOutcome& o : run->outcomes)
        for (const double gap : o.itl) gaps.push_back(gap * 1e3);
    }
  if (gaps.empty() || seconds <= 0) return;
  std::ranges::sort(gaps);
  const double high = gaps.back() * 1.05, low = std::max(percentile(gaps, kLeastPercentile) / 1.2, high / 1e4);
  for (std::size_t a = 0; a < c.arms.size(); ++a)
    if (auto plot = itl_over_time(c.arms[a], static_cast<int>(a % 6), seconds, low, high)) out.push_back(std::move(*plot));
}

// A value against the offered rate, over all runs; repeats at one rate as their median.
std::optional<Plot> against_rate(const Comparison& c, const char* title, const char* y_title, double (*of)(const ArmRun&)) {
  Plot plot;
  plot.title = title;
  plot.x = {c.unit + "/s offered", false, 0, std::numeric_limits<double>::quiet_NaN(), {}};
  plot.y = {y_title, false, 0, std::numeric_limits<double>::quiet_NaN(), {}};
  for (std::size_t a = 0; a < c.arms.size(); ++a) {
    std::map<double, std::vector<double>> by_rate;
    for (const ArmRun& run : c.arms[a].runs)
      if (run.rate > 0 && run.report.completed > 0 && of(run) >= 0) by_rate[run.rate].push_back(of(run));
    Series series{c.arms[a].arm.name, static_cast<int>(a % 6), {}, true, false};
    for (auto& [rate, values] : by_rate) {
      std::ranges::sort(values);
      series.points.emplace_back(rate, percentile(values, 50));
    }
    if (series.points.empty()) continue;
    plot.series.push_back(std::move(series));
    if (c.arms[a].sustained > 0)
      plot.markers.push_back({c.arms[a].sustained, fmt::format("{:.2f}", c.arms[a].sustained), static_cast<int>(a % 6)});
  }
  // One rate for all is no curve.
  if (std::ranges::none_of(plot.series, [](const Series& s) { return s.points.size() > 1; })) return std::nullopt;
  if (!plot.markers.empty()) plot.title += " (dotted: sustained)";
  return plot;
}

}  // namespace

std::vector<Plot> plots(const Comparison& c) {
  std::vector<Plot> out;
  const auto add = [&](std::optional<Plot> plot) {
    if (plot) out.push_back(std::move(*plot));
  };
  add(distribution(c, "Time to first token", [](const RequestOutcome& o, std::vector<double>& to) { to.push_back(o.ttft); }));
  add(distribution(c, "Time per output token", [](const RequestOutcome& o, std::vector<double>& to) {
    if (o.output_tokens > 1) to.push_back((o.latency - o.ttft) / static_cast<double>(o.output_tokens - 1));
  }));
  add(distribution(c, "Inter-token latency",
                   [](const RequestOutcome& o, std::vector<double>& to) { to.insert(to.end(), o.itl.begin(), o.itl.end()); }));
  add_itl_over_time(c, out);
  add(against_rate(c, "Requests completed", "requests/s", [](const ArmRun& run) { return run.report.request_throughput; }));
  add(against_rate(c, "Goodput", "good requests/s", [](const ArmRun& run) { return run.report.goodput; }));
  add(against_rate(c, "Mean time per output token", "ms", [](const ArmRun& run) { return run.report.ms.at("tpot").mean; }));
  return out;
}

}  // namespace baton::app
