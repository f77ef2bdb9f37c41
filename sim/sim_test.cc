// The scenarios over some tens of seeds, and that a run is a function of its seed.

#include <gtest/gtest.h>

#include <sstream>

#include "base/log.h"
#include "sim/run.h"

namespace baton::sim {
namespace {

class Quiet : public ::testing::Environment {
  void SetUp() override { log::init({.level = "critical", .process = "sim"}); }
};
const auto* const kQuiet = ::testing::AddGlobalTestEnvironment(new Quiet);

constexpr int kSeeds = 20;

std::string why(const Scenario& scenario, const RunResult& result) {
  std::string text = summary(scenario, result);
  for (const auto& failure : result.failures) text += "\n    " + failure;
  return text + "\n    reproduce: baton simulate --scenario " + scenario.name + " --seeds " + std::to_string(result.seed) + " --trace";
}

class ScenarioTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ScenarioTest, HoldsOverSeeds) {
  const Scenario& scenario = *find_scenario(GetParam());
  RunResult all;
  for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const RunResult r = run(scenario, seed);
    ASSERT_TRUE(r.ok()) << why(scenario, r);
    EXPECT_EQ(r.complete + r.cancelled + r.deadline, r.requests) << why(scenario, r);
    all.complete += r.complete;
    all.cancelled += r.cancelled;
    all.queued += r.queued;
    all.resumed += r.resumed;
    all.moved += r.moved;
    all.deadline += r.deadline;
    all.preemptions += r.preemptions;
    all.handoffs += r.handoffs;
    all.prefix_hits += r.prefix_hits;
  }
  // A scenario is worth something only if it meets what it is about.
  EXPECT_GT(all.complete, kSeeds * 18);
  EXPECT_GT(all.prefix_hits, 1000u);
  EXPECT_GE(all.cancelled, scenario.expects_cancel ? 200 : 0);
  EXPECT_GE(all.queued, scenario.expects_queue ? 200u : 0u);
  EXPECT_GE(all.deadline, scenario.expects_deadline ? 60 : 0);
  EXPECT_GE(all.preemptions, scenario.expects_preemption ? 60u : 0u);
  EXPECT_GE(all.resumed, scenario.expects_resume ? 20u : 0u);
  EXPECT_GE(all.moved, scenario.expects_move ? 20u : 0u);
  bool hands_over = false;
  for (const auto& group : scenario.workers) hands_over |= group.role == wire::Role::kDecode;
  EXPECT_EQ(all.handoffs > 0, hands_over);
}

std::vector<std::string> names() {
  std::vector<std::string> out;
  for (const auto& s : scenarios()) out.push_back(s.name);
  return out;
}
INSTANTIATE_TEST_SUITE_P(All, ScenarioTest, ::testing::ValuesIn(names()), [](const auto& info) {
  std::string name = info.param;
  std::erase(name, '-');
  return name;
});

}  // namespace
}  // namespace baton::sim
