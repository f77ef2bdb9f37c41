#include "app/bench/arrivals.h"

#include <cmath>

#include "base/rng.h"

namespace baton::app {
namespace {

constexpr std::uint64_t kStream = 4;

double normal(Rng& rng) {
  const double u = 1.0 - rng.uniform(), v = rng.uniform();
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * v);
}

// Gamma(shape, 1) after Marsaglia and Tsang, "A simple method for generating gamma variables" (2000).
double gamma(Rng& rng, double shape) {
  if (shape < 1) return gamma(rng, shape + 1) * std::pow(1.0 - rng.uniform(), 1 / shape);
  const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = normal(rng), t = 1 + c * x;
    if (t <= 0) continue;
    const double v = t * t * t, u = 1.0 - rng.uniform();
    if (std::log(u) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
  }
}

// Of mean 1.
double gap(Rng& rng, double burstiness) { return std::isinf(burstiness) ? 1.0 : gamma(rng, burstiness) / burstiness; }

}  // namespace

std::vector<double> arrival_times(std::size_t n, double rate, double burstiness, std::uint64_t seed, ArrivalForm form) {
  std::vector<double> times(n, 0.0);
  if (rate <= 0 || n == 0) return times;
  Rng rng(seed, kStream);
  double sum = 0;
  if (form == ArrivalForm::kV073) {
    for (std::size_t i = 1; i < n; ++i) times[i] = sum += gap(rng, burstiness) / rate;
    return times;
  }
  for (double& t : times) t = sum += gap(rng, burstiness);
  const double scale = static_cast<double>(n) / rate / sum;
  for (double& t : times) t *= scale;
  return times;
}

double ramp_up_rate(const RampUp& ramp, std::size_t i, std::size_t n) {
  const double progress = n > 1 ? static_cast<double>(i) / static_cast<double>(n - 1) : 0.0;
  if (ramp.exponential) return ramp.start_rps * std::pow(ramp.end_rps / ramp.start_rps, progress);
  return ramp.start_rps + (ramp.end_rps - ramp.start_rps) * progress;
}

std::vector<double> ramp_up_times(std::size_t n, const RampUp& ramp, double burstiness, std::uint64_t seed) {
  Rng rng(seed, kStream);
  std::vector<double> times(n);
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) times[i] = sum += gap(rng, burstiness) / ramp_up_rate(ramp, i, n);
  return times;
}

std::vector<RateChange> rate_changes(const RampUp& ramp, const std::vector<double>& times) {
  auto rps = static_cast<std::int64_t>(ramp.start_rps);
  std::vector<RateChange> changes = {{rps, 0.0}};
  for (std::size_t i = 0; i < times.size(); ++i)
    for (const double rate = ramp_up_rate(ramp, i, times.size()); static_cast<double>(rps + 1) <= rate;)
      changes.push_back({++rps, times[i]});
  return changes;
}

}  // namespace baton::app
