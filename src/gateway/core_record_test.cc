// What the core says of requests: their record, the trace that they belong to, remarks for the log.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "gateway/test_core.h"
#include "wire/trace_context.h"

namespace baton::gateway {
namespace {

using Json = nlohmann::json;
using testing::CoreTest;
using ::testing::HasSubstr;
using testing::kLost;
using testing::kMs;
using testing::request_of;
using wire::Role;

TEST_F(CoreTest, EachLegIsAHopOfTheClientsTraceAndTheRecordNamesIt) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  wire::GenerateRequest traced = request_of({1, 2, 3});
  traced.traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  submit(traced);
  event(decode(), wire::Reserved{LeaseId(77)});
  ended(prefill(), LegEnd::Kind::kBroken, kLost);
  ASSERT_EQ(prefills_.size(), 2u);
  std::set<std::string> hops = {traced.traceparent};
  for (const std::string& hop :
       {decodes_[0].body.request.traceparent, prefills_[0].body.request.traceparent, prefills_[1].body.request.traceparent}) {
    EXPECT_EQ(wire::trace_id_of(hop), "4bf92f3577b34da6a3ce929d0e0e4736");
    EXPECT_TRUE(hops.insert(hop).second) << "a retry is a hop of its own: " << hop;
  }
  EXPECT_THAT(to_json(*core_->record(now_, "req-1")), HasSubstr(R"("trace_id":"4bf92f3577b34da6a3ce929d0e0e4736")"));
  for (const Remark& remark : remarks_) {
    EXPECT_EQ(remark.request, "req-1");
    EXPECT_EQ(remark.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
    EXPECT_EQ(remark.trouble, remark.text.starts_with("prefill_failed: ")) << remark.text;
  }
  EXPECT_THAT(remarks_, ::testing::Contains(::testing::Field(&Remark::text, HasSubstr("connection reset"))));
}

TEST_F(CoreTest, WithoutATraceNothingIsPassedOn) {
  start({{"w0", Role::kBoth}});
  submit(request_of({1, 2, 3}));
  EXPECT_EQ(decodes_[0].body.request.traceparent, "");
  EXPECT_THAT(to_json(*core_->record(now_, "req-1")), ::testing::Not(HasSubstr("trace_id")));
}

Json json_of(const RequestRecord& record) { return Json::parse(to_json(record)); }

wire::Served with_times(wire::HandoffTimes times) {
  wire::Served served;
  served.handoff = std::move(times);
  return served;
}

TEST_F(CoreTest, TheRecordPlacesWhatWorkersSayInTheRequestsOwnTime) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  advance(2 * kMs);
  event(decode(), wire::Reserved{LeaseId(77)});  // P's leg is sent at 2 ms, D's was at 0
  event(prefill(), wire::Started{});
  advance(18 * kMs);
  event(prefill(), wire::Tokens{{token(3, 7)}});
  wire::HandoffTimes at_d;
  at_d.attempt = prefills_.back().body.attempt, at_d.epoch = Epoch(9);
  at_d.attached_us = 3'000, at_d.granted_us = 3'100, at_d.commit_us = 19'000, at_d.ended_us = 19'500;
  at_d.verified_us = {8'000, 19'500}, at_d.verified_bytes = {640, 640};
  event(decode(), wire::Committed{at_d.attempt, {token(3, 7)}});
  event(decode(), with_times(at_d));
  advance(5 * kMs);
  wire::HandoffTimes at_p = at_d;
  at_p.started_us = 500, at_p.computed_us = at_p.first_token_us = 16'000, at_p.commit_us = 17'000, at_p.ended_us = 17'900;
  at_p.ready_us = {6'000, 16'000}, at_p.announced_us = {6'100, 16'500}, at_p.verified_us.clear(), at_p.verified_bytes.clear();
  at_p.chunks = {{2, 9'000}, {3, 16'000}};
  event(prefill(), with_times(at_p));

