#include "transfer/retention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

namespace baton::transfer {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr Duration kSecond = std::chrono::seconds(1);

wire::GenerateRequest request() {
  wire::GenerateRequest r;
  r.id = "r";
  r.ids = {1, 2, 3, 4};
  r.n_prompt = 3;
  r.seed = 5;
  return r;
}

class RetentionTest : public ::testing::Test {
 protected:
  void add(Retention::Key key, TimePoint deadline = kNever) {
    ledger_.add(key, HoldId(key + 100), Attempt(1), identity_of(request()), deadline);
  }
  std::vector<Retention::Key> dropped() {
    std::vector<Retention::Key> keys;
    for (const auto& d : ledger_.take_drops()) {
      EXPECT_EQ(d.why.code(), Code::kUnavailable) << "it can be computed again";
      keys.push_back(d.key);
    }
    return keys;
  }
  Result<std::optional<Retention::Key>> claim(std::uint64_t name, std::uint64_t name_new, std::uint32_t attempt = 2) {
    return ledger_.claim(HoldId(name), HoldId(name_new), Attempt(attempt), identity_of(request()), kNever);
  }
  TimePoint now_{};
  Retention ledger_{{.timeout = 10 * kSecond, .holds_max = 3, .blocks_max = 10}};
};

TEST_F(RetentionTest, AClaimTakesItOverUnderItsNewName) {
  add(1);
  ASSERT_TRUE(ledger_.retain(now_, 1, 4));
  EXPECT_EQ(ledger_.stats(now_).blocks, 4);
  EXPECT_EQ(claim(101, 7)->value(), 1u);
  EXPECT_EQ(ledger_.stats(now_).holds, 0u);
  EXPECT_EQ(ledger_.stats(now_).blocks, 0);
  EXPECT_EQ(ledger_.stats(now_).claimed, 1u);
  EXPECT_EQ(claim(101, 8)->has_value(), false) << "the old name names nothing";
  EXPECT_EQ(claim(7, 8)->value(), 1u) << "also while an attempt uses it";
  ledger_.tick(now_ + 100 * kSecond);
  EXPECT_THAT(dropped(), ElementsAre()) << "what is in use has no deadline here";
  ledger_.remove(1);
  ledger_.remove(1);
  EXPECT_FALSE(claim(8, 9)->has_value());
}

TEST_F(RetentionTest, UnderOneLeaseAttemptsOnlyGrow) {
  add(1);
  EXPECT_EQ(claim(101, 101, 1).status().code(), Code::kCancelled);
  EXPECT_EQ(claim(101, 101, 2)->value(), 1u);
  EXPECT_EQ(claim(101, 101, 2).status().code(), Code::kCancelled) << "said again";
}

TEST_F(RetentionTest, AClaimOfAnotherRequestIsRefusedByName) {
  add(1);
  const auto why = [&](const std::function<void(wire::GenerateRequest&)>& change) {
    wire::GenerateRequest r = request();
    change(r);
    const auto got = ledger_.claim(HoldId(101), HoldId(101), Attempt(9), identity_of(r), kNever);
    return got.ok() ? "ok" : got.status().to_string();
  };
  EXPECT_THAT(why([](auto& r) { r.id = "other"; }), HasSubstr("request ids differ"));
  EXPECT_THAT(why([](auto& r) { r.ids[0] = 9; }), HasSubstr("token ids differ"));
  EXPECT_THAT(why([](auto& r) { r.n_prompt = 4; }), HasSubstr("prompt lengths differ"));
  EXPECT_THAT(why([](auto& r) { r.n = 2; }), HasSubstr("choices differ"));
  EXPECT_THAT(why([](auto& r) { r.first_choice = 1; }), HasSubstr("choices differ"));
  EXPECT_THAT(why([](auto& r) { r.seed = 6; }), HasSubstr("seeds differ"));
  EXPECT_THAT(why([](auto& r) { r.sampling.top_k = 6; }), HasSubstr("sampling parameters differ"));
  EXPECT_EQ(why([](auto& r) { r.sampling.prompt_logprobs = 6, r.timeout = kSecond; }), "ok") << "these change neither KV nor tokens";
}

TEST_F(RetentionTest, WhatNobodyClaimsGoesAtItsDeadline) {
  add(1);
  add(2, now_ + 3 * kSecond);
  ASSERT_TRUE(ledger_.retain(now_, 1, 1));
  now_ += kSecond;
  ASSERT_TRUE(ledger_.retain(now_, 2, 1));
  EXPECT_TRUE(ledger_.retain(now_ + kSecond, 2, 1)) << "it is already";
  EXPECT_EQ(ledger_.next_deadline(), TimePoint(3 * kSecond)) << "never beyond the request's own";
  ledger_.tick(now_ + 2 * kSecond);
  EXPECT_THAT(dropped(), ElementsAre(2u));
  EXPECT_EQ(ledger_.next_deadline(), TimePoint(10 * kSecond)) << "saying it again gives no more time";
  ledger_.tick(TimePoint(10 * kSecond) - Duration(1));
  EXPECT_THAT(dropped(), ElementsAre());
  ledger_.tick(TimePoint(10 * kSecond));
  EXPECT_THAT(dropped(), ElementsAre(1u));
  EXPECT_EQ(ledger_.next_deadline(), kNever);
  EXPECT_EQ(ledger_.stats(now_).dropped, 2u);
  EXPECT_FALSE(claim(101, 7)->has_value());
}

TEST_F(RetentionTest, BoundsHoldAndTheOldestGoesFirst) {
  for (Retention::Key key = 1; key <= 6; ++key) add(key);
  EXPECT_FALSE(ledger_.retain(now_, 1, 11)) << "more than all of them may have";
  EXPECT_TRUE(ledger_.retain(now_, 2, 3));
  EXPECT_TRUE(ledger_.retain(now_, 1, 3)) << "in the order of retaining, not of keys";
  EXPECT_TRUE(ledger_.retain(now_, 3, 4));
  EXPECT_THAT(dropped(), ElementsAre());
  EXPECT_TRUE(ledger_.retain(now_, 4, 1));
  EXPECT_THAT(dropped(), ElementsAre(2u)) << "too many";
  EXPECT_TRUE(ledger_.retain(now_, 5, 8));
  EXPECT_THAT(dropped(), ElementsAre(1u, 3u)) << "too many blocks";
  EXPECT_EQ(ledger_.stats(now_).blocks, 9);
}

TEST_F(RetentionTest, APromptThatWaitsGetsItsBlocks) {
  for (Retention::Key key = 1; key <= 3; ++key) {
    add(key);
    ASSERT_TRUE(ledger_.retain(now_, key, 3));
  }
  ledger_.reclaim(0);
  EXPECT_THAT(dropped(), ElementsAre());
  ledger_.reclaim(4);
  EXPECT_THAT(dropped(), ElementsAre(1u, 2u));
  ledger_.reclaim(1000);
  EXPECT_THAT(dropped(), ElementsAre(3u));
}

TEST_F(RetentionTest, ANewLegOfTheSameNameHidesTheOlder) {
  add(1);
  ledger_.add(2, HoldId(101), Attempt(2), identity_of(request()), kNever);
  ledger_.remove(1);
  EXPECT_EQ(claim(101, 5)->value(), 2u) << "the end of the older one does not unname it";
}

TEST(Retention, CanBeSwitchedOff) {
  Retention off({.timeout = Duration(0), .holds_max = 3, .blocks_max = 10});
  off.add(1, HoldId(1), Attempt(1), identity_of(request()), kNever);
  EXPECT_FALSE(off.retain(TimePoint{}, 1, 1));
}

}  // namespace
}  // namespace baton::transfer
