#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "app/chaos/fault_plan.h"
#include "app/chaos/report.h"
#include "app/chaos/requests.h"
#include "app/chaos/stalls.h"
#include "app/chaos/stream_record.h"

namespace baton::app {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(FaultPlan, ParsesKinds) {
  EXPECT_THAT(*parse_faults("kill,proxy,kill"), ElementsAre(FaultKind::kKill, FaultKind::kProxy));
  EXPECT_TRUE(parse_faults("none")->empty());
  EXPECT_EQ(parse_faults("all")->size(), std::size(kFaultKinds));
  EXPECT_THAT(parse_faults("kill,flood").status().message(), HasSubstr("`flood`"));
  EXPECT_FALSE(parse_faults("").ok());
}

TEST(FaultPlan, IsAFunctionOfTheSeedInOrderAndAtItsRate) {
  FaultPlanOptions options;
  options.kinds = *parse_faults("all");
  options.seed = 7;
  FaultPlan a(options), b(options);
  Duration last{};
  int kills = 0;
  std::set<FaultKind> kinds;
  while (last < std::chrono::seconds(1000)) {
    const Fault x = *a.next(), y = *b.next();
    EXPECT_EQ(std::tie(x.at, x.kind, x.target, x.path), std::tie(y.at, y.kind, y.target, y.path));
    EXPECT_GE(x.at, last);
    last = x.at;
    kills += x.kind == FaultKind::kKill;
    kinds.insert(x.kind);
  }
  EXPECT_NEAR(kills, 200, 20);
  EXPECT_EQ(kinds.size(), std::size(kFaultKinds));
  options.kinds.clear();
  EXPECT_EQ(FaultPlan(options).next(), std::nullopt);
}

TEST(ChaosRequests, AreAFunctionOfTheSeedAndHoldEverything) {
  const auto requests = make_requests(200, 3);
  const auto again = make_requests(200, 3);
  std::set<std::string> seen;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(requests[i].body, again[i].body);
    EXPECT_TRUE(requests[i].body["stream"].get<bool>());
    seen.insert(requests[i].path);
    for (const auto& [key, value] : requests[i].body.items()) seen.insert(key);
    // Without a seed of its own a sampled answer could not be had twice.
    EXPECT_TRUE(requests[i].body.contains("seed") || requests[i].body["temperature"] == 0) << requests[i].body;
  }
  for (const char* part : {"/v1/completions", "/v1/chat/completions", "seed", "n", "stop", "logprobs", "top_logprobs", "repetition_penalty",
                           "presence_penalty", "logit_bias", "top_p", "top_k", "min_p", "ignore_eos"})
    EXPECT_TRUE(seen.contains(part)) << part;
}

// An answer of one choice whose ids are these and whose text is a letter for each.
StreamRecord answer(std::vector<int> ids, const std::string& finish = "length", int prompt = 5) {
  StreamRecord record;
  for (const int id : ids)
    EXPECT_TRUE(record.on_event(
        nlohmann::json{{"choices", {{{"index", 0}, {"text", std::string(1, static_cast<char>('a' + id))}, {"token_ids", {id}}}}}}.dump()));
  record.on_event(nlohmann::json{{"choices", {{{"index", 0}, {"text", ""}, {"finish_reason", finish}}}}}.dump());
  record.on_event(
      nlohmann::json{{"choices", nlohmann::json::array()}, {"usage", {{"prompt_tokens", prompt}, {"completion_tokens", ids.size()}}}}
          .dump());
  record.on_event("[DONE]");
  EXPECT_TRUE(record.done());
  EXPECT_EQ(record.error(), "");
  return record;
}

TEST(StreamRecord, NamesWhatIsWrong) {
  const StreamRecord right = answer({1, 2, 3, 4, 5, 6});
  EXPECT_EQ(compare(right, answer({1, 2, 3, 4, 5, 6})), std::nullopt);
  EXPECT_EQ(compare(right, answer({1, 2, 5, 6}))->difference, Difference::kMissing);
  EXPECT_EQ(compare(right, answer({1, 2, 3, 2, 3, 4, 5, 6}))->difference, Difference::kRepeated);
  EXPECT_EQ(compare(right, answer({1, 2, 3, 9, 5, 6}))->difference, Difference::kWrongToken);
  EXPECT_THAT(compare(right, answer({1, 2, 3, 9, 5, 6}))->what, HasSubstr("token 3"));
  EXPECT_EQ(compare(right, answer({1, 2, 3, 4, 5, 6}, "stop"))->difference, Difference::kFinish);
  EXPECT_EQ(compare(right, answer({1, 2, 3, 4, 5, 6}, "length", 6))->difference, Difference::kUsage);
}

TEST(StreamRecord, LogprobsAreComparedWhereverTheEventsWereCut) {
  const auto with = [](std::vector<std::string> events) {
    StreamRecord record;
    for (const std::string& event : events) record.on_event(event);
    record.on_event(R"({"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1}})");
    return record;
  };
  const StreamRecord right = with({R"({"choices":[{"index":0,"token_ids":[1],"logprobs":{"token_logprobs":[-0.5]}}]})"});
  EXPECT_EQ(compare(right, with({R"({"choices":[{"index":0,"token_ids":[1],"logprobs":{"token_logprobs":[-0.25]}}]})"}))->difference,
            Difference::kLogprobs);
  EXPECT_EQ(compare(right, with({R"({"choices":[{"index":0,"token_ids":[1],"logprobs":null}]})",
                                 R"({"choices":[{"index":0,"logprobs":{"token_logprobs":[-0.5]}}]})"})),
            std::nullopt);
}

