// The sentence of advice: from medians, and from spreads which say what is no difference.

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>

#include "app/bench/compare/result.h"

namespace baton::app {
namespace {

struct Rank {
  const ArmResult* arm;
  Figure figure;
};

// Best first; arms whose requests failed come last, since what failed took nobody's time.
std::vector<Rank> ranking(const Comparison& c, const Measure& measure) {
  std::vector<Rank> out;
  for (const ArmResult& arm : c.arms)
    if (const auto f = figure(arm, measure)) out.push_back({&arm, *f});
  std::ranges::stable_sort(out, [&](const Rank& a, const Rank& b) {
    const bool a_failed = a.arm->failed() > 0, b_failed = b.arm->failed() > 0;
    if (a_failed != b_failed) return b_failed;
    return measure.more_is_better ? a.figure.median > b.figure.median : a.figure.median < b.figure.median;
  });
  return out;
}

// Their repeats overlap: no run tells them apart.
bool alike(const Figure& a, const Figure& b) { return a.low <= b.high && b.low <= a.high; }

std::string join(const std::vector<std::string>& names) {
  std::string out;
  for (std::size_t i = 0; i < names.size(); ++i) out += (i == 0 ? "" : i + 1 == names.size() ? " and " : ", ") + names[i];
  return out;
}

// Who is best, with all that are alike.
std::string leaders(const std::vector<Rank>& ranked) {
  std::vector<std::string> names;
  for (const Rank& r : ranked)
    if (alike(r.figure, ranked.front().figure) && r.arm->failed() == ranked.front().arm->failed()) names.push_back(r.arm->arm.name);
  return join(names);
}

std::string percent(double ratio) {
  const double p = 100 * ratio;
  return std::abs(p) < 0.05 ? "0 %" : fmt::format("{:+.1f} %", p);
}

std::string limits(const Comparison& c) {
  std::string out;
  for (const auto& [name, ms] : c.goodput_ms) out += fmt::format("{}{}:{:g}", out.empty() ? "" : " ", name, ms);
  return out;
}

std::string by_goodput(const Comparison& c) {
  std::vector<std::pair<const ArmResult*, std::pair<double, double>>> found;
  for (const ArmResult& arm : c.arms)
    if (const auto best = best_goodput(c, arm)) found.emplace_back(&arm, *best);
  if (found.empty()) return "";
  std::ranges::stable_sort(found, [](const auto& a, const auto& b) { return a.second.first > b.second.first; });
  const auto& [winner, best] = found.front();
  if (best.first <= 0) return fmt::format("No arm keeps {} for any request at a rate that was tried. ", limits(c));
  std::string others;
  for (std::size_t i = 1; i < found.size(); ++i)
    others += fmt::format("{}{} {:.2f}", i == 1 ? " (" : ", ", found[i].first->arm.name, found[i].second.first);
  return fmt::format("Under {}, {} serves this load best: {:.2f} good requests/s at {:.2f} requests/s{}. ", limits(c), winner->arm.name,
                     best.first, best.second, others.empty() ? "" : others + ")");
}

std::string by_latency(const Comparison& c) {
  const Measure& e2el = measure("mean_e2el");
  const auto ranked = ranking(c, e2el);
  std::string others;
  for (std::size_t i = 1; i < ranked.size(); ++i)
    others += fmt::format("{}{} {:.2f} s", i == 1 ? " (" : ", ", ranked[i].arm->arm.name, ranked[i].figure.median / 1e3);
  const std::string who = leaders(ranked);
  return fmt::format("At {:.2f} requests/s {} {} an answer soonest: {:.2f} s from request to last token on average{}. ", c.rate, who,
                     who.find(" and ") == std::string::npos ? "finishes" : "finish", ranked.front().figure.median / 1e3,
                     others.empty() ? "" : others + ")");
}

std::string by_measure(const Comparison& c) {
  constexpr std::pair<const char*, const char*> kParts[] = {{"mean_ttft", "first token soonest"},
                                                            {"mean_tpot", "lowest TPOT"},
                                                            {"p99_itl", "lowest P99 ITL"},
                                                            {"request_throughput", "most requests/s"}};
  std::string out;
  for (const auto& [key, words] : kParts) {
    const auto ranked = ranking(c, measure(key));
    if (ranked.size() < 2) continue;
    out += fmt::format("{}{}: {}", out.empty() ? "" : "; ", words, leaders(ranked));
  }
  if (!out.empty()) out[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(out[0])));
  return out.empty() ? "" : out + ". ";
}

struct Verdict {
  std::vector<std::string> better, worse;
};

Verdict compare(const ArmResult& pd, const ArmResult& other) {
  constexpr std::pair<const char*, const char*> kParts[] = {{"mean_e2el", "end-to-end latency"},  {"mean_ttft", "mean TTFT"},
                                                            {"mean_tpot", "mean TPOT"},           {"p99_itl", "P99 ITL"},
                                                            {"request_throughput", "requests/s"}, {"goodput", "goodput"}};
  Verdict v;
  for (const auto& [key, words] : kParts) {
    const Measure& m = measure(key);
    const auto mine = figure(pd, m), others = figure(other, m);
    if (!mine || !others || others->median <= 0 || alike(*mine, *others)) continue;
    const double change = (mine->median - others->median) / others->median;
    ((change > 0) == m.more_is_better ? v.better : v.worse).push_back(fmt::format("{} {}", words, percent(change)));
  }
  return v;
}

// What decides between two arms, and whether it tells them apart.
struct Decision {
  double mine = 0, others = 0;
  bool alike = false, better = false;
};

Decision decide(const Comparison& c, const ArmResult& pd, const ArmResult& other) {
  if (!c.goodput_ms.empty()) {
    constexpr double kAlike = 0.03;  // a rate has one run in the sweep: there is no spread to go by
    const double mine = best_goodput(c, pd)->first, others = best_goodput(c, other)->first;
    return {mine, others, std::abs(mine - others) <= kAlike * std::max(mine, others), mine > others};
  }
  const Measure& e2el = measure("mean_e2el");
  const Figure mine = *figure(pd, e2el), others = *figure(other, e2el);
  return {mine.median, others.median, alike(mine, others), mine.median < others.median};
}

// The best of the arms with and without disaggregation, by what decides.
std::pair<const ArmResult*, const ArmResult*> opponents(const Comparison& c) {
  const ArmResult *pd = nullptr, *other = nullptr;
  for (const Rank& r : ranking(c, measure("mean_e2el"))) {
    const ArmResult*& place = r.arm->arm.disaggregated ? pd : other;
    if (!place || (!c.goodput_ms.empty() && best_goodput(c, *r.arm)->first > best_goodput(c, *place)->first)) place = r.arm;
  }
  return {pd, other};
}

std::string on_disaggregation(const Comparison& c) {
  const auto [pd, other] = opponents(c);
  if (!pd || !other) return "";
  const std::string what = c.goodput_ms.empty() ? "end-to-end latency" : "goodput";
  const Verdict v = compare(*pd, *other);
  std::string details = v.better.empty() ? "" : "better: " + join(v.better);
  if (!v.worse.empty()) details += (details.empty() ? "worse: " : "; worse: ") + join(v.worse);
  const std::string against = fmt::format("against {}, the best arm without it{}", other->arm.name,
                                          details.empty() ? "" : fmt::format(" (at {:.2f} requests/s {})", c.rate, details));
  if (pd->failed() > 0 || other->failed() > 0)
    return fmt::format("Requests failed, so whether disaggregation pays is not said; {}.", against);
  const Decision d = decide(c, *pd, *other);
  if (d.alike) {
    return v.better.size() <= v.worse.size() ? fmt::format("Disaggregation does not pay here: {} is alike {}.", what, against)
                                             : fmt::format("Disaggregation does not change {} here, but other measures {}.", what, against);
  }
  return fmt::format("Disaggregation {} here: {} {} {}.", d.better ? "pays" : "does not pay", what,
                     d.others > 0 ? percent((d.mine - d.others) / d.others) : fmt::format("{:.2f}/s instead of none", d.mine), against);
}

}  // namespace

std::string advice(const Comparison& c) {
  int arms = 0;
  for (const ArmResult& arm : c.arms) arms += !arm.measured().empty();
  if (arms == 0) return "No arm has a run at the rate of the comparison, so there is no advice.";
  std::string out;
  if (!c.goodput_ms.empty()) out = by_goodput(c);
  if (arms > 1) {
    out += by_latency(c) + by_measure(c) + on_disaggregation(c);
  } else {
    out += "Only one arm was measured: there is nothing to compare it with.";
  }
  while (out.ends_with(' ')) out.pop_back();
  return out;
}

}  // namespace baton::app
