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
};
// Sustained: nothing failed, and from a quarter of the arrivals' time to the last arrival the number of open requests grew by at most 5 %
// of the requests that came in that time (by one, where that is less than one). The end of the run, when the last answers are written and
// nobody comes, says nothing of the rate and does not count.
KeptUp kept_up(const std::vector<RequestOutcome>& outcomes, double rate, double duration);

struct SearchOptions {
  double stride = 1.25;        // from the first guess outwards
  double close_enough = 1.12;  // the lowest rate beyond over the highest sustained: then it ends
  int probes_max = 8;
};

// Finds the highest rate that is sustained: all requests at once for a first guess, strides to a bracket, then bisection (by ratio).
class SaturationSearch {
 public:
  explicit SaturationSearch(const SearchOptions& options) : options_(options) {}
  // The rate to try, 0 for all at once; nullopt: it has ended.
  std::optional<double> next() const;
  void on_probe(const KeptUp& probe);

  const std::vector<KeptUp>& probes() const { return probes_; }
  double sustained() const { return low_; }  // the highest rate; 0: none was
  double beyond() const { return high_; }    // the lowest that was not; 0: all were
  // The answer: the highest sustained rate, else what was completed at the lowest one tried.
  double saturation() const;
  bool bracketed() const { return low_ > 0 && high_ > 0 && high_ <= low_ * options_.close_enough; }

 private:
  SearchOptions options_;
  std::vector<KeptUp> probes_;
  double low_ = 0, high_ = 0;
  double completed_at_high_ = 0;
};

enum class Purpose { kSearch, kMeasure, kSweep };

struct Step {
  Purpose purpose{};
  std::size_t arm = 0;
  double rate = 0;     // 0: all at once
  int repeat = 0;      // of kMeasure
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
  static constexpr int kProbesUsual = 5;

  std::optional<Step> search_step();
  void plan_repeats();
  void plan_sweep();
  double seconds_of(std::size_t arm, double rate, std::size_t requests) const;

  const CampaignOptions options_;
  std::vector<SaturationSearch> searches_;
  std::vector<std::string> failures_;
  std::vector<double> capacities_;  // what each completed when it last had too much, requests/s; 0: it never had. For the estimate
  double rate_ = 0;
  bool planned_ = false;
  std::vector<Step> queue_;  // after the search
  std::size_t at_ = 0;
  std::optional<Step> current_, last_;
};

}  // namespace baton::app
