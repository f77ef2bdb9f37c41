// The checks themselves: what must be caught is caught, and what the cluster survives it survives with the right tokens.

#include <gtest/gtest.h>

#include "base/log.h"
#include "sim/run.h"

namespace baton::sim {
namespace {

class Checks : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { log::init({.level = "critical", .process = "sim"}); }
  static Scenario steady() {
    Scenario s = *find_scenario("steady");
    s.no_retries = false;
    return s;
  }
  static std::string first(const RunResult& r) { return r.failures.empty() ? "" : r.failures[0]; }
};

TEST_F(Checks, DamagedKvIsRefusedAndFetchedAgain) {
  Scenario s = steady();
  s.fabric.damaged_one_in = 50;
  const RunResult r = run(s, 1);
  EXPECT_TRUE(r.ok()) << first(r);
  EXPECT_EQ(r.complete, r.requests);
  EXPECT_GT(r.digest_mismatches, 5u);
}

TEST_F(Checks, KvThatIsDamagedUnseenIsNotComputedOn) {
  Scenario s = steady();
  s.fabric.damaged_unseen_one_in = 200;
  const RunResult r = run(s, 1);
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(first(r).substr(0, 3), "I6 ") << first(r);
}

TEST_F(Checks, WhatIsNotOverInTimeIsNoticed) {
  Scenario s = steady();
  s.limit = std::chrono::milliseconds(1);  // the last request has only just come
  const RunResult r = run(s, 1);
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(first(r).substr(0, 9), "liveness ") << first(r);
}

}  // namespace
}  // namespace baton::sim
