// Who may come in, who waits, and who gets room.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "gateway/test_core.h"

namespace baton::gateway {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::healthy;
using testing::kLost;
using testing::request_of;
using wire::Role;

class CoreQueueTest : public testing::CoreTest {
 protected:
  void start_narrow(CoreOptions options = {}, int max_num_seqs = 1) {
    start({{"w0", Role::kBoth}}, std::move(options));
    report(0, [&](auto& s) { s.max_num_seqs = max_num_seqs; });
  }
  template <class Change>
  void report(int worker, Change change) {
    const auto& config = core_->registry().at(WorkerId(worker)).config;
    wire::WorkerStatus s = healthy(config.name, config.role);
    change(s);
    core_->on_status(now_, WorkerId(worker), s);
    pump();
  }
  static wire::GenerateRequest named(std::string id, std::int32_t tenant = 0, int prompt = 3) {
    auto r = request_of(std::vector<TokenId>(static_cast<std::size_t>(prompt), 7));
    r.id = std::move(id);
    r.tenant = tenant;
    r.timeout = seconds(600);
    return r;
  }
  // A leg that decodes alone ends.
  void complete(LegId leg, int prompt = 3) {
    event(leg, wire::Tokens{{token(prompt, 9)}});
    event(leg, finish());
    event(leg, wire::Done{});
  }
  const std::string& latest() const { return decodes_.back().body.request.id; }
  static std::vector<Tenant> tenants() {
    std::vector<Tenant> all(3);
    all[0].name = "none", all[1].name = "flood", all[2].name = "calm";
    return all;
  }
};

TEST_F(CoreQueueTest, AShortPromptOvertakesALongOneByABoundedTime) {
  start_narrow();
  submit(named("running"));
  submit(named("long", 0, 10'000));  // 10 s to prefill
  now_ += seconds(19);
  submit(named("short"));
  now_ += seconds(2);
  submit(named("late short"));
  complete(decode());
  EXPECT_EQ(latest(), "short");
  complete(decode());
  EXPECT_EQ(latest(), "long") << "it has waited long enough";
  complete(decode(), 10'000);
  EXPECT_EQ(latest(), "late short");
}

TEST_F(CoreQueueTest, AStreamThatWasCutGoesOnBeforeAnybodyBegins) {
  start({{"w0", Role::kBoth}, {"w1", Role::kBoth}});
  for (int w : {0, 1}) report(w, [](auto& s) { s.max_num_seqs = 1; });
  submit(named("a"));
  submit(named("b"));
  auto urgent = named("urgent");
  urgent.priority = -6;
  submit(std::move(urgent));
  ASSERT_EQ(decodes_.size(), 2u);
  event(decodes_[1].leg, wire::Tokens{{token(3, 9)}});
  ended(decodes_[1].leg, LegEnd::Kind::kBroken, kLost);  // it comes back to a full house
  core_->on_poll_failed(now_, decodes_[1].worker, true, "connection refused");
  pump();
  ASSERT_EQ(decodes_.size(), 3u);
  EXPECT_EQ(latest(), "b") << "asked again at once, as a last resort";
  ended(decode(), LegEnd::Kind::kUnreachable, kLost);
  complete(decodes_[0].leg);
  EXPECT_EQ(latest(), "b");
  EXPECT_THAT(decodes_.back().body.request.ids, ElementsAre(7, 7, 7, 9));
}

// --- in time or not at all

TEST_F(CoreQueueTest, WhatCannotBeInTimeAnyMoreIsNotComputedInVain) {
  start_narrow();
  submit(named("running"));
  auto r = named("late", 0, 5000);  // 5 s to prefill
  r.timeout = seconds(20);
  submit(std::move(r));
  EXPECT_EQ(core_->next_deadline(), TimePoint{} + seconds(15));
  advance(seconds(14));
  EXPECT_TRUE(done_.empty());
  advance(seconds(1));
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kResourceExhausted);
  EXPECT_THAT(done_[0].message(), HasSubstr("is less than its prefill takes"));
  EXPECT_GE(done_[0].retry_after_s(), 1);
  complete(decode());
  EXPECT_EQ(decodes_.size(), 1u) << "it is not sent";
}

TEST_F(CoreQueueTest, RoomThatComesTooLateIsNotUsed) {
  start_narrow();
  submit(named("running"));
  auto r = named("late", 0, 5000);
  r.timeout = seconds(20);
  submit(std::move(r));
  now_ += seconds(16);  // the leg's end is read before the timer fires
  complete(decode());
  EXPECT_EQ(decodes_.size(), 1u);
  ASSERT_EQ(done_.size(), 2u);
  EXPECT_EQ(done_[1].code() == Code::kResourceExhausted ? done_[1].code() : done_[0].code(), Code::kResourceExhausted);
}

TEST_F(CoreQueueTest, AStreamThatHasBegunWaitsUntilItsDeadline) {
  start_narrow();
  auto r = named("begun", 0, 5000);
  r.timeout = seconds(20);
  submit(std::move(r));
  event(decode(), wire::Tokens{{token(5000, 9)}});
  ended(decode(), LegEnd::Kind::kRefused, Status(Code::kResourceExhausted, "no KV blocks"));
  advance(seconds(19));
  EXPECT_TRUE(done_.empty());
  advance(seconds(1));
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kDeadlineExceeded);
}

// --- refused when they come

TEST_F(CoreQueueTest, ABacklogBeyondTheDeadlineIsRefusedAtOnceWithTheTimeToWait) {
  start({{"p0", Role::kPrefill}, {"p1", Role::kPrefill}, {"d0", Role::kDecode}});
  for (int p : {0, 1}) report(p, [](auto& s) { s.queued_prefill_tokens = 50'000, s.prefill_tokens_per_s = 2000; });
  auto r = named("a");
  r.timeout = seconds(26);
  submit(r);
  EXPECT_TRUE(done_.empty()) << "25 s";
  r.timeout = seconds(10);
  submit(r);
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kResourceExhausted);
  EXPECT_EQ(done_[0].retry_after_s(), 16) << "25 s and a few ms, of which 10 may be waited";
  EXPECT_THAT(done_[0].message(), HasSubstr("its time-out is 10000 ms"));
  EXPECT_EQ(core_->stats().rejected, 1u);
  EXPECT_EQ(decodes_.size(), 1u);
}

TEST_F(CoreQueueTest, AQueueOverItsLimitIsRefusedAtOnceWithTheTimeToDrain) {
  CoreOptions options;
  options.queue_wait_max = seconds(25);
  start_narrow(options);
  submit(named("first"));
  now_ += seconds(10);
  complete(decode());  // so long does one hold its place
  submit(named("running"));
  submit(named("second"));
  submit(named("third"));
  EXPECT_EQ(done_.size(), 1u) << "20 s are within the limit";
  submit(named("fourth"));
  ASSERT_EQ(done_.size(), 2u);
  EXPECT_EQ(done_[1].code(), Code::kResourceExhausted);
  EXPECT_EQ(done_[1].retry_after_s(), 5) << "three of 10 s each are 5 s too many";
  EXPECT_THAT(done_[1].message(), HasSubstr("the queue is 30000 ms long, over the limit of 25000 ms (--max-queue-wait); retry after 5 s"));
  auto urgent = named("urgent");
  urgent.priority = -1;
  submit(std::move(urgent));
  EXPECT_EQ(done_.size(), 2u) << "it waits for the one that runs only";
}

TEST_F(CoreQueueTest, WithoutMeasurementsNobodyIsRefused) {
  CoreOptions options;
  options.queue_wait_max = seconds(1);
  start_narrow(options);
  report(0, [](auto& s) { s.max_num_seqs = 1, s.prefill_tokens_per_s = 0, s.queued_prefill_tokens = 1'000'000; });
  for (int i = 0; i < 10; ++i) submit(named(std::to_string(i)));
  EXPECT_TRUE(done_.empty());
  EXPECT_EQ(core_->stats().waiting, 10u);
}

TEST_F(CoreQueueTest, TheHouseIsFull) {
  CoreOptions options;
  options.requests_max = 4;
  options.tenants = tenants();
  start_narrow(options);
  submit(named("first"));
  now_ += seconds(6);
  complete(decode());
  done_.clear();
  for (int i = 0; i < 4; ++i) submit(named("flood-" + std::to_string(i), 1));
  EXPECT_TRUE(done_.empty());
  submit(named("flood-4", 1));
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_THAT(done_[0].message(), HasSubstr("4 requests are in flight (--max-requests); retry after 6 s")) << "one ends in that time";
  submit(named("calm", 2));
  ASSERT_EQ(done_.size(), 2u);
  EXPECT_THAT(done_[1].message(), HasSubstr("lost its place in the queue to a key with fewer requests"));
  EXPECT_EQ(core_->record(now_, "flood-3")->status.code(), Code::kResourceExhausted) << "the last of the flood";
  complete(decode());
  EXPECT_EQ(latest(), "calm") << "and it is its turn, too";
}

// --- keys

TEST_F(CoreQueueTest, AKeyThatFloodsTakesTurnsWithTheOthers) {
  CoreOptions options;
  options.tenants = tenants();
  start_narrow(options);
  for (int i = 0; i < 30; ++i) submit(named("flood-" + std::to_string(i), 1));
  now_ += seconds(30);
  for (int i = 0; i < 3; ++i) submit(named("calm-" + std::to_string(i), 2));
  std::vector<std::string> order;
  for (int i = 0; i < 6; ++i) {
    complete(decode());
    order.push_back(latest());
  }
  EXPECT_THAT(order, ElementsAre("calm-0", "flood-1", "calm-1", "flood-2", "calm-2", "flood-3"));
}

TEST_F(CoreQueueTest, AKeyThatFoundNoRoomHasNotHadItsTurn) {
  CoreOptions options;
  options.tenants = tenants();
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}}, options);
  submit(named("big", 1, 1000));
  ended(decode(), LegEnd::Kind::kRefused, Status(Code::kResourceExhausted, "no KV blocks"));
  now_ += seconds(30);
  submit(named("small", 2));
  ASSERT_EQ(decodes_.size(), 2u) << "nobody else asks before it has its answer";
  EXPECT_EQ(latest(), "big") << "neither has had anything yet, and it is due first";
}

