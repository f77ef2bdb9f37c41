// A run is a function of (commit, scenario with its seed): twice in a row, and in every build.

#include <gtest/gtest.h>

#include <cstdio>
#include <sstream>

#include "base/log.h"
#include "sim/run.h"
#include "sim/trace.h"

namespace baton::sim {
namespace {

class Determinism : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { log::init({.level = "critical", .process = "sim"}); }
  static void twice(const Scenario& scenario) {
    std::ostringstream first_text, second_text;
    const RunResult first = run(scenario, &first_text), second = run(scenario, &second_text);
    EXPECT_EQ(first.hash, second.hash) << scenario.name;
    EXPECT_EQ(first.events, second.events) << scenario.name;
    EXPECT_TRUE(first_text.str() == second_text.str()) << scenario.name;
    EXPECT_NE(first.hash, run(scenario, scenario.seed + 1).hash) << scenario.name;
  }
  static std::string hash_of(const Scenario& scenario, std::uint64_t seed) {
    char text[20];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(run(scenario, seed).hash));
    return text;
  }
};

TEST_F(Determinism, TheSameSeedGivesTheSameTrace) {
  for (const auto& scenario : scenarios()) twice(scenario);
  for (std::uint64_t seed = 1; seed <= 20; ++seed) twice(draw_swarm(seed));
}

TEST_F(Determinism, WritingTheTraceDoesNotChangeIt) {
  const Scenario& scenario = *find_scenario("steady");
  std::ostringstream text;
  EXPECT_EQ(run(scenario, 3, &text).hash, run(scenario, 3).hash);
  EXPECT_FALSE(text.str().empty());
}

// Release and sanitized builds must agree on these. They change whenever the cluster behaves differently, in a message's bytes even: then
// check that both builds agree on the new ones, and commit them.
TEST_F(Determinism, BuildsAgree) {
  EXPECT_EQ(hash_of(*find_scenario("steady"), 1), "4a9d7ab69656607b");
  EXPECT_EQ(hash_of(*find_scenario("cancelled"), 2), "e4cbffefcf1ecfda");
  std::uint64_t all = 0;
  for (std::uint64_t seed = 1; seed <= 10; ++seed) all = mix(all, run(draw_swarm(seed)).hash);
  EXPECT_EQ(all, 13632855119915489383u) << "of ten swarm seeds";
}

}  // namespace
}  // namespace baton::sim
