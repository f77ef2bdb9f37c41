#include "gateway/core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gateway/test_core.h"

namespace baton::gateway {
namespace {

using testing::CoreTest;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::healthy;
using testing::kLost;
using testing::kMs;
using testing::request_of;
using wire::Role;

TEST_F(CoreTest, AHandOffFromReserveToDone) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  EXPECT_TRUE(core_->registry().ready());
  submit(request_of({1, 2, 3}));
  ASSERT_EQ(decodes_.size(), 1u);
  EXPECT_EQ(worker(decodes_[0].worker), "d0");
  EXPECT_FALSE(decodes_[0].body.local_prefill);
  EXPECT_TRUE(prefills_.empty()) << "nothing is prefilled before it is reserved";
  now_ += 3 * kMs;
  event(decode(), wire::Reserved{LeaseId(77)});
  ASSERT_EQ(prefills_.size(), 1u);
  const wire::PrefillLeg& leg = prefills_[0].body;
  EXPECT_EQ(leg.lease, LeaseId(77));
  EXPECT_EQ(leg.link_host, "10.0.0.2");
  EXPECT_EQ(leg.link_port, 7000);
  EXPECT_EQ(leg.decode_incarnation, Incarnation(1));
  EXPECT_EQ(leg.request.ids, decodes_[0].body.request.ids);
  event(prefill(), wire::Started{});
  event(prefill(), wire::Tokens{{token(3, 50)}});
  EXPECT_THAT(tokens_[0], ElementsAre(50)) << "the first token comes from P";
  event(decode(), wire::Committed{Attempt(1), {token(3, 50)}});
  wire::Served said;
  said.cached_tokens = 2, said.kv_bytes = 1000, said.kv_bytes_early = 900;
  event(prefill(), said);
  event(prefill(), wire::Done{});
  event(decode(), wire::Tokens{{token(4, 51)}});
  event(decode(), wire::Tokens{{token(5, 52)}});
  event(decode(), finish());
  EXPECT_TRUE(done_.empty()) << "waits for D's Done";
  event(decode(), wire::Done{});
  EXPECT_THAT(tokens_[0], ElementsAre(50, 51, 52));
  EXPECT_THAT(positions_[0], ElementsAre(3, 4, 5));
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_TRUE(done_[0].ok());
  EXPECT_EQ(finishes_.size(), 1u);
  EXPECT_EQ(core_->open_legs(), 0u);
  EXPECT_TRUE(cancelled_.empty()) << "connections that ended by themselves are kept";
  EXPECT_EQ(served_.prefill_worker, "p0");
  EXPECT_EQ(served_.decode_worker, "d0");
  EXPECT_TRUE(served_.disaggregated);
  EXPECT_EQ(served_.cached_tokens, 2);
  EXPECT_EQ(served_.kv_bytes, 1000);
  EXPECT_EQ(served_.reserved_ms, 3);
  EXPECT_EQ(core_->stats().duplicates_dropped, 1u);
  const auto record = core_->record(now_, "req-1");
  ASSERT_TRUE(record.has_value());
  EXPECT_TRUE(record->finished);
  EXPECT_EQ(record->tokens, 3);
  EXPECT_THAT(to_json(*record), HasSubstr("\"event\":\"committed\""));
  for (const Worker& w : core_->registry().workers()) {
    EXPECT_EQ(w.legs, 0) << w.name();
    EXPECT_EQ(w.blocks_promised, 0) << w.name();
    EXPECT_EQ(w.prefill_tokens, 0) << w.name();
  }
}

TEST_F(CoreTest, AggregatedWhereEveryWorkerDoesBoth) {
  start({{"w0", Role::kBoth}, {"w1", Role::kBoth}});
  submit(request_of({1, 2, 3}));
  ASSERT_EQ(decodes_.size(), 1u);
  EXPECT_TRUE(decodes_[0].body.local_prefill);
  event(decode(), wire::Tokens{{token(3, 9)}});
  event(decode(), finish());
  event(decode(), wire::Done{});
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_TRUE(done_[0].ok());
  EXPECT_FALSE(served_.disaggregated);
  EXPECT_EQ(served_.prefill_worker, served_.decode_worker);
  EXPECT_EQ(core_->record(now_, "req-1")->fallback, "");
  EXPECT_EQ(core_->stats().fallbacks, 0u);
}

TEST_F(CoreTest, ARequestThatEndsWithItsFirstTokenReleasesTheLease) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(1)});
  event(prefill(), wire::Tokens{{token(3, 50)}});
  event(prefill(), finish());
  EXPECT_THAT(cancelled_, ElementsAre(decode()));
  event(prefill(), wire::Done{});
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_TRUE(done_[0].ok());
}