TEST_F(CoreQueueTest, AKeysLimitsAreItsOwn) {
  CoreOptions options;
  options.tenants = tenants();
  options.tenants[1].requests_max = 1;
  options.tenants[2].tokens_per_minute = 60;
  start({{"w0", Role::kBoth}}, options);
  const RequestKey key = submit(named("a", 1));
  submit(named("b", 1));
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_THAT(done_[0].to_string(), HasSubstr("key flood has 1 requests in flight"));
  EXPECT_GE(done_[0].retry_after_s(), 1);
  core_->cancel(now_, key);
  submit(named("c", 1));
  EXPECT_EQ(done_.size(), 1u);

  submit(named("d", 2, 58));
  event(decode(), wire::Tokens{{token(58, 1), token(59, 2), token(60, 3)}});
  submit(named("e", 2));
  ASSERT_EQ(done_.size(), 2u);
  EXPECT_EQ(done_[1].code(), Code::kResourceExhausted);
  EXPECT_THAT(done_[1].message(), HasSubstr("key calm has used its 60 tokens a minute; retry after 2 s")) << "output counts";
  advance(seconds(2));
  submit(named("f", 2));
  EXPECT_EQ(done_.size(), 2u);

  const auto stats = core_->tenants();
  EXPECT_EQ(stats[1].requests, 2u);
  EXPECT_EQ(stats[1].rejected, 1u);
  EXPECT_EQ(stats[2].tokens, 58u + 3u + 3u);
}

