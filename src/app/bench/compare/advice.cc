// The sentence of advice: from medians, and from spreads which say what is no difference.

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "app/bench/compare/result.h"

namespace baton::app {
namespace {

struct Rank {
  const ArmResult* arm;
  Figure figure;
  bool failed;          // requests, in the runs that the figure is of
  BestGoodput goodput;  // of a ranking by goodput
};

void sort(std::vector<Rank>& ranks, bool more_is_better) {
  std::ranges::stable_sort(ranks, [&](const Rank& a, const Rank& b) {
    if (a.failed != b.failed) return b.failed;
    return more_is_better ? a.figure.median > b.figure.median : a.figure.median < b.figure.median;
  });
}

// Best first; arms whose requests failed come last, since what failed took nobody's time.
std::vector<Rank> ranking(const Comparison& c, const Measure& measure) {
  std::vector<Rank> out;
  for (const ArmResult& arm : c.arms)
    if (const auto f = figure(arm, measure)) out.push_back({&arm, *f, !arm.clean(), {}});
  sort(out, measure.more_is_better);
  return out;
}

std::vector<Rank> ranking_by_goodput(const Comparison& c) {
  std::vector<Rank> out;
  for (const ArmResult& arm : c.arms)
    if (const auto best = best_goodput(c, arm)) out.push_back({&arm, best->goodput, best->failed, *best});
  sort(out, true);
  return out;
}

std::vector<Rank> ranking_by_what_decides(const Comparison& c) {
  return c.goodput_ms.empty() ? ranking(c, measure("mean_e2el")) : ranking_by_goodput(c);
}

std::string join(const std::vector<std::string>& names) {
  std::string out;
  for (std::size_t i = 0; i < names.size(); ++i) out += (i == 0 ? "" : i + 1 == names.size() ? " and " : ", ") + names[i];
  return out;
}

// Who is best, with all that are not told apart from it.
std::string leaders(const std::vector<Rank>& ranked) {
  std::vector<std::string> names;
  for (const Rank& r : ranked)
    if (!told_apart(r.figure, ranked.front().figure) && r.failed == ranked.front().failed) names.push_back(r.arm->arm.name);
  return join(names);
}
bool several(const std::string& names) { return names.find(" and ") != std::string::npos; }

std::string percent(double ratio) {
  const double p = 100 * ratio;
  return std::abs(p) < 0.05 ? "0 %" : fmt::format("{:+.1f} %", p);
}

std::string limits(const Comparison& c) {
  std::string out;
  for (const auto& [name, ms] : c.goodput_ms) out += fmt::format("{}{}:{:g}", out.empty() ? "" : " ", name, ms);
  return out;
}

// The rates next to an arm's best, between which its true one lies.
std::string tried_beside(const BestGoodput& best) {
  if (best.below > 0 && best.above > 0) return fmt::format("the rates tried next to it are {:.2f} and {:.2f}", best.below, best.above);
  if (best.below > 0) return fmt::format("no higher rate was tried, {:.2f} is the next lower one", best.below);
  return best.above > 0 ? fmt::format("no lower rate was tried, {:.2f} is the next higher one", best.above) : "no other rate was tried";
}

std::string by_goodput(const Comparison& c) {
  const std::vector<Rank> found = ranking_by_goodput(c);
  if (found.empty()) return "";
  if (found.front().figure.median <= 0) return fmt::format("No arm keeps {} for any request at a rate that was tried. ", limits(c));
  std::string others;
  for (std::size_t i = 1; i < found.size(); ++i)
    others += fmt::format("{}{} {:.2f} at {:.2f}{}", i == 1 ? " (" : ", ", found[i].arm->arm.name, found[i].figure.median,
                          found[i].goodput.rate, found[i].failed ? ", where requests failed" : "");
  const std::string who = leaders(found);
  std::string out =
      fmt::format("Under {}, {} this load best: {:.2f} good requests/s at {}{}; {}. ", limits(c),
                  several(who) ? fmt::format("{} are not told apart and serve", who) : who + " serves", found.front().figure.median,
                  c.at(found.front().goodput.rate), others.empty() ? "" : others + ")", tried_beside(found.front().goodput));
  if (found.front().failed) out += "Requests failed in every arm at all of these rates. ";
  return out;
}

// By the search, which looks twice where chance may decide; at rates that it leaves open, by the repeats.
bool overloaded(const Comparison& c, const ArmResult& arm) {
  const auto runs = arm.measured();
  if (runs.empty() || (arm.sustained > 0 && c.rate <= arm.sustained)) return false;
  if (arm.beyond > 0 && c.rate >= arm.beyond) return true;
  const auto behind = std::ranges::count_if(runs, [](const ArmRun* run) { return !run->kept_up.failed && !run->kept_up.sustained; });
  return 2 * behind > std::ssize(runs);
}

// What these repeats are of: latencies of an arm that does not keep up are as long as the run is.
std::string regime(const Comparison& c) {
  std::vector<std::string> names;
  for (const ArmResult& arm : c.arms)
    if (overloaded(c, arm)) names.push_back(arm.arm.name);
  if (names.empty()) return "";
  return fmt::format(", where {} overloaded and queueing grows with the length of the run,",
                     join(names) + (names.size() > 1 ? " are" : " is"));
}

std::string by_capacity(const Comparison& c) {
  std::string out;
  for (const ArmResult& arm : c.arms) {
    if (arm.sustained <= 0 && arm.beyond <= 0) continue;
    const char* bound = arm.sustained <= 0 ? "less than " : arm.beyond <= 0 ? "at least " : "";
    out += fmt::format("{}{} {}{:.2f}", out.empty() ? "" : ", ", arm.arm.name, bound, arm.sustained > 0 ? arm.sustained : arm.beyond);
  }
  return out.empty() ? "" : fmt::format("Sustained, {}/s: {}. ", c.unit, out);
}

std::string by_latency(const Comparison& c) {
  const Measure& e2el = measure("mean_e2el");
  const auto ranked = ranking(c, e2el);
  std::string others;
  for (std::size_t i = 1; i < ranked.size(); ++i)
    others += fmt::format("{}{} {:.2f} s", i == 1 ? " (" : ", ", ranked[i].arm->arm.name, ranked[i].figure.median / 1e3);
  const std::string who = leaders(ranked);
  return fmt::format("At {}{} {} {} an answer soonest: {:.2f} s from request to last token on average{}. ", c.at(c.rate), regime(c), who,
                     several(who) ? "finish" : "finishes", ranked.front().figure.median / 1e3, others.empty() ? "" : others + ")");
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
    if (!mine || !others || others->median <= 0 || !told_apart(*mine, *others)) continue;
    const double change = (mine->median - others->median) / others->median;
    ((change > 0) == m.more_is_better ? v.better : v.worse).push_back(fmt::format("{} {}", words, percent(change)));
  }
  return v;
}

// The best of the arms with and without disaggregation, by what decides.
std::pair<const Rank*, const Rank*> opponents(const std::vector<Rank>& ranked) {
  const Rank *pd = nullptr, *other = nullptr;
  for (const Rank& r : ranked) {
    const Rank*& place = r.arm->arm.disaggregated ? pd : other;
    if (!place) place = &r;
  }
  return {pd, other};
}

// End-to-end latency of the runs at one rate, the search's left out; nullopt if there are none or requests failed.
std::optional<Figure> latency_at(const ArmResult& arm, double rate) {
  ArmResult at;
  for (const ArmRun& run : arm.runs) {
    if (run.purpose == Purpose::kSearch || run.rate != rate) continue;
    at.runs.emplace_back().report = run.report;
    at.runs.back().purpose = Purpose::kMeasure;
  }
  return at.clean() ? figure(at, measure("mean_e2el")) : std::nullopt;
}

// At which rate one arm takes over from the other, if a sweep shows that.
std::string turn(const Comparison& c, const ArmResult& pd, const ArmResult& other) {
  std::map<double, bool> pd_is_better;  // by rates that tell them apart
  for (const ArmRun& run : pd.runs) {
    const auto mine = latency_at(pd, run.rate), others = latency_at(other, run.rate);
    if (run.rate > 0 && mine && others && told_apart(*mine, *others)) pd_is_better[run.rate] = mine->median < others->median;
  }
  std::string out;
  for (auto at = pd_is_better.begin(); at != pd_is_better.end() && std::next(at) != pd_is_better.end(); ++at) {
    const auto above = std::next(at);
    if (at->second == above->second) continue;
    if (!out.empty()) return "";  // more than once: that is no side of a rate
    const std::string &low = (at->second ? pd : other).arm.name, &high = (at->second ? other : pd).arm.name;
    out = fmt::format(" By end-to-end latency the order turns between {:.2f} and {}: {} is better up to the one, {} from the other on.",
                      at->first, c.at(above->first), low, high);
  }
  return out;
}

std::string on_disaggregation(const Comparison& c) {
  const std::vector<Rank> ranked = ranking_by_what_decides(c);
  const auto [pd, other] = opponents(ranked);
  if (!pd || !other) return "";
  const std::string what = c.goodput_ms.empty() ? "end-to-end latency" : "goodput";
  const bool clean = pd->arm->clean() && other->arm->clean();
  const Verdict v = clean ? compare(*pd->arm, *other->arm) : Verdict();
  std::string details = v.better.empty() ? "" : "better: " + join(v.better);
  if (!v.worse.empty()) details += (details.empty() ? "worse: " : "; worse: ") + join(v.worse);
  const std::string against = fmt::format("against {}, the best arm without it{}", other->arm->arm.name,
                                          details.empty() ? "" : fmt::format(" (at {} {})", c.at(c.rate), details));
  if (pd->failed || other->failed) return fmt::format("Requests failed, so whether disaggregation pays is not said; {}.", against);
  const std::string turns = turn(c, *pd->arm, *other->arm);
  if (!told_apart(pd->figure, other->figure))
    return (v.better.size() <= v.worse.size()
                ? fmt::format("Disaggregation does not pay here: {} is alike {}.", what, against)
                : fmt::format("Disaggregation does not change {} here, but other measures {}.", what, against)) +
           turns;
  const double mine = pd->figure.median, others = other->figure.median;
  return fmt::format("Disaggregation {} here: {} {} {}.", (mine > others) == !c.goodput_ms.empty() ? "pays" : "does not pay", what,
                     others > 0 ? percent((mine - others) / others) : fmt::format("{:.2f}/s instead of none", mine), against) +
         turns;
}

}  // namespace

std::string advice(const Comparison& c) {
  int arms = 0;
  for (const ArmResult& arm : c.arms) arms += !arm.measured().empty();
  if (arms == 0) return "No arm has a run at the rate of the comparison, so there is no advice.";
  std::string out;
  if (!c.goodput_ms.empty()) out = by_goodput(c);
  if (arms > 1) {
    out += by_latency(c) + by_measure(c) + by_capacity(c) + on_disaggregation(c);
  } else {
    out += "Only one arm was measured: there is nothing to compare it with.";
  }
  if (arms > 1 && std::ranges::any_of(c.arms, [](const ArmResult& arm) { return arm.measured().size() == 1; }))
    out += fmt::format(" One run of an arm has no spread: what differs by less than {:.0f} % is not told apart.", 100 * kLeastEffectOfOne);
  while (out.ends_with(' ')) out.pop_back();
  return out;
}

}  // namespace baton::app