TEST_F(CoreTest, PrefillWorkerDiesBeforeCommitAnotherTakesTheLease) {
  start({{"p0", Role::kPrefill}, {"p1", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  EXPECT_EQ(worker(prefills_[0].worker), "p0");
  event(prefill(), wire::Tokens{{token(3, 50)}});
  ended(prefill(), LegEnd::Kind::kBroken, kLost);
  EXPECT_THAT(polls_, ElementsAre(WorkerId(0))) << "a broken leg asks for a poll at once";
  ASSERT_EQ(prefills_.size(), 2u);
  EXPECT_EQ(worker(prefills_[1].worker), "p1");
  EXPECT_EQ(prefills_[1].body.lease, LeaseId(77));
  EXPECT_GT(prefills_[1].body.attempt, prefills_[0].body.attempt);
  EXPECT_EQ(decodes_.size(), 1u);
  event(prefill(), wire::Tokens{{token(3, 50)}});
  event(decode(), wire::Committed{prefills_[1].body.attempt, {token(3, 50)}});
  event(decode(), wire::Tokens{{token(4, 51)}});
  EXPECT_THAT(tokens_[0], ElementsAre(50, 51));
  EXPECT_EQ(core_->record(now_, "req-1")->retries, 1);
}

TEST_F(CoreTest, ACommitOfAnEarlierAttemptEndsTheRetry) {
  start({{"p0", Role::kPrefill}, {"p1", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  ended(prefill(), LegEnd::Kind::kBroken, kLost);  // between its commit and its answer
  ASSERT_EQ(prefills_.size(), 2u);
  event(decode(), wire::Committed{prefills_[0].body.attempt, {token(3, 50)}});
  EXPECT_THAT(cancelled_, ElementsAre(prefills_[1].leg));
  event(prefills_[1].leg, wire::Failed{Status(Code::kDataLoss, "too late")});
  event(decode(), wire::Tokens{{token(4, 51)}});
  EXPECT_THAT(tokens_[0], ElementsAre(50, 51));
  EXPECT_TRUE(done_.empty());
}

TEST_F(CoreTest, NackIsRetriedUnderTheSameLease) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  event(decode(), wire::Nacked{Status(Code::kDataLoss, "digest")});
  event(prefill(), wire::Nacked{Status(Code::kDataLoss, "digest")});
  ASSERT_EQ(prefills_.size(), 2u) << "the only prefill worker is tried again";
  EXPECT_EQ(core_->stats().retries_nacked, 1u);
}

TEST_F(CoreTest, DecodeRefusalTriesTheOthersThenWaitsForRoom) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  const Status full(Code::kResourceExhausted, "no KV blocks; retry after 2 s");
  ended(decode(), LegEnd::Kind::kRefused, full);
  ASSERT_EQ(decodes_.size(), 2u);
  EXPECT_NE(decodes_[0].worker, decodes_[1].worker);
  ended(decode(), LegEnd::Kind::kRefused, full);
  EXPECT_TRUE(done_.empty());
  EXPECT_EQ(decodes_.size(), 2u) << "asking again at once would get the same answer";
  EXPECT_TRUE(polls_.empty()) << "a refusal is no ill health";
  EXPECT_EQ(core_->registry().at(WorkerId(1)).liveness, Liveness::kAlive);
  core_->on_status(now_, WorkerId(1), healthy("d0", Role::kDecode));
  pump();
  EXPECT_EQ(decodes_.size(), 3u) << "a report is a reason to ask again";
}

TEST_F(CoreTest, ABusyDecodePoolDoesNotSpillOntoPrefillWorkers) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  ended(decode(), LegEnd::Kind::kRefused, Status(Code::kResourceExhausted, "full"));
  EXPECT_TRUE(done_.empty());
  EXPECT_EQ(decodes_.size(), 1u);
  advance(std::chrono::seconds(60));
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kDeadlineExceeded);
  EXPECT_THAT(done_[0].message(), HasSubstr("room on a decode worker"));
}

TEST_F(CoreTest, RequestsBeyondAWorkersSequencesWaitInOrder) {
  start({{"w0", Role::kBoth}});
  auto small = healthy("w0", Role::kBoth);
  small.max_num_seqs = 2;
  core_->on_status(now_, WorkerId(0), small);
  std::vector<RequestKey> keys;
  for (int i = 0; i < 5; ++i) {
    auto r = request_of({1, 2, 3});
    r.id = "req-" + std::to_string(i);
    r.priority = i == 4 ? -1 : 0;
    keys.push_back(submit(std::move(r)));
  }
  ASSERT_EQ(decodes_.size(), 2u);
  core_->cancel(now_, keys[2]);  // leaves the queue
  const LegId first = decodes_[0].leg;
  event(first, wire::Tokens{{token(3, 9)}});
  event(first, finish());
  event(first, wire::Done{});
  ASSERT_EQ(decodes_.size(), 3u);
  EXPECT_EQ(decodes_[2].body.request.id, "req-4") << "lower priority value first";
  core_->cancel(now_, keys[1]);
  pump();
  ASSERT_EQ(decodes_.size(), 4u);
  EXPECT_EQ(decodes_[3].body.request.id, "req-3");
}

TEST_F(CoreTest, ARequestWiderThanAWorkerGetsAnEmptyOne) {
  start({{"w0", Role::kBoth}});
  auto small = healthy("w0", Role::kBoth);
  small.max_num_seqs = 2;
  core_->on_status(now_, WorkerId(0), small);
  submit(request_of({1, 2, 3}, 4));
  EXPECT_EQ(decodes_.size(), 1u) << "whether it can ever fit is the worker's to say";
}

TEST_F(CoreTest, ARequestThatWaitsForRoomFailsWhenTheLastWorkerDies) {
  start({{"w0", Role::kBoth}});
  submit(request_of({1, 2, 3}));
  ended(decode(), LegEnd::Kind::kRefused, Status(Code::kResourceExhausted, "full"));
  EXPECT_TRUE(done_.empty());
  core_->on_poll_failed(now_, WorkerId(0), true, "connection refused");
  pump();
  ASSERT_EQ(done_.size(), 1u) << "no report will ever wake it";
  EXPECT_EQ(done_[0].code(), Code::kUnavailable);
}

TEST_F(CoreTest, SmallRequestsDoNotOvertakeOneThatWasRefused) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  const Status full(Code::kResourceExhausted, "no KV blocks");
  auto big = request_of(std::vector<TokenId>(500, 1)), small = request_of({1, 2, 3}), other = request_of({4, 5, 6});
  big.id = "big", small.id = "small", other.id = "other";
  submit(std::move(big));
  ended(decode(), LegEnd::Kind::kRefused, full);
  now_ += std::chrono::seconds(21);  // it has been overtaken by short ones for long enough
  submit(std::move(small));
  ASSERT_EQ(decodes_.size(), 2u);
  EXPECT_EQ(decodes_[1].body.request.id, "big") << "the head asks again";
  submit(std::move(other));
  EXPECT_EQ(decodes_.size(), 2u) << "and nobody else does before its answer";
  ended(decode(), LegEnd::Kind::kRefused, full);
  EXPECT_EQ(decodes_.size(), 2u);
  core_->on_status(now_, WorkerId(1), healthy("d0", Role::kDecode));
  pump();
  ASSERT_EQ(decodes_.size(), 3u);
  EXPECT_EQ(decodes_[2].body.request.id, "big");
  event(decode(), wire::Reserved{LeaseId(7)});
  ASSERT_EQ(decodes_.size(), 5u);
  EXPECT_EQ(decodes_[3].body.request.id, "small");
  EXPECT_EQ(decodes_[4].body.request.id, "other");
}

TEST_F(CoreTest, ARefusedHeadThatGoesAwayLetsTheOthersAsk) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  auto big = request_of(std::vector<TokenId>(500, 1));
  big.id = "big";
  const RequestKey key = submit(std::move(big));
  ended(decode(), LegEnd::Kind::kRefused, Status(Code::kResourceExhausted, "no KV blocks"));
  now_ += std::chrono::seconds(21);
  submit(request_of({1, 2, 3}));
  ASSERT_EQ(decodes_.size(), 2u);
  core_->cancel(now_, key);
  pump();
  ASSERT_EQ(decodes_.size(), 3u);
  EXPECT_EQ(decodes_[2].body.request.id, "req-1");
}

