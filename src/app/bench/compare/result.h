#pragma once
// What a comparison found: the runs of each arm, medians over repeats with their spread, differences against the first arm, and the
// sentence of advice. Pure.

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "app/bench/compare/arms.h"
#include "app/bench/compare/campaign.h"
#include "app/bench/report.h"

namespace baton::app {

// One run of all requests on one arm.
struct ArmRun {
  Purpose purpose{};
  double rate = 0;  // offered; 0: all at once
  int repeat = 0;
  KeptUp kept_up;
  Report report;                          // with percentiles kComparePercentiles
  std::map<std::string, Report> by_kind;  // where the dataset has several kinds of requests
  std::vector<RequestOutcome> outcomes;
};
inline constexpr double kComparePercentiles[] = {90, 99};
inline constexpr std::size_t kP99 = 1;  // its place among them

ArmRun make_run(const Step& step, std::vector<RequestOutcome> outcomes, double duration, const std::map<std::string, double>& goodput_ms);

struct ArmResult {
  Arm arm;
  std::string command;               // that serves it
  std::string failure;               // why it has no, or no further, runs
  double sustained = 0, beyond = 0;  // of the search: the highest rate sustained, the lowest that was not; 0: none
  double saturation = 0;             // 0: it was not looked for
  bool bracketed = false;
  std::vector<ArmRun> runs;  // in the order made

  // Of the repeats.
  std::vector<const ArmRun*> measured() const;
  int failed() const;  // requests, in all runs
  bool clean() const;  // no request of the repeats failed
};

struct Machine {
  std::string cpu, isa, kernel;
  int cores = 0;
  double memory_bytes = 0;
  double load = 0;  // load average over a minute, before the first run
};

struct Comparison {
  std::string model, command, version, commit, date;
  std::string dataset;  // and its parameters, in words
  std::uint64_t seed = 0;
  std::string unit = "requests";  // what rates count: of mix its chats, beside which long prompts come by the clock
  std::size_t requests = 0;       // of that unit, in a run
  int devices = 0, repeats = 0;
  std::string cores;
  Machine machine;
  std::map<std::string, double> goodput_ms;
  double rate = 0;        // of the repeats; 0: it did not come to them
  double overload = 0;    // over `rate_from`; 0: the rate was given
  std::string rate_from;  // "what tp2 sustains"
  std::vector<ArmResult> arms;
  std::vector<ArmPlan::LeftOut> left_out;
  std::vector<std::string> notes;  // what a reader must know before the figures: interrupted, a machine that is not idle
  double seconds = 0;
  bool finished = false;  // all steps were carried out, or their arm failed

  int failed() const;
  std::string at(double rate) const;  // "2.00 requests/s"
  // All requests of a repeat, long prompts included; before there is one, `requests`.
  std::size_t requests_a_run() const;
  // The arm that differences are against: the first that has repeats; nullptr: none has.
  const ArmResult* first() const;
};

// A column of the table.
struct Measure {
  const char *key, *group, *title, *unit;
  bool more_is_better;
  double (*of)(const Report&);
};
// The reference's columns, in its order.
const std::vector<Measure>& measures();
const Measure& measure(const std::string& key);  // also "mean_e2el" and "goodput"

struct Figure {
  double median = 0, low = 0, high = 0;
  int runs = 0;
  double spread() const { return median > 0 ? (high - low) / median : 0; }
};
std::optional<Figure> figure(const ArmResult& arm, const Measure& measure, const std::string& kind = "");
// Whether runs tell the two apart: the ranges of their repeats do not overlap, and the medians differ by at least kLeastEffect of the
// smaller one; by kLeastEffectOfOne where one of them has a single run, which tells nothing of its spread.
bool told_apart(const Figure& a, const Figure& b);
inline constexpr double kLeastEffect = 0.03, kLeastEffectOfOne = 0.10;
// +1: `arm` is better than `first`; -1: worse; 0: they are not told apart, or requests of one of them failed.
int judge(const ArmResult& arm, const ArmResult& first, const Measure& measure);
// (arm - first) / first; nullopt where one of the two has none.
std::optional<double> difference(const ArmResult& arm, const ArmResult& first, const Measure& measure);

// The most good requests per second that an arm had at a rate that all arms with repeats were given.
struct BestGoodput {
  Figure goodput;
  double rate = 0;
  double below = 0, above = 0;  // the rates tried next to it; 0: none
  bool failed = false;          // requests failed at that rate, as they did at every other
};
// Of the rates at which nothing failed, if there are any; nullopt without limits or runs.
std::optional<BestGoodput> best_goodput(const Comparison& comparison, const ArmResult& arm);

// What forbids to rely on an arm's saturation: runs that are short beside an answer, since an arm is never full in them; "" if nothing
// does.
std::string too_short(const ArmResult& arm, std::size_t requests);

// Which arm serves this load best, by what, and whether disaggregation pays, by how much.
std::string advice(const Comparison& comparison);

}  // namespace baton::app
