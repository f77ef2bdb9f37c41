// The checks themselves: what must be caught is caught, and what the cluster survives it survives with the right tokens. What needs a whole
// cluster to go wrong is planted in a run, the rest in books and legs.

#include <gtest/gtest.h>

#include "base/log.h"
#include "sim/checks.h"
#include "sim/leg_audit.h"
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

// A cluster that the gateway cannot reach when it should be ready.
TEST_F(Checks, I20AGatewayThatDoesNotLearnItsWorkers) {
  Scenario s = steady();
  s.faults.push_back(
      {.kind = Fault::Kind::kCut, .at = -std::chrono::seconds(1), .lasts = std::chrono::seconds(2), .host = "gateway", .to = "*"});
  const RunResult r = run(s, 1);
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(first(r).substr(0, 4), "I20 ") << first(r);
}

// ---------------------------------------------------------------------------------------------------------------- books

class BooksTest : public ::testing::Test {
 protected:
  BooksTest() {
    books_.name = "w0";
    books_.blocks_total = 10;
    books_.blocks_free = 5;
    books_.blocks_cached = 3;
    books_.blocks_held = 2;
    books_.blocks_available = 8;
    books_.legs = 2;
    books_.prefill_legs = 1;
    books_.handoffs = books_.handoff_legs = 1;
    books_.leases = 1;
    books_.engine.requests = 2;
    books_.clock = now_;
  }
  // As they are now, and as they still are later.
  void look_for(Duration time) {
    for (const Duration at : {Duration(0), time}) {
      WorkerBooks b = books_;
      b.clock += at;
      watch_.look(now_ + at, b);
    }
  }
  void believe_for(Duration time, bool gateway_frozen = false) {
    for (const Duration at : {Duration(0), time}) watch_.look(now_ + at, belief_, gateway_frozen);
  }
  std::string failed() const { return failures_.any() ? failures_.messages()[0].substr(0, failures_.messages()[0].find(' ')) : ""; }

  const TimePoint now_{std::chrono::hours(1)};
  WorkerBooks books_;
  Belief belief_{.worker = "w0", .alive = true, .legs = 1, .believed = Incarnation(1), .living = Incarnation(1)};
  Failures failures_;
  Watch watch_{failures_};
};

TEST_F(BooksTest, WhatBalancesPasses) {
  check_turn(now_, books_, failures_);
  books_.next_deadline = now_ + std::chrono::minutes(1);
  books_.engine.running = 1;
  books_.stepping = true;
  look_for(std::chrono::seconds(30));
  believe_for(std::chrono::hours(1));
  EXPECT_EQ(failed(), "");
}
TEST_F(BooksTest, I3AHoldPastItsDeadline) {
  books_.next_deadline = now_ - Duration(1);
  look_for(std::chrono::milliseconds(900));
  EXPECT_EQ(failed(), "") << "its timer may be about to run";
  look_for(std::chrono::milliseconds(1001));
  EXPECT_EQ(failed(), "I3");
}
TEST_F(BooksTest, AStoppedProcessIsLateForNothing) {
  books_.next_deadline = now_ - Duration(1);
  books_.frozen = true;
  look_for(std::chrono::minutes(1));
  EXPECT_EQ(failed(), "");
}
TEST_F(BooksTest, I4ABlockIsLost) {
  --books_.blocks_free;
  check_turn(now_, books_, failures_);
  EXPECT_EQ(failed(), "I4");
}
TEST_F(BooksTest, I9ARequestOfNobody) {
  books_.engine.requests = 5;
  check_turn(now_, books_, failures_);
  EXPECT_EQ(failed(), "I9");
}
TEST_F(BooksTest, I9AHandoffForALegThatIsClosed) {
  books_.handoff_legs = 2;
  check_turn(now_, books_, failures_);
  EXPECT_EQ(failed(), "I9");
}
TEST_F(BooksTest, I23MoreIsPromisedThanThereIs) {
  books_.engine.blocks_reserved = 9;
  check_turn(now_, books_, failures_);
  EXPECT_EQ(failed(), "I23");
}
TEST_F(BooksTest, I24WorkWithoutSteps) {
  books_.engine.running = 1;
  look_for(std::chrono::milliseconds(1001));
  EXPECT_EQ(failed(), "I24");
}
TEST_F(BooksTest, I24OnlyWaiting) {
  books_.engine.waiting = books_.engine.requests;
  look_for(std::chrono::milliseconds(1001));
  EXPECT_EQ(failed(), "I24");
}
TEST_F(BooksTest, I24UnclaimedKvKeepsAPromptWaiting) {
  books_.engine.waiting = 1;
  books_.retained = 1;
  look_for(std::chrono::milliseconds(1001));
  EXPECT_EQ(failed(), "I24");
}
TEST_F(BooksTest, I21AnIncarnationOfThePast) {
  belief_.living = Incarnation(2);
  believe_for(std::chrono::seconds(11), /*gateway_frozen=*/true);
  EXPECT_EQ(failed(), "");
  believe_for(std::chrono::seconds(11));
  EXPECT_EQ(failed(), "I21");
}
TEST_F(BooksTest, I31ALostWorkerKeepsItsLegs) {
  belief_.lost = true;
  believe_for(std::chrono::milliseconds(200));
  EXPECT_EQ(failed(), "I31");
}