TEST_F(CoreTest, ABadRequestIsNotRetried) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  ended(decode(), LegEnd::Kind::kRefused, Status(Code::kInvalidArgument, "too long"));
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kInvalidArgument);
  EXPECT_EQ(decodes_.size(), 1u);
}

// D's leg was cut where only D has noticed: it tells P, and P tells us. Nor is a worker's clock ours.
TEST_F(CoreTest, AWorkersCancelOrDeadlineIsNotTheRequests) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  event(prefill(), wire::Nacked{Status(Code::kCancelled, "the decode leg was closed")});
  ASSERT_EQ(prefills_.size(), 2u);
  event(prefill(), wire::Failed{Status(Code::kDeadlineExceeded, "hand-off streaming for too long")});
  ASSERT_EQ(decodes_.size(), 2u) << "two prefills failed under the lease: elsewhere";
  event(decode(), wire::Failed{Status(Code::kDeadlineExceeded, "the request's time is over")});
  EXPECT_EQ(decodes_.size(), 3u);
  EXPECT_TRUE(done_.empty());
  // Once it is over by our clock it is over.
  now_ += std::chrono::seconds(61);
  event(decode(), wire::Failed{Status(Code::kDeadlineExceeded, "the request's time is over")});
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kDeadlineExceeded);
}

