// Streams leave a worker that drains.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "gateway/test_core.h"

namespace baton::gateway {
namespace {

using testing::CoreTest;
using ::testing::ElementsAre;
using testing::healthy;
using testing::kLost;
using testing::kMs;
using testing::request_of;
using wire::Role;

// Three workers, one request that decodes on d0 and has its first token, and d0 says that it goes down.
class CoreMoveTest : public CoreTest {
 protected:
  void drain_amid(wire::GenerateRequest r, const std::function<void()>& before = [] {}) {
    start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
    before();
    submit(std::move(r));
    old_ = decodes_[0];
    up_to_commit(3, 50);
    event(prefill(), wire::Done{});
    event(old_.leg, wire::Draining{});
  }
  void move_up_to_commit(std::int32_t position, TokenId id, int choice = 0) {
    event(decode(), wire::Reserved{LeaseId(78)});
    event(prefill(), wire::Tokens{{token(position, id, choice)}});
    event(decode(), wire::Committed{prefills_.back().body.attempt, {token(position, id, choice)}});
  }
  std::uint64_t moved() const { return core_->stats().moved; }
  StartDecode old_;
};

TEST_F(CoreMoveTest, AStreamLeavesADrainingWorkerThatStreamsOnMeanwhile) {
  drain_amid(request_of({1, 2, 3}));
  ASSERT_EQ(decodes_.size(), 2u);
  EXPECT_NE(decode_worker(), old_.worker);
  EXPECT_THAT(decodes_[1].body.request.ids, ElementsAre(1, 2, 3, 50));
  EXPECT_EQ(decodes_[1].body.request.n_prompt, 3);
  EXPECT_TRUE(cancelled_.empty());
  event(old_.leg, wire::Tokens{{token(4, 51)}});
  event(decode(), wire::Reserved{LeaseId(78)});
  event(old_.leg, wire::Tokens{{token(5, 52)}});
  EXPECT_THAT(tokens_[0], ElementsAre(50, 51, 52)) << "no stall";
  EXPECT_EQ(served_.decode_worker, worker(old_.worker));
  event(prefill(), wire::Tokens{{token(4, 51)}});
  event(decode(), wire::Committed{prefills_.back().body.attempt, {token(4, 51)}});
  EXPECT_THAT(cancelled_, ElementsAre(old_.leg)) << "once the other decodes";
  EXPECT_EQ(served_.decode_worker, worker(decode_worker()));
  event(decode(), wire::Tokens{{token(5, 52)}});
  event(decode(), wire::Tokens{{token(6, 53)}});
  event(decode(), finish());
  event(decode(), wire::Done{});
  event(prefill(), wire::Done{});
  EXPECT_THAT(tokens_[0], ElementsAre(50, 51, 52, 53));
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_TRUE(done_[0].ok());
  EXPECT_EQ(moved(), 1u);
  EXPECT_EQ(core_->stats().conflicts, 0u);
  EXPECT_EQ(core_->record(now_, "req-1")->retries, 0);
  EXPECT_EQ(core_->open_legs(), 0u);
}

TEST_F(CoreMoveTest, AMoveThatFailsEndsNothingButItselfAndIsTriedAgain) {
  drain_amid(request_of({1, 2, 3}));
  ended(decode(), LegEnd::Kind::kRefused, Status(Code::kResourceExhausted, "full"));
  EXPECT_EQ(decodes_.size(), 2u) << "not at once";
  event(old_.leg, wire::Tokens{{token(4, 51)}});
  advance(250 * kMs);
  ASSERT_EQ(decodes_.size(), 3u);
  EXPECT_THAT(decodes_[2].body.request.ids, ElementsAre(1, 2, 3, 50, 51)) << "from what was emitted by then";
  event(decode(), wire::Reserved{LeaseId(78)});
  ended(prefill(), LegEnd::Kind::kBroken, kLost);
  EXPECT_THAT(cancelled_, ElementsAre(decodes_[2].leg)) << "nobody will use its lease";
  advance(499 * kMs);
  EXPECT_EQ(decodes_.size(), 3u) << "the pauses double";
  advance(1 * kMs);
  ASSERT_EQ(decodes_.size(), 4u);
  event(old_.leg, wire::Tokens{{token(5, 52)}});
  move_up_to_commit(5, 52);
  EXPECT_EQ(moved(), 1u);
  EXPECT_TRUE(done_.empty());
  EXPECT_EQ(core_->record(now_, "req-1")->retries, 0);
}

TEST_F(CoreMoveTest, IfTheOldWorkerIsLostTheMoveIsTheContinuation) {
  drain_amid(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(78)});
  ended(old_.leg, LegEnd::Kind::kBroken, kLost);
  EXPECT_EQ(decodes_.size(), 2u) << "it is on its way already";
  EXPECT_EQ(core_->stats().resumed, 1u);
  ended(prefill(), LegEnd::Kind::kBroken, kLost);
  ASSERT_EQ(prefills_.size(), 3u) << "an ordinary run now: the next attempt under the same lease";
  event(decode(), wire::Committed{prefills_.back().body.attempt, {token(4, 51)}});
  EXPECT_THAT(tokens_[0], ElementsAre(50, 51));
  EXPECT_TRUE(done_.empty());
}

TEST_F(CoreMoveTest, AChoiceThatEndsOnTheOldWorkerNeedsNoMove) {
  drain_amid(request_of({1, 2, 3}));
  event(old_.leg, finish());
  EXPECT_THAT(cancelled_, ElementsAre(decode()));
  event(old_.leg, wire::Done{});
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_TRUE(done_[0].ok());
  EXPECT_EQ(moved(), 0u);
  EXPECT_EQ(core_->open_legs(), 0u);
}

TEST_F(CoreMoveTest, EveryUnfinishedChoiceMovesAndTheOldLegGoesWhenAllHave) {
  drain_amid(request_of({1, 2, 3}, 3));
  ASSERT_EQ(decodes_.size(), 4u) << "one run a choice";
  event(old_.leg, finish(1));
  EXPECT_THAT(cancelled_, ElementsAre(decodes_[2].leg));
  for (const std::size_t i : {1u, 3u}) {
    EXPECT_TRUE(std::ranges::find(cancelled_, old_.leg) == cancelled_.end());
    const auto& ids = decodes_[i].body.request.ids;
    event(decodes_[i].leg, wire::Reserved{LeaseId(80 + i)});
    const std::int32_t at = static_cast<std::int32_t>(ids.size());
    event(decodes_[i].leg, wire::Committed{prefills_.back().body.attempt, {token(at, 60, decodes_[i].body.request.first_choice)}});
  }
  EXPECT_THAT(cancelled_, ElementsAre(decodes_[2].leg, old_.leg));
  EXPECT_EQ(moved(), 1u);
  EXPECT_TRUE(done_.empty());
}

TEST_F(CoreMoveTest, OnlyBetweenWorkersOfEqualArithmetic) {
  drain_amid(request_of({1, 2, 3}), [this] {
    wire::WorkerStatus other = healthy("d1", Role::kDecode);
    other.numerics_id = "avx2";
    core_->on_status(now_, WorkerId(2), other);
    wire::WorkerStatus busy = other;  // so that d0 is chosen
    busy.blocks_free = 0;
    core_->on_status(now_, WorkerId(2), busy);
  });
  EXPECT_EQ(worker(old_.worker), "d0");
  advance(10'000 * kMs);
  EXPECT_EQ(decodes_.size(), 1u) << "two that stream at once must agree to the bit: it stays until it has to go";
  event(old_.leg, wire::Failed{Status(Code::kUnavailable, "d0 is going down")});
  EXPECT_EQ(decodes_.size(), 2u);
}

TEST_F(CoreMoveTest, WhatWaitsForItsPrefillStartsElsewhereIfThereIsAnElsewhere) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  const LegId first = decode();
  event(first, wire::Draining{});
  EXPECT_THAT(cancelled_, ElementsAre(first)) << "what P computes is for the next lease";
  ASSERT_EQ(decodes_.size(), 2u);
  event(decode(), wire::Reserved{LeaseId(78)});
  ASSERT_EQ(prefills_.size(), 2u);
  event(decode(), wire::Draining{});
  EXPECT_EQ(decodes_.size(), 2u) << "the last one finishes what it has";
  event(prefill(), wire::Tokens{{token(3, 50)}});
  event(decode(), wire::Committed{prefills_.back().body.attempt, {token(3, 50)}});
  EXPECT_THAT(tokens_[0], ElementsAre(50));
}

TEST_F(CoreMoveTest, AStatusThatDrainsIsAsGoodAsALegThatSaysSo) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  up_to_commit(3, 50);
  wire::WorkerStatus drains = healthy(worker(decode_worker()), Role::kDecode);
  drains.draining = true, drains.ready = false;
  for (int i = 0; i < 3; ++i) core_->on_status(now_, decodes_[0].worker, drains), pump();
  EXPECT_EQ(decodes_.size(), 2u) << "once";
}

}  // namespace
}  // namespace baton::gateway