  const Json json = json_of(*core_->record(now_, "req-1"));
  ASSERT_EQ(json["handoffs"].size(), 1u);
  const Json& h = json["handoffs"][0];
  EXPECT_EQ(h["attempt"], at_d.attempt.value);
  EXPECT_EQ(h["epoch"], 9);
  EXPECT_EQ(h["prefill"]["worker"], "p0");
  EXPECT_EQ(h["prefill"]["incarnation"], 1);
  EXPECT_EQ(h["prefill"]["sent_ms"], 2.0);
  EXPECT_EQ(h["prefill"]["started_ms"], 2.5);
  EXPECT_EQ(h["prefill"]["first_token_ms"], 18.0);
  EXPECT_EQ(h["prefill"]["chunks"], Json::parse("[[2,11.0],[3,18.0]]"));
  EXPECT_DOUBLE_EQ(h["prefill"]["slack_ms"], 25 - 2 - 17.9) << "it came at 25 ms, the leg was sent at 2, and 17.9 of it are told of";
  EXPECT_EQ(h["decode"]["worker"], "d0");
  EXPECT_EQ(h["decode"]["sent_ms"], 0.0);
  EXPECT_EQ(h["decode"]["granted_ms"], 3.1);
  EXPECT_EQ(h["decode"]["slack_ms"], 0.5);
  EXPECT_FALSE(h["decode"].contains("started_ms")) << "D does not see it";
  EXPECT_EQ(h["layers"]["ready_ms"], Json::parse("[8.0,18.0]"));
  EXPECT_EQ(h["layers"]["announced_ms"], Json::parse("[8.1,18.5]"));
  EXPECT_EQ(h["layers"]["verified_ms"], Json::parse("[8.0,19.5]"));
  EXPECT_EQ(h["layers"]["bytes"], Json::parse("[640,640]"));
  EXPECT_FALSE(h.contains("numerics_ids")) << "they are equal";
  EXPECT_FALSE(served_.handoff) << "of no use to whoever answers the client";
}

TEST_F(CoreTest, TheRecordHasEveryAttemptWithItsFailureAndTheRetrysCause) {
  start({{"p0", Role::kPrefill}, {"p1", Role::kPrefill}, {"d0", Role::kDecode}});
  wire::WorkerStatus other = testing::healthy("d0", Role::kDecode);
  other.numerics_id = "avx2";
  core_->on_status(now_, WorkerId(2), other);
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  const Attempt first = prefills_.back().body.attempt;
  wire::HandoffTimes failed;
  failed.attempt = first, failed.ended_us = 100, failed.failure = Status(Code::kUnavailable, "the link was lost");
  failed.verified_us = {50, -1}, failed.verified_bytes = {640, 0};
  event(decode(), with_times(failed));
  ended(prefill(), LegEnd::Kind::kBroken, kLost);
  ASSERT_EQ(prefills_.size(), 2u);
  const Json json = json_of(*core_->record(now_, "req-1"));
  ASSERT_EQ(json["handoffs"].size(), 2u);
  EXPECT_THAT(json["handoffs"][0]["decode"]["failure"].get<std::string>(), HasSubstr("the link was lost"));
  EXPECT_EQ(json["handoffs"][0]["layers"]["verified_ms"], Json::parse("[0.05,null]"));
  EXPECT_EQ(json["handoffs"][0]["numerics_ids"], Json::parse(R"(["avx512-bf16","avx2"])"));
  EXPECT_NE(json["handoffs"][0]["prefill"]["worker"], json["handoffs"][1]["prefill"]["worker"]);
  EXPECT_GT(json["handoffs"][1]["attempt"], json["handoffs"][0]["attempt"]);
  ASSERT_EQ(json["retried"].size(), 1u);
  EXPECT_EQ(json["retried"][0]["event"], "prefill_failed");
  EXPECT_EQ(core_->stats().retries_prefill_lost, 1u);
  event(prefill(), wire::Failed{Status(Code::kUnavailable, "no")});
  EXPECT_EQ(core_->stats().retries_prefill_lost, 1u) << "it was there, and said that it failed";
  EXPECT_EQ(core_->stats().retries_prefill_failed, 2u);
  EXPECT_THAT(json["retried"][0]["detail"].get<std::string>(), HasSubstr("connection reset"));
}

TEST(RequestRecord, IsBoundedWhateverWorkersSay) {
  RequestRecord record;
  wire::HandoffTimes large;
  large.ready_us.assign(100'000, 1), large.announced_us = large.verified_us = large.verified_bytes = large.ready_us;
  large.chunks.assign(100'000, {1, 1});
  large.ended_us = std::numeric_limits<std::int64_t>::max();
  for (std::uint32_t i = 0; i < 100; ++i) {
    large.attempt = Attempt(100 - i);
    record.add_times(i % 2 == 0, "w", Duration(0), Duration(10), large);
    record.add(RequestRecord::Stall{});
  }
  ASSERT_EQ(record.handoffs.size(), RequestRecord::kHandoffsMax);
  EXPECT_TRUE(std::ranges::is_sorted(record.handoffs, {}, &RequestRecord::Handoff::attempt));
  EXPECT_EQ(record.stalls.size(), RequestRecord::kStallsMax);
  const Json json = json_of(record);
  EXPECT_EQ(json["handoffs_dropped"], 100 - RequestRecord::kHandoffsMax);
  EXPECT_EQ(json["stalls_dropped"], 100 - RequestRecord::kStallsMax);
  EXPECT_EQ(json["handoffs"][1]["layers"]["ready_ms"].size(), wire::HandoffTimes::kLayersMax);
  EXPECT_EQ(json["handoffs"][1]["prefill"]["chunks"].size(), wire::HandoffTimes::kChunksMax);
}

// From the last word of the worker that was lost to the next token, whatever happens between.
TEST_F(CoreTest, AStallLastsFromTheLostWorkersLastWordToTheNextToken) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  up_to_commit(3, 10);
  advance(30 * kMs);
  event(decode(), wire::Tokens{{token(4, 11)}});
  EXPECT_EQ(core_->record(now_, "req-1")->stalls.size(), 0u);
  advance(100 * kMs);
  ended(decode(), LegEnd::Kind::kBroken, kLost);  // last heard of at 30 ms, lost at 130
  advance(50 * kMs);
  event(decode(), wire::Reserved{LeaseId(78)});
  event(prefill(), wire::Started{});
  ended(prefill(), LegEnd::Kind::kBroken, kLost);  // another failure amid it is the same stall
  advance(70 * kMs);
  event(prefill(), wire::Tokens{{token(5, 12)}});
  event(decode(), wire::Committed{prefills_.back().body.attempt, {token(5, 12)}});
  const auto record = core_->record(now_, "req-1");
  ASSERT_EQ(record->stalls.size(), 1u);
  EXPECT_EQ(record->stalls[0].at, 30 * kMs);
  EXPECT_EQ(record->stalls[0].took, 220 * kMs);
  EXPECT_TRUE(record->stalls[0].resumed);
  EXPECT_THAT(record->stalls[0].cause, HasSubstr("connection reset"));
  const Json json = json_of(*record);
  EXPECT_EQ(json["stalls"][0]["at_ms"], 30.0);
  EXPECT_EQ(json["stalls"][0]["took_ms"], 220.0);
  const Stats stats = core_->stats();
  EXPECT_EQ(stats.stalled, 220 * kMs);
  EXPECT_EQ(stats.stalls[4], 1u) << "above 0.1 s, up to 0.25 s";
  EXPECT_EQ(std::accumulate(stats.stalls.begin(), stats.stalls.end(), std::uint64_t{0}), 1u);
}

TEST_F(CoreTest, AFailureBeforeTheFirstTokenIsNoStallAndOneThatEndsTheRequestIs) {
  CoreOptions options;
  options.fallback = Fallback::kFail;
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}}, options);
  submit(request_of({1, 2, 3}));
  ended(decode(), LegEnd::Kind::kBroken, kLost);
  up_to_commit(3, 10);
  EXPECT_EQ(core_->record(now_, "req-1")->stalls.size(), 0u);
  const TimePoint heard = now_;
  advance(40 * kMs);
  core_->on_poll_failed(now_, WorkerId(1), true, "refused"), pump();  // the only decode worker, gone for good
  ASSERT_EQ(done_.size(), 1u);
  const auto record = core_->record(now_, "req-1");
  ASSERT_EQ(record->stalls.size(), 1u);
  EXPECT_EQ(record->stalls[0].at, heard - TimePoint());
  EXPECT_EQ(record->stalls[0].took, 40 * kMs);
  EXPECT_FALSE(record->stalls[0].resumed);
}