TEST_F(CoreTest, DecodeWorkerDiesBeforeTheFirstTokenAndTheRequestMoves) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  ended(decode(), LegEnd::Kind::kBroken, kLost);
  EXPECT_TRUE(cancelled_.empty()) << "what P computes is good for another decode worker";
  ASSERT_EQ(decodes_.size(), 2u);
  EXPECT_NE(decodes_[0].worker, decodes_[1].worker);
  EXPECT_EQ(decodes_[1].body.request.ids, (std::vector<TokenId>{1, 2, 3}));
  EXPECT_EQ(core_->stats().resumed, 0u);
}

TEST_F(CoreTest, DecodeWorkerDiesMidStreamAndTheStreamGoesOn) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  up_to_commit(3, 50);
  event(prefill(), wire::Done{});
  event(decode(), wire::Tokens{{token(4, 51)}});
  now_ += 10 * kMs;
  ended(decode(), LegEnd::Kind::kBroken, kLost);
  ASSERT_EQ(decodes_.size(), 2u);
  const wire::GenerateRequest& resumed = decodes_[1].body.request;
  EXPECT_THAT(resumed.ids, ElementsAre(1, 2, 3, 50, 51));
  EXPECT_EQ(resumed.n_prompt, 3);
  EXPECT_EQ(resumed.sampling.max_tokens, 8);
  EXPECT_EQ(resumed.timeout, std::chrono::seconds(60) - 10 * kMs);
  event(decode(), wire::Reserved{LeaseId(78)});
  EXPECT_EQ(prefills_.back().body.request.ids, resumed.ids);
  EXPECT_EQ(prefills_.back().body.lease, LeaseId(78));
  event(prefill(), wire::Tokens{{token(5, 52)}});
  event(decode(), wire::Committed{prefills_.back().body.attempt, {token(5, 52)}});
  event(decode(), wire::Tokens{{token(6, 53)}});
  event(decode(), finish());
  event(decode(), wire::Done{});
  event(prefill(), wire::Done{});
  EXPECT_THAT(tokens_[0], ElementsAre(50, 51, 52, 53));
  EXPECT_THAT(positions_[0], ElementsAre(3, 4, 5, 6));
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_TRUE(done_[0].ok());
  EXPECT_EQ(core_->stats().resumed, 1u);
}

// One dead worker is one failure to each choice, not one for every choice to the request.
TEST_F(CoreTest, ALostWorkerCountsOnceForEachChoice) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2}, 4));
  event(decode(), wire::Reserved{LeaseId(1)});
  event(decode(), wire::Committed{Attempt(1), {token(2, 10, 0), token(2, 20, 1), token(2, 30, 2), token(2, 40, 3)}});
  ended(decode(), LegEnd::Kind::kBroken, kLost);
  ASSERT_EQ(decodes_.size(), 5u);
  for (const std::size_t i : {1, 2, 3, 4}) ended(decodes_[i].leg, LegEnd::Kind::kBroken, kLost);
  EXPECT_TRUE(done_.empty()) << done_[0].to_string();
  EXPECT_EQ(decodes_.size(), 9u);
}

TEST_F(CoreTest, ChoicesThatHavePartedResumeOneByOne) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2}, 3));
  event(decode(), wire::Reserved{LeaseId(1)});
  event(prefill(), wire::Tokens{{token(2, 10, 0), token(2, 20, 1), token(2, 30, 2)}});
  event(decode(), wire::Committed{Attempt(1), {token(2, 10, 0), token(2, 20, 1), token(2, 30, 2)}});
  event(decode(), wire::Tokens{{token(3, 11, 0), token(3, 21, 1)}});
  event(decode(), finish(1));
  ended(decode(), LegEnd::Kind::kBroken, kLost);
  ASSERT_EQ(decodes_.size(), 3u) << "choices 0 and 2 go on, 1 had finished";
  EXPECT_EQ(decodes_[1].body.request.first_choice, 0);
  EXPECT_EQ(decodes_[1].body.request.n, 1);
  EXPECT_EQ(decodes_[1].body.request.id, "req-1/0");
  EXPECT_THAT(decodes_[1].body.request.ids, ElementsAre(1, 2, 10, 11));
  EXPECT_EQ(decodes_[2].body.request.first_choice, 2);
  EXPECT_THAT(decodes_[2].body.request.ids, ElementsAre(1, 2, 30));
  for (const int i : {1, 2}) {
    const int choice = decodes_[i].body.request.first_choice;
    const auto at = static_cast<std::int32_t>(decodes_[i].body.request.ids.size());
    event(decodes_[i].leg, wire::Reserved{LeaseId(10)});
    const LegId p = prefill();
    const Attempt attempt = prefills_.back().body.attempt;
    event(decodes_[i].leg, wire::Committed{attempt, {token(at, 99, choice)}});
    event(decodes_[i].leg, finish(choice));
    event(decodes_[i].leg, wire::Done{});
    event(p, wire::Done{});
  }
  EXPECT_THAT(tokens_[0], ElementsAre(10, 11, 99));
  EXPECT_THAT(tokens_[1], ElementsAre(20, 21));
  EXPECT_THAT(tokens_[2], ElementsAre(30, 99));
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_TRUE(done_[0].ok());
  EXPECT_EQ(core_->open_legs(), 0u);
}