// --- what a prefill worker is given

TEST_F(CoreQueueTest, APrefillWorkerIsGivenNoMoreThanItsPoolHolds) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  report(0, [](auto& s) { s.blocks_total = s.blocks_free = 10; });  // of 4 tokens
  for (int i = 0; i < 4; ++i) submit(named(std::to_string(i), 0, 15));
  const Worker& p0 = core_->registry().at(WorkerId(0));
  EXPECT_EQ(decodes_.size(), 2u) << "4 blocks each: a third is not even reserved";
  EXPECT_EQ(p0.prefill_blocks, 8);
  event(decodes_[0].leg, wire::Reserved{LeaseId(1)});
  event(decodes_[1].leg, wire::Reserved{LeaseId(2)});
  EXPECT_EQ(prefills_.size(), 2u);
  EXPECT_EQ(p0.prefill_blocks, 8) << "what was planned is sent";
  report(0, [](auto& s) { s.blocks_total = s.blocks_free = 10; });
  EXPECT_EQ(decodes_.size(), 2u);
  EXPECT_TRUE(done_.empty());
  event(prefills_[0].leg, wire::Tokens{{token(15, 5)}});
  event(decodes_[0].leg, wire::Committed{prefills_[0].body.attempt, {token(15, 5)}});
  EXPECT_EQ(decodes_.size(), 2u) << "P holds it until it is acknowledged";
  event(prefills_[0].leg, wire::Done{});
  ASSERT_EQ(decodes_.size(), 3u);
  EXPECT_EQ(p0.prefill_blocks, 8);
  core_->on_poll_failed(now_, WorkerId(1), true, "connection refused");  // plans and legs are gone with it
  core_->on_poll_failed(now_, WorkerId(0), true, "connection refused");
  pump();
  EXPECT_EQ(p0.prefill_blocks, 0);
}

