// A run is a function of (commit, seed): twice in a row, and in every build.

#include <gtest/gtest.h>

#include <sstream>

#include "base/log.h"
#include "sim/run.h"

namespace baton::sim {
namespace {

class Determinism : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { log::init({.level = "critical", .process = "sim"}); }
};

TEST_F(Determinism, TheSameSeedGivesTheSameTrace) {
  for (const auto& scenario : scenarios()) {
    std::ostringstream first_text, second_text;
    const RunResult first = run(scenario, 7, &first_text), second = run(scenario, 7, &second_text);
    EXPECT_EQ(first.hash, second.hash) << scenario.name;
    EXPECT_EQ(first.events, second.events) << scenario.name;
    EXPECT_EQ(first_text.str(), second_text.str()) << scenario.name;
    EXPECT_NE(first.hash, run(scenario, 8).hash) << scenario.name;
  }
}

TEST_F(Determinism, WritingTheTraceDoesNotChangeIt) {
  const Scenario& scenario = *find_scenario("steady");
  std::ostringstream text;
  EXPECT_EQ(run(scenario, 3, &text).hash, run(scenario, 3).hash);
  EXPECT_FALSE(text.str().empty());
}

// Release and sanitized builds must agree on these. They change whenever the cluster behaves differently, in a message's bytes even: then
// check that both builds agree on the new ones (baton_sim prints them), and commit them.
TEST_F(Determinism, BuildsAgree) {
  EXPECT_EQ(run(*find_scenario("steady"), 1).hash, 0x4ded7e6cc5f1bae2u);
  EXPECT_EQ(run(*find_scenario("cancelled"), 2).hash, 0x24582e8bd704c1b8u);
}

}  // namespace
}  // namespace baton::sim