// Its finish was lost with the worker. To go on from such a token would say more than the model did.
TEST_F(CoreTest, AChoiceWhoseLastTokenWasItsEndIsNotResumed) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  auto r = request_of({1, 2}, 2);
  r.sampling.eos_ids = {7};
  submit(std::move(r));
  event(decode(), wire::Reserved{LeaseId(1)});
  event(prefill(), wire::Tokens{{token(2, 7, 0), token(2, 20, 1)}});
  ended(decode(), LegEnd::Kind::kBroken, kLost);
  ASSERT_EQ(finishes_.size(), 1u);
  EXPECT_EQ(finishes_[0].choice, 0);
  EXPECT_EQ(finishes_[0].reason, wire::FinishReason::kStop);
  EXPECT_EQ(finishes_[0].stop_token, 7);
  ASSERT_EQ(decodes_.size(), 2u);
  EXPECT_EQ(decodes_[1].body.request.n, 2) << "P keeps what both began with";
  event(prefills_[0].leg, wire::Failed{kLost});
  event(decode(), wire::Failed{kLost});
  ASSERT_EQ(decodes_.size(), 3u);
  EXPECT_EQ(decodes_[2].body.request.first_choice, 1) << "from what was emitted";
  EXPECT_EQ(decodes_[2].body.request.n, 1);
}

TEST_F(CoreTest, TheLastOfMaxTokensEndsAChoiceWhoseWorkerDied) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  auto r = request_of({1, 2, 3});
  r.sampling.max_tokens = 2;
  submit(std::move(r));
  up_to_commit(3, 50);
  event(prefill(), wire::Done{});
  event(decode(), wire::Tokens{{token(4, 51)}});
  ended(decode(), LegEnd::Kind::kBroken, kLost);
  EXPECT_EQ(decodes_.size(), 1u);
  ASSERT_EQ(finishes_.size(), 1u);
  EXPECT_EQ(finishes_[0].reason, wire::FinishReason::kLength);
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_TRUE(done_[0].ok());
}

TEST_F(CoreTest, TokensBeforeNonsenseAreNotLost) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  up_to_commit(3, 50);
  event(decode(), wire::Tokens{{token(4, 51), token(5, 52, 7)}});  // no such choice
  ASSERT_EQ(decodes_.size(), 2u);
  EXPECT_EQ(tokens_[0].size() + 3, decodes_[1].body.request.ids.size()) << "what is continued from is what the client has";
}

TEST_F(CoreTest, UnequalTokensForOnePositionFailTheRequest) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  event(prefill(), wire::Tokens{{token(3, 50)}});
  event(decode(), wire::Committed{Attempt(1), {token(3, 51)}});
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kDataLoss);
  EXPECT_EQ(core_->stats().conflicts, 1u);
  EXPECT_EQ(core_->open_legs(), 0u);
}

TEST_F(CoreTest, NonsenseFromAWorkerIsAFailureOfItsLegOnly) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Tokens{{token(3, 50)}});  // before any commit
  EXPECT_EQ(decodes_.size(), 2u);
  EXPECT_TRUE(tokens_.empty());
  up_to_commit(3, 50);
  event(decode(), wire::Tokens{{token(4, 51, 7)}});  // no such choice
  EXPECT_EQ(decodes_.size(), 3u);
  EXPECT_TRUE(done_.empty());
  event(decode(), wire::Reserved{LeaseId(5)});
  event(decode(), wire::Committed{prefills_.back().body.attempt, {token(4, 51)}});
  event(decode(), wire::Done{});  // without a finish
  EXPECT_EQ(decodes_.size(), 4u);
}

