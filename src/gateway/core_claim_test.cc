// KV that a prefill worker keeps when the decode worker that it was for is lost.

#include "gateway/core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gateway/test_core.h"

namespace baton::gateway {
namespace {

class CoreClaimTest : public testing::CoreTest {};

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::healthy;
using testing::kLost;
using testing::request_of;
using wire::Role;

TEST_F(CoreClaimTest, ADeadDecodeWorkersPromptIsClaimedForAnother) {
  for (const bool computed : {false, true}) {
    SCOPED_TRACE(computed ? "after the first token" : "while it computes");
    decodes_.clear(), prefills_.clear(), cancelled_.clear(), done_.clear(), tokens_.clear();
    start({{"p0", Role::kPrefill}, {"p1", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
    submit(request_of({1, 2, 3}, 2));
    event(decode(), wire::Reserved{LeaseId(77)});
    event(prefill(), wire::Started{});
    if (computed) event(prefill(), wire::Tokens{{token(3, 50), token(3, 60, 1)}});
    const LegId held = prefill();
    ended(decode(), LegEnd::Kind::kBroken, kLost);
    EXPECT_TRUE(cancelled_.empty()) << "the prefill goes on";
    ASSERT_EQ(decodes_.size(), 2u);
    EXPECT_NE(decodes_[0].worker, decodes_[1].worker);
    EXPECT_EQ(decodes_[1].body.request.ids, decodes_[0].body.request.ids) << "the same request, whatever was emitted meanwhile";
    EXPECT_EQ(decodes_[1].body.request.n, 2);
    if (!computed) event(held, wire::Tokens{{token(3, 50), token(3, 60, 1)}});
    event(held, wire::Retained{HoldId(77), kLost});
    event(decode(), wire::Reserved{LeaseId(88)});
    ASSERT_EQ(prefills_.size(), 2u);
    EXPECT_EQ(prefills_[1].worker, prefills_[0].worker);
    EXPECT_EQ(prefills_[1].body.claim, HoldId(77));
    EXPECT_EQ(prefills_[1].body.lease, LeaseId(88));
    EXPECT_GT(prefills_[1].body.attempt, prefills_[0].body.attempt);
    EXPECT_TRUE(cancelled_.empty()) << "not before the claim is answered: it is the owner";
    event(prefill(), wire::Claimed{true});
    EXPECT_THAT(cancelled_, ElementsAre(held));
    event(prefill(), wire::Tokens{{token(3, 50), token(3, 60, 1)}});
    event(decode(), wire::Committed{prefills_[1].body.attempt, {token(3, 50), token(3, 60, 1)}});
    event(decode(), wire::Tokens{{token(4, 51), token(4, 61, 1)}});
    event(decode(), finish(0)), event(decode(), finish(1));
    event(prefill(), wire::Done{}), event(decode(), wire::Done{});
    EXPECT_THAT(tokens_[0], ElementsAre(50, 51));
    EXPECT_THAT(tokens_[1], ElementsAre(60, 61));
    ASSERT_EQ(done_.size(), 1u);
    EXPECT_TRUE(done_[0].ok()) << done_[0].to_string();
    EXPECT_EQ(core_->stats().claims, 1u);
    EXPECT_EQ(core_->open_legs(), 0u);
    for (const Worker& w : core_->registry().workers()) EXPECT_EQ(w.prefill_tokens, 0) << w.name();
    const std::string record = to_json(*core_->record(now_, "req-1"));
    for (const char* what : {"decode_failed", "retained", "claim", "claimed"})
      EXPECT_THAT(record, HasSubstr("\"" + std::string(what) + "\""));
  }
}

TEST_F(CoreClaimTest, AHandOffThatFailsIsTriedAgainFromWhatIsKept) {
  start({{"p0", Role::kPrefill}, {"p1", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  const auto retained = [&](std::uint64_t hold) { event(prefill(), wire::Retained{HoldId(hold), Status(Code::kDataLoss, "digest")}); };
  retained(77);
  ASSERT_EQ(prefills_.size(), 2u);
  EXPECT_EQ(prefills_[1].worker, prefills_[0].worker);
  EXPECT_EQ(prefills_[1].body.claim, HoldId(77));
  EXPECT_EQ(prefills_[1].body.lease, LeaseId(77)) << "the same lease first";
  event(prefill(), wire::Claimed{true});
  retained(77);
  ASSERT_EQ(decodes_.size(), 2u) << "then another decode worker";
  EXPECT_NE(decodes_[0].worker, decodes_[1].worker);
  event(decode(), wire::Reserved{LeaseId(88)});
  EXPECT_EQ(prefills_.back().body.claim, HoldId(77));
  EXPECT_EQ(prefills_.back().worker, prefills_[0].worker);
  event(prefill(), wire::Claimed{true});
  retained(88);
  ASSERT_EQ(prefills_.size(), 4u);
  EXPECT_EQ(prefills_.back().body.claim, HoldId()) << "then another prefill worker";
  EXPECT_NE(prefills_.back().worker, prefills_[0].worker);
  EXPECT_EQ(prefills_.back().body.lease, LeaseId(88));
  event(prefill(), wire::Tokens{{token(3, 50)}});
  event(decode(), wire::Committed{prefills_.back().body.attempt, {token(3, 50)}});
  EXPECT_THAT(tokens_[0], ElementsAre(50));
}

TEST_F(CoreClaimTest, WhatIsGoneWhenItIsClaimedIsComputedAnew) {
  start({{"p0", Role::kPrefill}, {"p1", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  const LegId held = prefill();
  ended(decode(), LegEnd::Kind::kBroken, kLost);
  event(held, wire::Failed{Status(Code::kUnavailable, "given up")});
  event(decode(), wire::Reserved{LeaseId(88)});
  EXPECT_EQ(prefills_.back().body.claim, HoldId()) << "P said so before";
  ended(decode(), LegEnd::Kind::kBroken, kLost);
  event(decode(), wire::Reserved{LeaseId(99)});
  EXPECT_EQ(prefills_.back().body.claim, HoldId(88));
  event(prefill(), wire::Claimed{false});
  EXPECT_EQ(core_->stats().claims_missed, 1u);
  EXPECT_EQ(core_->registry().at(prefills_.back().worker).prefill_tokens, 3) << "it is in its queue again";
  event(prefill(), wire::Tokens{{token(3, 50)}});
  event(decode(), wire::Committed{prefills_.back().body.attempt, {token(3, 50)}});
  EXPECT_THAT(tokens_[0], ElementsAre(50));
}

TEST_F(CoreClaimTest, ARefusedClaimIsNoReasonToFail) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  ended(decode(), LegEnd::Kind::kBroken, kLost);
  event(decode(), wire::Reserved{LeaseId(88)});
  ended(prefill(), LegEnd::Kind::kRefused, Status(Code::kInvalidArgument, "the claim is not for this request"));
  ASSERT_TRUE(done_.empty());
  EXPECT_EQ(prefills_.back().body.claim, HoldId());
  EXPECT_EQ(prefills_.size(), 3u);
}

TEST_F(CoreClaimTest, KeptKvWaitsWithItsRunAndGoesWithIt) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  const RequestKey key = submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  event(prefill(), wire::Tokens{{token(3, 50)}});
  const LegId held = prefill();
  ended(decode(), LegEnd::Kind::kBroken, kLost);
  const Status full(Code::kResourceExhausted, "full");
  ended(decode(), LegEnd::Kind::kRefused, full);
  if (decodes_.size() == 3) ended(decode(), LegEnd::Kind::kRefused, full);
  EXPECT_TRUE(done_.empty());
  EXPECT_TRUE(cancelled_.empty()) << "it waits for room, and what P has waits too";
  core_->cancel(now_, key);
  pump();
  EXPECT_THAT(cancelled_, ::testing::Contains(held));
  EXPECT_EQ(core_->open_legs(), 0u);
}

TEST_F(CoreClaimTest, KeptKvThatIsLostInTheQueueMeansAContinuation) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  event(prefill(), wire::Tokens{{token(3, 50)}});
  const LegId held = prefill();
  event(decode(), wire::Failed{Status(Code::kUnavailable, "lease expired")});
  ended(decode(), LegEnd::Kind::kRefused, Status(Code::kResourceExhausted, "full"));
  event(held, wire::Failed{Status(Code::kUnavailable, "given up")});
  core_->on_status(now_, WorkerId(1), healthy("d0", Role::kDecode));
  pump();
  EXPECT_THAT(decodes_.back().body.request.ids, ElementsAre(1, 2, 3, 50));
  EXPECT_EQ(decodes_.back().body.request.n_prompt, 3);
}

TEST_F(CoreClaimTest, OtherNumericsGoOnBehindTheTokensThatWereSent) {
  start({{"p0", Role::kPrefill}, {"p1", Role::kPrefill}, {"d0", Role::kDecode}});
  auto other = healthy("p1", Role::kPrefill);
  other.numerics_id = "avx2";
  core_->on_status(now_, WorkerId(1), other);
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  ASSERT_EQ(worker(prefills_[0].worker), "p0");
  event(prefill(), wire::Tokens{{token(3, 50)}});
  ended(prefill(), LegEnd::Kind::kBroken, kLost);
  ASSERT_EQ(decodes_.size(), 2u) << "p1 might give another first token under the same lease";
  EXPECT_THAT(decodes_[1].body.request.ids, ElementsAre(1, 2, 3, 50));
  event(decode(), wire::Reserved{LeaseId(88)});
  EXPECT_EQ(worker(prefills_.back().worker), "p1");
  EXPECT_THAT(to_json(*core_->record(now_, "req-1")), HasSubstr("p1 has numerics avx2, tokens so far are of avx512-bf16"));
}

TEST_F(CoreClaimTest, AContinuationGoesWhereThePromptIsCached) {
  start({{"p0", Role::kPrefill}, {"p1", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3, 4, 5, 6, 7, 8, 9}));
  const WorkerId first = [&] {
    up_to_commit(9, 50);
    event(prefill(), wire::Done{});
    return prefills_.back().worker;
  }();
  ended(decode(), LegEnd::Kind::kBroken, kLost);
  event(decode(), wire::Reserved{LeaseId(88)});
  ASSERT_EQ(prefills_.size(), 2u);
  EXPECT_EQ(prefills_[1].worker, first) << "though the other one was used less";
  EXPECT_EQ(prefills_[1].body.request.ids.back(), 50);
  EXPECT_EQ(prefills_[1].body.claim, HoldId()) << "it was handed over: nothing is kept";
}

}  // namespace
}  // namespace baton::gateway