// ---------------------------------------------------------------------------------------------------------------- legs

class LegsTest : public ::testing::Test {
 protected:
  // Answers nothing by itself.
  struct Wire final : net::HttpClient {
    struct Call final : net::HttpCall {
      void cancel() override {}
    };
    std::unique_ptr<net::HttpCall> call(net::HttpClientRequest, net::HttpClientCallbacks callbacks) override {
      last = std::move(callbacks);
      return std::make_unique<Call>();
    }
    net::HttpClientCallbacks last;
  };
  LegsTest() { request_.id = "r1", request_.ids = {1, 2, 3}, request_.n_prompt = 3, request_.timeout = std::chrono::seconds(5); }

  std::unique_ptr<net::HttpCall> send(const std::string& target, std::string body) {
    net::HttpClientRequest http;
    http.host = "d0";
    http.target = target;
    http.body = std::move(body);
    return audit_.call(std::move(http), {[](int, const net::Headers&) {}, [](std::string_view) {}, [](Status) {}});
  }
  std::unique_ptr<net::HttpCall> decode() { return send("/internal/decode", wire::to_json(wire::DecodeLeg{request_, Attempt(1), false})); }
  void prefill(std::uint32_t attempt, HoldId claim = {}) {
    const wire::PrefillLeg leg{request_, Attempt(attempt), LeaseId(1), claim, "d0", "d0", 1, Incarnation(1)};
    (void)send("/internal/prefill", wire::to_json(leg));
    wire_.last.on_headers(200, {});
  }
  // A leg that streams on a worker that drains.
  std::unique_ptr<net::HttpCall> draining_leg() {
    auto leg = decode();
    const std::string said =
        wire::to_json(wire::LegEvent(wire::Committed{Attempt(1), {}})) + "\n" + wire::to_json(wire::LegEvent(wire::Draining{}));
    wire_.last.on_data(said.substr(0, 40));
    wire_.last.on_data(said.substr(40));
    worker_.status.draining = true;
    return leg;
  }
  std::string failed() {
    while (queue_.run_one()) {
    }
    return failures_.any() ? failures_.messages()[0].substr(0, failures_.messages()[0].find(' ')) : "";
  }

  EventQueue queue_;
  Host host_{queue_, "gateway"};
  Wire wire_;
  Failures failures_;
  gateway::Worker worker_{
      .config = {}, .liveness = gateway::Liveness::kAlive, .problem = {}, .status = {}, .prefixes = gateway::PrefixIndex(16)};
  LegAudit audit_{host_, wire_, [this](const std::string&) { return &worker_; }, failures_};
  wire::GenerateRequest request_;
};

TEST_F(LegsTest, I11ALegThatMayLastLongerThanItsRequest) {
  const auto first = decode();
  request_.timeout += std::chrono::seconds(1);
  const auto second = decode();
  EXPECT_EQ(failed(), "I11");
}
TEST_F(LegsTest, I7AnAttemptAgain) {
  prefill(1);
  prefill(1);
  EXPECT_EQ(failed(), "I7");
}
TEST_F(LegsTest, I18PrefillsWithoutABudget) {
  std::uint32_t attempt = 0;
  for (int i = 0; i < LegAudit::kPrefillsMax; ++i) prefill(++attempt);
  request_.ids.push_back(4);  // there was progress
  prefill(++attempt);
  EXPECT_EQ(failed(), "");
  for (int i = 0; i < LegAudit::kPrefillsMax; ++i) prefill(++attempt);
  EXPECT_EQ(failed(), "I18");
}
TEST_F(LegsTest, I30WhoDrainsGetsNothingNewButClaims) {
  worker_.status.draining = true;
  prefill(1, HoldId(1));
  EXPECT_EQ(failed(), "");
  prefill(2);
  EXPECT_EQ(failed(), "I30");
}
TEST_F(LegsTest, I30ADrainingWorkerIsLeftTooEarly) {
  auto old = draining_leg();
  worker_.status.draining = false;
  const auto replacement = decode();
  worker_.status.draining = true;
  old.reset();
  EXPECT_EQ(failed(), "I30");
}
TEST_F(LegsTest, ADrainingWorkerIsLeftInTime) {
  auto old = draining_leg();
  worker_.status.draining = false;
  const auto replacement = decode();
  wire_.last.on_data(wire::to_json(wire::LegEvent(wire::Committed{Attempt(2), {}})));
  worker_.status.draining = true;
  old.reset();
  EXPECT_EQ(failed(), "");
}
TEST_F(LegsTest, ARequestThatIsOverLeavesAllItsLegs) {
  auto old = draining_leg();
  worker_.status.draining = false;
  auto replacement = decode();
  worker_.status.draining = true;
  old.reset();
  replacement.reset();
  EXPECT_EQ(failed(), "");
}

}  // namespace
}  // namespace baton::sim