TEST_F(CoreTest, NoPrefillWorkerLeftFallsBackOrFails) {
  for (const Fallback fallback : {Fallback::kLocal, Fallback::kFail}) {
    decodes_.clear(), prefills_.clear(), done_.clear();
    CoreOptions options;
    options.fallback = fallback;
    start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}}, options);
    submit(request_of({1, 2, 3}));
    event(decode(), wire::Reserved{LeaseId(1)});
    ended(prefill(), LegEnd::Kind::kUnreachable, Status(Code::kUnavailable, "connection refused"));
    EXPECT_FALSE(core_->registry().ready());
    EXPECT_EQ(core_->not_ready().has_value(), fallback == Fallback::kFail);
    if (fallback == Fallback::kLocal) {
      ASSERT_EQ(decodes_.size(), 2u);
      EXPECT_TRUE(decodes_[1].body.local_prefill);
      EXPECT_FALSE(served_.disaggregated);
      EXPECT_THAT(core_->record(now_, "req-1")->fallback, HasSubstr("p0"));
      EXPECT_EQ(core_->stats().fallbacks, 1u);
    } else {
      ASSERT_EQ(done_.size(), 1u);
      EXPECT_EQ(done_[0].code(), Code::kUnavailable);
      EXPECT_THAT(done_[0].message(), HasSubstr("connection refused"));
    }
  }
}

TEST_F(CoreTest, ADeadWorkerFailsItsLegsAtOnce) {
  CoreOptions options;
  options.fallback = Fallback::kFail;
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}}, options);
  submit(request_of({1, 2, 3}));
  up_to_commit(3, 50);
  const WorkerId d0(1);
  core_->on_poll_failed(now_ + 700 * kMs, d0, false, "time-out");
  pump();
  EXPECT_TRUE(done_.empty());
  core_->on_poll_failed(now_ + 1200 * kMs, d0, false, "time-out");
  pump();
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kUnavailable);
  EXPECT_EQ(core_->open_legs(), 0u);
}

TEST_F(CoreTest, AWorkerWhoseStepHangsLosesItsLegs) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  up_to_commit(3, 50);
  const std::string first = worker(decodes_[0].worker);
  wire::WorkerStatus hangs = healthy(first, Role::kDecode);
  hangs.running = 1, hangs.step_running_ms = 1100, hangs.step_budget_ms = 100;
  core_->on_status(now_, decodes_[0].worker, hangs);
  pump();
  EXPECT_THAT(cancelled_, ElementsAre(decodes_[0].leg, prefills_[0].leg));
  ASSERT_EQ(decodes_.size(), 2u);
  EXPECT_NE(worker(decodes_[1].worker), first);
  EXPECT_THAT(decodes_[1].body.request.ids, ElementsAre(1, 2, 3, 50));
}

TEST_F(CoreTest, ALegThatSaysDrainingKeepsNewRequestsAway) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  const WorkerId drained = decode_worker();
  const std::string first = worker(drained);
  event(decode(), wire::Draining{});
  EXPECT_FALSE(core_->registry().at(drained).usable());
  for (int i = 0; i < 3; ++i) {
    submit(request_of({4, 5, 6}));
    EXPECT_NE(worker(decode_worker()), first);
  }
}

TEST_F(CoreTest, ARestartedWorkerLosesTheLegsOfItsOldLife) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  up_to_commit(3, 50);
  wire::WorkerStatus reborn = healthy("d0", Role::kDecode);
  reborn.incarnation = Incarnation(2);
  core_->on_status(now_, WorkerId(1), reborn);
  pump();
  ASSERT_EQ(decodes_.size(), 2u);
  EXPECT_THAT(decodes_[1].body.request.ids, ElementsAre(1, 2, 3, 50));
  event(decode(), wire::Reserved{LeaseId(3)});
  EXPECT_EQ(prefills_.back().body.decode_incarnation, Incarnation(2));
}