TEST_F(CoreQueueTest, APromptLargerThanAnyPoolIsTheWorkersToRefuse) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  report(0, [](auto& s) { s.blocks_total = s.blocks_free = 10; });
  submit(named("huge", 0, 500));
  EXPECT_EQ(decodes_.size(), 1u);
}

// The prefill worker dies that was to have it, and the other one is full: the reservation is given back, and it waits.
TEST_F(CoreQueueTest, ALostPrefillWorkersPromptsWaitForRoomOnTheOther) {
  start({{"p0", Role::kPrefill}, {"p1", Role::kPrefill}, {"d0", Role::kDecode}});
  for (int p : {0, 1}) report(p, [](auto& s) { s.blocks_total = s.blocks_free = 5; });
  submit(named("a", 0, 16));
  submit(named("b", 0, 16));
  event(decodes_[0].leg, wire::Reserved{LeaseId(1)});
  event(decodes_[1].leg, wire::Reserved{LeaseId(2)});
  ASSERT_EQ(prefills_.size(), 2u);
  ASSERT_NE(prefills_[0].worker, prefills_[1].worker);
  core_->on_poll_failed(now_, prefills_[0].worker, true, "connection refused");
  pump();
  EXPECT_EQ(prefills_.size(), 2u);
  EXPECT_THAT(cancelled_, ::testing::Contains(decodes_[0].leg));
  EXPECT_LE(core_->registry().at(prefills_[1].worker).prefill_blocks, 5);
  event(prefills_[1].leg, wire::Tokens{{token(16, 5)}});
  event(decodes_[1].leg, wire::Committed{prefills_[1].body.attempt, {token(16, 5)}});
  event(prefills_[1].leg, wire::Done{});
  ASSERT_EQ(decodes_.size(), 3u);
  EXPECT_EQ(latest(), "a");
  event(decode(), wire::Reserved{LeaseId(3)});
  ASSERT_EQ(prefills_.size(), 3u);
  EXPECT_EQ(prefills_[2].worker, prefills_[1].worker);
  EXPECT_TRUE(done_.empty());
}

// Kept KV keeps nobody out, since its worker drops it where a prompt needs the room; and a claim for it takes no more than there is.
TEST_F(CoreQueueTest, KeptKvIsNoPromptUnderWay) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  report(0, [](auto& s) { s.blocks_total = s.blocks_free = 4; });
  submit(named("a", 0, 16));
  event(decode(), wire::Reserved{LeaseId(77)});
  const LegId held = prefill();
  ended(decode(), LegEnd::Kind::kBroken, kLost);
  ASSERT_EQ(decodes_.size(), 2u);
  EXPECT_EQ(core_->registry().at(WorkerId(0)).prefill_blocks, 4) << "it computes";
  event(held, wire::Retained{HoldId(77), kLost});
  EXPECT_EQ(core_->registry().at(WorkerId(0)).prefill_blocks, 0);
  event(decode(), wire::Reserved{LeaseId(88)});
  ASSERT_EQ(prefills_.size(), 2u);
  EXPECT_EQ(prefills_[1].body.claim, HoldId(77));
  EXPECT_EQ(core_->registry().at(WorkerId(0)).prefill_blocks, 4);
  event(prefill(), wire::Claimed{true});
  EXPECT_EQ(core_->registry().at(WorkerId(0)).prefill_blocks, 4);
}

}  // namespace
}  // namespace baton::gateway