TEST(StreamRecord, KeepsErrors) {
  StreamRecord record;
  EXPECT_FALSE(record.on_event(R"({"error":{"message":"gone"}})"));
  EXPECT_THAT(record.error(), HasSubstr("gone"));
  StreamRecord late = answer({1});
  late.on_event(R"({"choices":[]})");
  EXPECT_THAT(late.error(), HasSubstr("behind [DONE]"));
}

StreamOutcome moved_stream() {
  StreamOutcome stream;
  stream.id = "chaos-1";
  stream.sent = TimePoint(std::chrono::seconds(10));
  for (const int ms : {200, 300, 400, 900, 1000}) stream.token_times.push_back(stream.sent + milliseconds(ms));
  stream.served = R"({"events":[{"ms":0,"event":"arrived"},{"ms":190,"event":"committed","detail":"d0, attempt 1"},
    {"ms":450,"event":"decode_failed","detail":"gone"},{"ms":460,"event":"reserved","detail":"d1"},
    {"ms":500,"event":"prefill_started","detail":"p0"},{"ms":880,"event":"committed","detail":"d1, attempt 2"}]})";
  return stream;
}

TEST(Stalls, AreTheGapAroundTheFaultAndItsParts) {
  const StreamOutcome stream = moved_stream();
  Befallen fault{stream.sent + milliseconds(430), FaultKind::kKill, "d0", true, ""};
  const auto stall = find_stall(stream, fault);
  ASSERT_TRUE(stall);
  EXPECT_DOUBLE_EQ(stall->gap_ms, 500);
  EXPECT_DOUBLE_EQ(stall->noticed_ms, 50);
  EXPECT_DOUBLE_EQ(stall->reserved_ms, 10);
  EXPECT_DOUBLE_EQ(stall->queued_ms, 40);
  EXPECT_DOUBLE_EQ(stall->prefill_ms, 380);
  EXPECT_DOUBLE_EQ(stall->resumed_ms, 20);
  EXPECT_DOUBLE_EQ(stall->beyond_prefill_ms(), 120);
  fault.target = "d1";
  EXPECT_FALSE(find_stall(stream, fault));
  fault = {stream.sent + milliseconds(950), FaultKind::kKill, "d1", true, ""};
  EXPECT_FALSE(find_stall(stream, fault));  // it had all it wanted before anybody noticed
}

TEST(Stalls, OfAStreamThatWasOnItsWayBelongToTheFaultThatMovedIt) {
  StreamOutcome stream = moved_stream();
  stream.served = R"({"events":[{"ms":190,"event":"committed","detail":"d0, attempt 1"},{"ms":450,"event":"decode_failed"},
    {"ms":600,"event":"decode_failed"},{"ms":880,"event":"committed","detail":"d1, attempt 3"}]})";
  EXPECT_TRUE(find_stall(stream, {stream.sent + milliseconds(430), FaultKind::kKill, "d0", true, ""}));
  EXPECT_FALSE(find_stall(stream, {stream.sent + milliseconds(500), FaultKind::kTerm, "d0", true, ""}));
}

TEST(ChaosReport, FailsOnAnythingThatIsWrong) {
  std::vector<StreamOutcome> expected(3), seen(3);
  for (StreamOutcome& stream : expected) stream.record = answer({1, 2, 3});
  seen[0].record = answer({1, 2, 3});
  seen[1].record = answer({1, 3});
  seen[2].failure = "the stream ended without [DONE]";
  ChaosReport report;
  report.workers = 4;
  EXPECT_TRUE(report.passed());
  report.compare_all(expected, seen);
  EXPECT_FALSE(report.passed());
  EXPECT_EQ(report.right, 1u);
  EXPECT_EQ(report.lost, 1u);
  EXPECT_EQ(to_json(report)["wrong_by_kind"]["missing tokens"], 1);
  EXPECT_THAT(table(report), HasSubstr("1 of 3 right, 1 lost, 1 wrong"));

  ChaosReport held;
  held.unbalanced["d0"] = imbalance(R"({"running":0,"waiting":0,"blocks_total":9,"blocks_free":5,"blocks_cached":3})");
  EXPECT_FALSE(held.passed());
  EXPECT_THAT(table(held), HasSubstr("5 free + 3 cached of 9"));
  ChaosReport crashed;
  crashed.crashes.push_back("p0 killed by signal 11");
  EXPECT_FALSE(crashed.passed());
}

TEST(ChaosReport, BalancedIsNothingHeld) {
  EXPECT_EQ(imbalance(R"({"running":0,"waiting":0,"blocks_total":9,"blocks_free":5,"blocks_cached":4})"), "");
  EXPECT_NE(imbalance(R"({"running":1,"waiting":0,"blocks_total":9,"blocks_free":5,"blocks_cached":4})"), "");
  EXPECT_NE(imbalance(""), "");
}

}  // namespace
}  // namespace baton::app