TEST_F(CoreTest, EveryWaitEnds) {
  start({{"p0", Role::kPrefill}, {"p1", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  const CoreOptions o;
  submit(request_of({1, 2, 3}));
  advance(o.reserve_timeout);
  ASSERT_EQ(decodes_.size(), 2u) << "no reservation: another decode worker";
  EXPECT_THAT(cancelled_, ElementsAre(decodes_[0].leg));
  event(decode(), wire::Reserved{LeaseId(1)});
  advance(o.prefill_slack + std::chrono::seconds(1));
  ASSERT_EQ(prefills_.size(), 2u) << "no first token: another prefill worker";
  event(prefill(), wire::Tokens{{token(3, 50)}});
  advance(o.commit_timeout);
  ASSERT_EQ(decodes_.size(), 3u) << "no commit: after two failures under one lease, another decode worker";
  event(decode(), wire::Reserved{LeaseId(2)});
  advance(o.reserve_timeout);
  EXPECT_EQ(decodes_.size(), 3u) << "a wake-up for a wait that is over";
  // 51 s are gone; the next wait is cut by the request's own deadline of 60 s
  EXPECT_EQ(core_->next_deadline(), TimePoint{} + std::chrono::seconds(60));
  advance(std::chrono::seconds(15));
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kDeadlineExceeded);
  EXPECT_THAT(done_[0].message(), HasSubstr("waiting for"));
  EXPECT_EQ(core_->open_legs(), 0u);
  EXPECT_EQ(core_->next_deadline(), kNever);
}

TEST_F(CoreTest, SilenceAmidAStreamMovesIt) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  up_to_commit(3, 50);
  advance(CoreOptions{}.token_timeout);
  ASSERT_EQ(decodes_.size(), 2u);
  EXPECT_EQ(polls_.size(), 1u);
  EXPECT_EQ(core_->registry().at(decodes_[0].worker).liveness, Liveness::kSuspect);
}

// D that has no room for a sequence puts it aside. That it says nothing of it then is no sign of its death, as long as it works.
TEST_F(CoreTest, APreemptedSequenceIsNotLostWhileItsWorkerMakesSteps) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  auto r = request_of({1, 2, 3});
  r.timeout = std::chrono::seconds(600);
  submit(std::move(r));
  up_to_commit(3, 50);
  const WorkerId d = decodes_[0].worker;
  const Duration half = CoreOptions{}.token_timeout / 2;
  event(decode(), wire::Preempted{0});
  wire::WorkerStatus s = healthy(worker(d), Role::kDecode);
  s.running = 4, s.waiting = 1;
  for (int i = 0; i < 10; ++i) {
    ++s.steps;
    core_->on_status(now_, d, s);
    advance(half);
  }
  EXPECT_EQ(decodes_.size(), 1u) << "it waits for its turn";
  EXPECT_EQ(core_->stats().waits_expired, 0u);
  event(decode(), wire::Tokens{{token(4, 51)}});
  for (int i = 0; i < 2; ++i) {
    ++s.steps;
    core_->on_status(now_, d, s);
    advance(half);
  }
  EXPECT_EQ(decodes_.size(), 2u) << "it had its turn: silence is silence again";
}

TEST_F(CoreTest, APreemptedSequenceIsLostWithAWorkerThatStandsStill) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  up_to_commit(3, 50);
  event(decode(), wire::Preempted{0});
  advance(CoreOptions{}.token_timeout);
  EXPECT_EQ(decodes_.size(), 2u);
}

TEST_F(CoreTest, AChoiceEndedByTheClientEndsOnTheWorkerToo) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  const RequestKey key = submit(request_of({1, 2}, 2));
  event(decode(), wire::Reserved{LeaseId(1)});
  event(prefill(), wire::Tokens{{token(2, 10, 0), token(2, 20, 1)}});
  core_->finish_choice(now_, key, 0);  // before D knows of the choice
  pump();
  EXPECT_TRUE(finish_choices_.empty());
  event(decode(), wire::Committed{Attempt(1), {token(2, 10, 0), token(2, 20, 1)}});
  ASSERT_EQ(finish_choices_.size(), 1u);
  EXPECT_EQ(finish_choices_[0].choice, 0);
  EXPECT_EQ(finish_choices_[0].leg.value, decodes_[0].body.name.leg) << "as D knows the leg";
  event(decode(), wire::Tokens{{token(3, 11, 0), token(3, 21, 1)}});
  EXPECT_THAT(tokens_[0], ElementsAre(10)) << "what comes late is dropped";
  EXPECT_THAT(tokens_[1], ElementsAre(20, 21));
  core_->finish_choice(now_, key, 1);
  pump();
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_TRUE(done_[0].ok());
  EXPECT_EQ(finishes_.size(), 2u);
  EXPECT_EQ(core_->open_legs(), 0u);
}

TEST_F(CoreTest, AdmissionIsBounded) {
  CoreOptions options;
  options.requests_max = 2;
  start({{"w0", Role::kBoth}}, options);
  submit(request_of({1})), submit(request_of({1})), submit(request_of({1}));
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kResourceExhausted);
  EXPECT_EQ(core_->stats().waiting, 2u);
}

TEST_F(CoreTest, LostPromptLogprobsAreAnErrorNotAGap) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  wire::GenerateRequest r = request_of({1, 2, 3});
  r.sampling.prompt_logprobs = 1;
  submit(r);
  EXPECT_EQ(decodes_[0].body.request.sampling.prompt_logprobs, 1);
  up_to_commit(3, 50);
  ended(prefill(), LegEnd::Kind::kBroken, kLost);
  event(decode(), finish());
  event(decode(), wire::Done{});
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kUnavailable);

  done_.clear();
  submit(r);
  event(decode(), wire::Reserved{LeaseId(1)});
  event(prefill(), wire::PromptLogprobs{{std::nullopt, token(1, 2)}});
  event(prefill(), wire::PromptLogprobs{{std::nullopt, token(1, 2)}});
  EXPECT_EQ(prompt_logprobs_, 1) << "once, whatever the attempts";
}

