// What the shrinker leaves is what a failure needs, and fails in the same way.

#include "sim/shrink.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/log.h"
#include "sim/run.h"

namespace baton::sim {
namespace {

bool runs_request(const Scenario& s, int number) {
  return number < s.load.requests + s.load.probes && std::ranges::find(s.load.skip, number) == s.load.skip.end();
}

// A swarm scenario with many faults.
Scenario eventful() {
  for (std::uint64_t seed = 1;; ++seed) {
    Scenario s = draw_swarm(seed);
    if (s.faults.size() >= 10) return s;
  }
}

TEST(Shrink, KeepsWhatTheFailureNeeds) {
  const Scenario start = eventful();
  const Fault needed = start.faults[7];
  const auto fails = [&](const Scenario& s) -> std::string {
    const bool there = std::ranges::find(s.faults, needed) != s.faults.end();
    if (there && runs_request(s, 17) && runs_request(s, 42)) return "I4 at 1 us: lost";
    return s.faults.empty() ? "I6 at 2 us: another failure" : "";
  };
  const Shrunk shrunk = shrink(start, fails(start), fails, 1000);
  EXPECT_EQ(shrunk.scenario.faults, std::vector<Fault>{needed});
  int requests = 0;
  for (int n = 0; n < shrunk.scenario.load.requests + shrunk.scenario.load.probes; ++n) requests += runs_request(shrunk.scenario, n);
  EXPECT_EQ(requests, 2);
  EXPECT_EQ(shrunk.scenario.load.requests, 43);
  EXPECT_EQ(shrunk.scenario.load.several_choices, 0);
  EXPECT_EQ(fails(shrunk.scenario), shrunk.failure);
  EXPECT_EQ(failure_kind(shrunk.failure), "I4");
}

TEST(Shrink, StopsWhenItsRunsAreUsedUp) {
  int runs = 0;
  const auto fails = [&](const Scenario&) -> std::string { return ++runs, "I4 at 1 us"; };
  EXPECT_EQ(shrink(eventful(), "I4 at 1 us", fails, 5).runs, 5);
  EXPECT_EQ(runs, 5);
}

// On real runs: damage that no digest sees, one request is enough to show it; and the text of what is left fails again.
TEST(Shrink, AReproductionIsReadBackAndFailsAgain) {
  log::init({.level = "critical", .process = "sim"});
  Scenario start = *find_scenario("steady");
  start.fabric.damaged_unseen_one_in = 3;
  start.load.requests = 30;
  const auto fails = [](const Scenario& s) -> std::string {
    const RunResult r = run(s);
    return r.ok() ? "" : r.failures[0];
  };
  const std::string failure = fails(start);
  ASSERT_FALSE(failure.empty());
  const Shrunk shrunk = shrink(start, failure, fails, 200);
  EXPECT_GE(shrunk.scenario.load.skip.size() + static_cast<std::size_t>(30 - shrunk.scenario.load.requests), 25u);
  const auto read = scenario_from_text(to_text(shrunk.scenario));
  ASSERT_TRUE(read.ok()) << read.status().to_string();
  EXPECT_EQ(fails(*read), shrunk.failure);
}

}  // namespace
}  // namespace baton::sim
