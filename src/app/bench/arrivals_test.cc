#include "app/bench/arrivals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "app/bench/load.h"

namespace baton::app {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Gaps {
  double mean = 0, cv = 0;
};
Gaps gaps_of(const std::vector<double>& times) {
  std::vector<double> gaps(times.size());
  std::adjacent_difference(times.begin(), times.end(), gaps.begin());
  gaps.erase(gaps.begin());
  const auto n = static_cast<double>(gaps.size());
  Gaps out;
  out.mean = std::accumulate(gaps.begin(), gaps.end(), 0.0) / n;
  double square = 0;
  for (const double g : gaps) square += (g - out.mean) * (g - out.mean);
  out.cv = std::sqrt(square / n) / out.mean;
  return out;
}

TEST(Arrivals, EndAtTheRateAndAreRepeatable) {
  for (const double burstiness : {0.5, 1.0, 4.0, kInfinity}) {
    const auto times = arrival_times(400, 2.0, burstiness, 7);
    EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
    EXPECT_NEAR(times.back(), 200.0, 1e-9);
    EXPECT_GT(times.front(), 0) << "the first one waits a gap, too";
    EXPECT_EQ(times, arrival_times(400, 2.0, burstiness, 7));
    EXPECT_TRUE(times != arrival_times(400, 2.0, burstiness, 8) || burstiness == kInfinity);
  }
  EXPECT_EQ(arrival_times(3, 0, 1, 0), std::vector<double>(3, 0.0));
  EXPECT_TRUE(arrival_times(0, 2, 1, 0).empty());
}

// A gamma distribution of shape b and mean 1/rate has the coefficient of variation 1/sqrt(b). The bound is five standard errors of an
// estimate of the mean from n gaps (cv / sqrt(n)); the estimate of the cv is as good within a factor of 4 for these shapes.
TEST(Arrivals, GapsHaveTheMeanAndTheVariationOfTheirDistribution) {
  constexpr std::size_t n = 40000;
  for (const double burstiness : {0.25, 1.0, 4.0, 100.0}) {
    const double cv = 1 / std::sqrt(burstiness), error = 5 * cv / std::sqrt(n);
    for (const ArrivalForm form : {ArrivalForm::kRescaled, ArrivalForm::kV073}) {
      const Gaps gaps = gaps_of(arrival_times(n, 5.0, burstiness, 11, form));
      EXPECT_NEAR(gaps.mean, 0.2, 0.2 * error) << burstiness;
      EXPECT_NEAR(gaps.cv, cv, cv * 4 * error) << burstiness;
    }
  }
  EXPECT_NEAR(gaps_of(arrival_times(100, 5.0, kInfinity, 1)).cv, 0, 1e-9);
}

TEST(Arrivals, TheOldFormStartsAtZeroAndIsNotRescaled) {
  const auto old = arrival_times(200, 2.0, 1.0, 3, ArrivalForm::kV073);
  EXPECT_EQ(old.front(), 0);
  EXPECT_GT(std::abs(old.back() - 100.0), 1e-3);
  EXPECT_THAT(arrival_times(4, 2.0, kInfinity, 3, ArrivalForm::kV073), testing::ElementsAre(0, 0.5, 1.0, 1.5));
  EXPECT_THAT(arrival_times(4, 2.0, kInfinity, 3), testing::ElementsAre(0.5, 1.0, 1.5, 2.0));
}

TEST(Arrivals, ARampRisesByTheSameStepOrTheSameFactor) {
  const RampUp linear{false, 1, 5}, exponential{true, 1, 16};
  EXPECT_DOUBLE_EQ(ramp_up_rate(linear, 0, 5), 1);
  EXPECT_DOUBLE_EQ(ramp_up_rate(linear, 1, 5), 2);
  EXPECT_DOUBLE_EQ(ramp_up_rate(linear, 4, 5), 5);
  EXPECT_DOUBLE_EQ(ramp_up_rate(exponential, 1, 5), 2);
  EXPECT_DOUBLE_EQ(ramp_up_rate(exponential, 3, 5), 8);
  EXPECT_DOUBLE_EQ(ramp_up_rate(linear, 0, 1), 1) << "a single request has no way to go";
  // Constant gaps: 1/1 + 1/2 + 1/3 + 1/4 + 1/5.
  EXPECT_THAT(ramp_up_times(5, linear, kInfinity, 0),
              testing::Pointwise(testing::DoubleNear(1e-12), {1.0, 1.5, 11. / 6, 25. / 12, 137. / 60}));
  // Drawn gaps: scaled by the rate in force they have mean 1 and the variation of their shape.
  constexpr std::size_t n = 40000;
  const std::vector<double> times = ramp_up_times(n, linear, 4.0, 5);
  std::vector<double> scaled(n);
  double sum = 0, last = 0;
  for (std::size_t i = 0; i < n; ++i) {
    scaled[i] = sum += (times[i] - last) * ramp_up_rate(linear, i, n);
    last = times[i];
  }
  EXPECT_NEAR(gaps_of(scaled).mean, 1.0, 0.0125);
  EXPECT_NEAR(gaps_of(scaled).cv, 0.5, 0.025);
}

TEST(Arrivals, RateChangesNameEachWholeRateOnce) {
  const RampUp ramp{false, 1, 5};
  const auto changes = rate_changes(ramp, {0.1, 0.2, 0.3});  // 1, 3, 5 requests/s
  std::vector<std::pair<std::int64_t, double>> seen;
  for (const RateChange& c : changes) seen.emplace_back(c.rps, c.at_s);
  EXPECT_THAT(seen, testing::ElementsAre(testing::Pair(1, 0.0), testing::Pair(2, 0.2), testing::Pair(3, 0.2), testing::Pair(4, 0.3),
                                         testing::Pair(5, 0.3)));
}

TEST(Arrivals, ATraceKeepsItsTimesUnlessARateIsGiven) {
  std::vector<BenchRequest> requests(3);
  for (int i = 0; i < 3; ++i) requests[static_cast<std::size_t>(i)].arrival_s = 2.0 * i;
  LoadOptions options;
  EXPECT_THAT(planned_times(requests, options), testing::ElementsAre(0, 2, 4));
  options.request_rate = 10;
  options.burstiness = kInfinity;
  EXPECT_THAT(planned_times(requests, options), testing::Pointwise(testing::DoubleNear(1e-12), {0.1, 0.2, 0.3}));
  options.arrival = ArrivalForm::kV073;
  EXPECT_THAT(planned_times(requests, options), testing::Pointwise(testing::DoubleNear(1e-12), {0.0, 0.1, 0.2}));
  options.ramp_up = RampUp{false, 1, 1};
  EXPECT_THAT(planned_times(requests, options), testing::ElementsAre(1, 2, 3));
  EXPECT_THAT(planned_times(std::vector<BenchRequest>(2), LoadOptions{}), testing::ElementsAre(0, 0)) << "no times: all at once";
}

}  // namespace
}  // namespace baton::app