// P's line of them may be megabytes, and is then overtaken by the hand-off and D's tokens.
TEST_F(CoreTest, TokensWaitForThePromptLogprobs) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  wire::GenerateRequest r = request_of({1, 2, 3});
  r.sampling.prompt_logprobs = 1;
  submit(r);
  event(decode(), wire::Reserved{LeaseId(77)});
  event(decode(), wire::Committed{Attempt(1), {token(3, 50)}});
  event(decode(), wire::Tokens{{token(4, 51)}});
  event(decode(), finish());
  event(decode(), wire::Done{});
  advance(1000 * kMs);
  EXPECT_TRUE(tokens_.empty());
  EXPECT_TRUE(finishes_.empty());
  EXPECT_TRUE(done_.empty()) << "D is done, P is still sending";
  event(prefill(), wire::PromptLogprobs{{std::nullopt, token(1, 2), token(2, 3)}});
  EXPECT_EQ(prompt_logprobs_, 1);
  EXPECT_THAT(tokens_[0], ElementsAre(50, 51));
  EXPECT_EQ(finishes_.size(), 1u);
  event(prefill(), wire::Done{});
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_TRUE(done_[0].ok()) << done_[0].to_string();
}

TEST_F(CoreTest, PromptLogprobsThatNeverComeEndTheRequestInTime) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  wire::GenerateRequest r = request_of({1, 2, 3});
  r.sampling.prompt_logprobs = 1;
  submit(r);
  event(decode(), wire::Reserved{LeaseId(77)});
  event(decode(), wire::Committed{Attempt(1), {token(3, 50)}});
  event(decode(), finish());
  event(decode(), wire::Done{});
  for (int i = 0; i < 200 && done_.empty(); ++i) advance(500 * kMs);
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kUnavailable);
  EXPECT_TRUE(tokens_.empty()) << "an error comes before the first token or not at all";
  EXPECT_LE(now_, TimePoint(60000 * kMs));
}

// A stop string was found, or the client is content: that is no error, whatever has not come yet.
TEST_F(CoreTest, AClientThatEndsItAllDoesNotWaitForPromptLogprobs) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  wire::GenerateRequest r = request_of({1, 2, 3});
  r.sampling.prompt_logprobs = 1;
  const RequestKey key = submit(r);
  event(decode(), wire::Reserved{LeaseId(77)});
  core_->finish_choice(now_, key, 0);
  pump();
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_TRUE(done_[0].ok()) << done_[0].to_string();
  EXPECT_EQ(finishes_.size(), 1u);
  EXPECT_EQ(core_->open_legs(), 0u);
}

// It began to drain after its last poll, and there is no other of its role: the other role serves the request alone.
TEST_F(CoreTest, ARoleWhoseLastWorkerRefusesIsGone) {
  const Status draining(Code::kUnavailable, "d0 is draining");
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  ended(decode(), LegEnd::Kind::kRefused, draining);
  ASSERT_EQ(decodes_.size(), 2u);
  EXPECT_EQ(worker(decodes_[1].worker), "p0");
  EXPECT_TRUE(decodes_[1].body.local_prefill);
  EXPECT_EQ(polls_.back(), WorkerId(1)) << "is it gone?";
  submit(request_of({4, 5}));
  EXPECT_EQ(worker(decodes_.back().worker), "p0") << "nobody asks it again";
  core_->on_status(now_, WorkerId(1), healthy("d0", Role::kDecode));
  submit(request_of({6}));
  EXPECT_EQ(worker(decodes_.back().worker), "d0") << "until it says otherwise";

  event(decode(), wire::Reserved{LeaseId(77)});
  ended(prefill(), LegEnd::Kind::kRefused, Status(Code::kUnavailable, "p0 is draining"));
  EXPECT_EQ(worker(decodes_.back().worker), "d0");
  EXPECT_TRUE(decodes_.back().body.local_prefill);
  EXPECT_TRUE(done_.empty());
}

TEST_F(CoreTest, RoomIsWaitedForThoughAnotherWorkerDrains) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  ended(decode(), LegEnd::Kind::kRefused, Status(Code::kResourceExhausted, "no KV blocks"));
  ended(decode(), LegEnd::Kind::kRefused, Status(Code::kUnavailable, "draining"));
  EXPECT_TRUE(done_.empty());
  EXPECT_EQ(core_->stats().queued, 1u);
}

TEST_F(CoreTest, DrainingWorkersGetNothingNew) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  wire::WorkerStatus s = healthy("d0", Role::kDecode);
  s.draining = true;
  core_->on_status(now_, WorkerId(1), s);
  for (int i = 0; i < 4; ++i) submit(request_of({1, 2, 3}));
  for (const StartDecode& d : decodes_) EXPECT_EQ(worker(d.worker), "d1");
}

}  // namespace
}  // namespace baton::gateway
