#pragma once
// When the requests of a benchmark leave: gaps from a gamma distribution around a rate, constant or rising. Pure; the same seed gives the
// same times.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace baton::app {

enum class ArrivalForm {
  kRescaled,  // vLLM's today: all gaps first, then scaled so that the last request leaves at exactly n / rate; the first waits a gap, too
  kV073,      // vLLM 0.7.3's: the first leaves at 0, then one gap after each; the total is as the gaps fall
};

// Seconds from the begin, ascending. A gap has mean 1 / rate and coefficient of variation 1 / sqrt(burstiness); infinite burstiness: all
// equal. rate 0: all at 0.
std::vector<double> arrival_times(std::size_t n, double rate, double burstiness, std::uint64_t seed,
                                  ArrivalForm form = ArrivalForm::kRescaled);

// A rate that rises from the first request to the last, by as much (linear) or by the same factor (exponential) with each.
struct RampUp {
  bool exponential = false;
  double start_rps = 0, end_rps = 0;  // 0 < start <= end
};
// Requests/s in force before request `i` of `n`.
double ramp_up_rate(const RampUp& ramp, std::size_t i, std::size_t n);
// As arrival_times, but each gap has the mean 1 / ramp_up_rate; not rescaled.
std::vector<double> ramp_up_times(std::size_t n, const RampUp& ramp, double burstiness, std::uint64_t seed);

// When each whole number of requests/s was first in force, the start's included: vLLM's rps_change_events.
struct RateChange {
  std::int64_t rps = 0;
  double at_s = 0;
};
std::vector<RateChange> rate_changes(const RampUp& ramp, const std::vector<double>& times);

}  // namespace baton::app
