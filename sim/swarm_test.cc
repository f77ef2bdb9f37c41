// A thousand fixed seeds, each of a cluster, a load and faults of its own; in two halves, for two cores. And the seeds that have found
// something.

#include <gtest/gtest.h>

#include "sim/run.h"

namespace baton::sim {
namespace {

std::string why(const RunResult& result) {
  std::string text = summary(draw_swarm(result.seed), result);
  for (const auto& failure : result.failures) text += "\n    " + failure;
  return text + "\n    reproduce: baton simulate --seeds " + std::to_string(result.seed) + " --trace";
}

struct Sum {
  std::uint64_t requests = 0, complete = 0, refused = 0, resumed = 0, handoffs = 0, preemptions = 0, queued = 0, digest_mismatches = 0;
  int kills = 0, drains = 0, lost = 0, deadline = 0, cancelled = 0;
  void add(const RunResult& r) {
    requests += static_cast<std::uint64_t>(r.requests);
    complete += static_cast<std::uint64_t>(r.complete);
    refused += static_cast<std::uint64_t>(r.refused);
    resumed += r.resumed;
    handoffs += r.handoffs;
    preemptions += r.preemptions;
    queued += r.queued;
    digest_mismatches += r.digest_mismatches;
    kills += r.kills;
    drains += r.drains;
    lost += r.lost;
    deadline += r.deadline;
    cancelled += r.cancelled;
  }
};

class Swarm : public ::testing::TestWithParam<int> {};

TEST_P(Swarm, HoldsOverSeeds) {
  constexpr std::uint64_t kSeeds = 500;
  const std::uint64_t first = static_cast<std::uint64_t>(GetParam()) * kSeeds + 1;
  Sum sum;
  for (std::uint64_t seed = first; seed < first + kSeeds; ++seed) {
    const RunResult r = run(draw_swarm(seed));
    ASSERT_TRUE(r.ok()) << why(r);
    EXPECT_EQ(r.complete + r.cancelled + r.deadline + r.refused + r.lost, r.requests) << why(r);
    sum.add(r);
  }
  // It is worth something only if it meets what it is about, and if what it meets is survived: retries and resumption, not refusals.
  EXPECT_GT(sum.complete, sum.requests * 7 / 10);
  EXPECT_LT(sum.refused, sum.requests / 20);
  EXPECT_GT(sum.resumed, 300u);
  EXPECT_GT(sum.handoffs, 20'000u);
  EXPECT_GT(sum.preemptions, 50u);
  EXPECT_GT(sum.queued, 3'000u);
  EXPECT_GT(sum.digest_mismatches, 60u);
  EXPECT_GT(sum.kills, 150);
  EXPECT_GT(sum.drains, 50);
  EXPECT_GT(sum.lost, 50);
  EXPECT_GT(sum.deadline, 200);
  EXPECT_GT(sum.cancelled, 3'000);
}

INSTANTIATE_TEST_SUITE_P(Half, Swarm, ::testing::Values(0, 1));

}  // namespace
}  // namespace baton::sim