TEST_F(CoreTest, WhoeverServesAloneForALostRoleSaysSo) {
  for (const bool decode_lives : {false, true}) {
    start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
    served_ = {};
    submit(request_of({1, 2, 3}));
    EXPECT_EQ(served_.fallback, "");
    core_->on_poll_failed(now_, WorkerId(decode_lives ? 0 : 1), true, "refused"), pump();
    wire::GenerateRequest second = request_of({1, 2, 3});
    second.id = "req-2";
    submit(second);
    EXPECT_TRUE(decodes_.back().body.local_prefill);
    EXPECT_EQ(worker(decode_worker()), decode_lives ? "d0" : "p0");
    EXPECT_EQ(served_.fallback, decode_lives ? "no live prefill worker" : "no live decode worker");
    EXPECT_EQ(json_of(*core_->record(now_, "req-2"))["handoffs"][0]["local"], true);
  }
  CoreOptions fail;
  fail.fallback = Fallback::kFail;
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}}, fail);
  core_->on_poll_failed(now_, WorkerId(1), true, "refused"), pump();
  done_.clear();
  served_ = {};
  submit(request_of({1, 2, 3}));
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kUnavailable);
  EXPECT_EQ(served_.fallback, "");
}

}  // namespace
}  // namespace baton::gateway
