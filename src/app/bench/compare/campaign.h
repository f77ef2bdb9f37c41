#pragma once
// Which run of which arm comes next: the search of each arm's saturation, the repeats at one rate, the sweep over rates. Pure: a shell asks
// for a step, carries it out and says how it went.

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "app/bench/report.h"

namespace baton::app {

// How an arm kept up with requests that came at a rate.
struct KeptUp {
  double rate = 0;       // offered; 0: all at once
  double completed = 0;  // requests per second, while they came; of a burst: to the end
  bool sustained = false;
  bool failed = false;  // a request did
  // By how much the mean number of open requests grew, how much growth at a rate that is sustained is borne in any case, and how much
  // chance makes of it (one standard deviation).
  double growth = 0, borne = 0, chance = 0;

  double allowed() const;
  // Chance hardly decides.
  bool clear() const { return failed || growth <= allowed() / 2 || growth >= allowed() * 2; }
};
// Sustained: nothing failed, and the mean number of open requests is not larger late than early: between 65 % of the arrivals' time and the
// last arrival, against between 25 and 60 % of it. Borne are 5 % of the requests that came from the middle of the one to the middle of the
// other (one, where that is less), and what differs by chance where nothing piles up: twice the standard deviation of the difference,
// if requests come at random and each stays as long as those of the first window did (an M/G/inf queue: open requests are Poisson
// distributed, and correlated over the time that a request stays). The end of the run, when the last answers are written and nobody comes,
// says nothing of the rate and does not count. Of the long prompts of `mix`, which come at a rate of their own, only the growth counts.
KeptUp kept_up(const std::vector<RequestOutcome>& outcomes, double rate, double duration);
// What two runs at one rate, with other arrival times, say together.
KeptUp together(const KeptUp& a, const KeptUp& b);

struct SearchOptions {
  double stride = 1.25;        // from the first guess outwards
  double close_enough = 1.12;  // the lowest rate beyond over the highest sustained: then it ends
  int probes_max = 10;
};

// Finds the highest rate that is sustained: all requests at once for a first guess, strides to a bracket, then bisection (by ratio). A run
// whose outcome chance may have decided is repeated once with other arrival times, and the two decide.
class SaturationSearch {
 public:
  explicit SaturationSearch(const SearchOptions& options) : options_(options) {}
  // The rate to try, 0 for all at once; nullopt: it has ended.
  std::optional<double> next() const;
  // Which arrival times to try it with: 0 the usual ones, 1 others.
  int draw() const { return unclear_ ? 1 : 0; }
  void on_probe(const KeptUp& probe);

  const std::vector<KeptUp>& probes() const { return probes_; }
  double sustained() const { return low_; }  // the highest rate; 0: none was
  double beyond() const { return high_; }    // the lowest that was not; 0: all were
  // The answer: the highest sustained rate, else what was completed at the lowest one tried, else of all at once.
  double saturation() const;
  // Which of these it is, of arm `name`: "what tp2 sustains".
  std::string saturation_words(const std::string& name) const;
  bool bracketed() const { return low_ > 0 && high_ > 0 && high_ <= low_ * options_.close_enough; }

 private:
  SearchOptions options_;
  std::vector<KeptUp> probes_;
  std::optional<KeptUp> unclear_;  // waits for its second run
  double low_ = 0, high_ = 0;
  double completed_at_high_ = 0;
};

enum class Purpose { kSearch, kMeasure, kSweep };

struct Step {
  Purpose purpose{};
  std::size_t arm = 0;
  double rate = 0;     // 0: all at once
  int repeat = 0;      // of kMeasure
  int draw = 0;        // of the arrival times: 0 those of all runs, 1 others
  bool fresh = false;  // the arm starts anew
};

struct CampaignOptions {
  std::size_t arms = 0;
  int repeats = 3;
  double rate = 0;  // 0: `overload` times the saturation of the first arm that has one
  double overload = 1.23;
  bool sweep = false;
  std::vector<double> sweep_rates;  // none: kSweepShares of the highest saturation, or of the rate
  SearchOptions search;
};

class Campaign {
 public:
  explicit Campaign(const CampaignOptions& options);

  // The step to carry out now; nullopt: all is done. The same until on_run() or on_failure().
  std::optional<Step> next();
  void on_run(const KeptUp& run);
  // The arm cannot be run: it has no further steps.
  void on_failure(std::string why);

  double rate() const { return rate_; }  // of the repeats; 0: not known yet
  // Whose saturation it was made from; nullopt: it was given, or is not known.
  std::optional<std::size_t> rate_from() const { return rate_from_; }
  // Only where the rate was to be found.
  const SaturationSearch* search(std::size_t arm) const { return options_.rate > 0 ? nullptr : &searches_[arm]; }
  const std::string& failure(std::size_t arm) const { return failures_[arm]; }  // "": none

  // What is left, of runs of so many requests each; `seconds` < 0: no run has told yet how long one takes.
  struct Estimate {
    int runs = 0;
    double seconds = -1;
  };
  Estimate left(std::size_t requests, double seconds_per_start) const;

 private:
  static constexpr double kSweepShares[] = {0.25, 0.5, 0.75, 1.0, 1.25};
  static constexpr int kProbesUsual = 6;

  std::optional<Step> search_step();
  void plan_repeats();
  void plan_sweep();
  double seconds_of(std::size_t arm, double rate, std::size_t requests) const;

  const CampaignOptions options_;
  std::vector<SaturationSearch> searches_;
  std::vector<std::string> failures_;
  std::vector<double> capacities_;  // what each completed when it last had too much, requests/s; 0: it never had. For the estimate
  double rate_ = 0;
  std::optional<std::size_t> rate_from_;
  bool planned_ = false;
  std::vector<Step> queue_;  // after the search
  std::size_t at_ = 0;
  std::optional<Step> current_, last_;
};

}  // namespace baton::app
