#include "app/bench/compare/result.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/bench/compare/text_report.h"

namespace baton::app {
namespace {

using testing::HasSubstr;
using testing::Not;

// Twenty requests of five tokens each, whose gaps are `gap_ms`.
std::vector<RequestOutcome> outcomes(double ttft_ms, double gap_ms, double start_every = 0.5, std::size_t n = 20) {
  std::vector<RequestOutcome> out(n);
  for (std::size_t i = 0; i < n; ++i) {
    RequestOutcome& o = out[i];
    o.ok = true;
    o.start = start_every * static_cast<double>(i + 1);
    o.ttft = ttft_ms / 1e3;
    o.itl.assign(4, gap_ms / 1e3);
    o.latency = o.ttft + 4 * gap_ms / 1e3;
    o.input_tokens = 10;
    o.output_tokens = 5;
  }
  return out;
}

ArmRun run(double ttft_ms, double gap_ms, int repeat, double rate = 2, Purpose purpose = Purpose::kMeasure,
           const std::map<std::string, double>& goodput = {}) {
  Step step;
  step.purpose = purpose;
  step.rate = rate;
  step.repeat = repeat;
  auto o = outcomes(ttft_ms, gap_ms);
  const double duration = o.back().start + o.back().latency;
  return make_run(step, std::move(o), duration, goodput);
}

ArmResult arm(const std::string& name, std::vector<std::pair<double, double>> ttft_and_gap_ms, bool disaggregated = false) {
  ArmResult out;
  out.arm.name = name;
  out.arm.disaggregated = disaggregated;
  int repeat = 0;
  for (const auto& [ttft, gap] : ttft_and_gap_ms) out.runs.push_back(run(ttft, gap, repeat++));
  return out;
}

Comparison comparison(std::vector<ArmResult> arms) {
  Comparison c;
  c.model = "m";
  c.rate = 2;
  c.repeats = 3;
  c.requests = 20;
  c.devices = 2;
  c.arms = std::move(arms);
  return c;
}

TEST(Result, FiguresAreMediansOverRepeatsWithTheirRange) {
  const ArmResult a = arm("a", {{100, 10}, {300, 30}, {200, 20}});
  const Figure ttft = *figure(a, measure("mean_ttft"));
  EXPECT_NEAR(ttft.median, 200, 1e-9);
  EXPECT_NEAR(ttft.low, 100, 1e-9);
  EXPECT_NEAR(ttft.high, 300, 1e-9);
  EXPECT_NEAR(ttft.spread(), 1, 1e-9);
  EXPECT_NEAR(figure(a, measure("p99_itl"))->median, 20, 1e-9);
  EXPECT_EQ(figure(ArmResult{}, measure("mean_ttft")), std::nullopt);
}

TEST(Result, DifferencesAreOfMediansAgainstTheFirst) {
  const ArmResult a = arm("a", {{100, 10}}), b = arm("b", {{150, 5}});
  EXPECT_NEAR(*difference(b, a, measure("mean_ttft")), 0.5, 1e-9);
  EXPECT_NEAR(*difference(b, a, measure("p99_itl")), -0.5, 1e-9);
  EXPECT_EQ(difference(ArmResult{}, a, measure("mean_ttft")), std::nullopt);
}

TEST(Result, SearchAndSweepRunsAreNotRepeats) {
  ArmResult a = arm("a", {{100, 10}});
  a.runs.push_back(run(900, 90, 0, 1, Purpose::kSearch));
  a.runs.push_back(run(800, 80, 0, 3, Purpose::kSweep));
  EXPECT_EQ(a.measured().size(), 1U);
  EXPECT_NEAR(figure(a, measure("mean_ttft"))->median, 100, 1e-9);
}

TEST(Result, KindsOfRequestsApart) {
  auto o = outcomes(100, 10);
  for (std::size_t i = 0; i < o.size(); i += 5) o[i].itl.assign(4, 0.5);
  for (std::size_t i = 0; i < o.size(); ++i) o[i].kind = i % 5 == 0 ? "long" : "chat";
  ArmResult a;
  a.arm.name = "a";
  Step step;
  step.purpose = Purpose::kMeasure;
  step.rate = 2;
  a.runs.push_back(make_run(step, o, 11, {}));
  const auto rows = kind_rows(comparison({a}));
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0].kind, "chat");
  EXPECT_NEAR(rows[0].p99_itl_ms, 10, 1e-9);
  EXPECT_NEAR(rows[1].p99_itl_ms, 500, 1e-9);
  EXPECT_THAT(table(comparison({a})), HasSubstr("P99/median"));
  EXPECT_THAT(table(comparison({arm("a", {{1, 1}})})), Not(HasSubstr("P99/median")));
}

TEST(Result, BestGoodputIsTheMedianAtTheBestFiniteRate) {
  ArmResult a;
  a.runs.push_back(run(100, 10, 0, 0, Purpose::kSearch, {{"ttft", 300}}));
  a.runs.push_back(run(1, 10, 0, 9, Purpose::kSearch, {{"ttft", 300}}));  // no other arm was given this rate
  a.runs.push_back(run(100, 10, 0, 2, Purpose::kMeasure, {{"ttft", 300}}));
  a.runs.push_back(run(400, 10, 1, 2, Purpose::kMeasure, {{"ttft", 300}}));  // none keeps the limit
  a.runs.push_back(run(100, 10, 2, 2, Purpose::kMeasure, {{"ttft", 300}}));
  a.runs.push_back(run(400, 10, 0, 5, Purpose::kSweep, {{"ttft", 300}}));
  const auto best = best_goodput(comparison({a}), a);
  ASSERT_TRUE(best);
  EXPECT_EQ(best->rate, 2);
  EXPECT_EQ(best->goodput.runs, 3);
  EXPECT_EQ(best->below, 0) << "a rate of the search is not compared";
  EXPECT_EQ(best->above, 5);
  EXPECT_NEAR(best->goodput.median, 20 / 10.14, 1e-9);
  EXPECT_EQ(best_goodput(comparison({}), arm("b", {{1, 1}})), std::nullopt);
  a.runs.push_back(run(1, 10, 0, 7, Purpose::kSweep, {{"e2el", 100}}));  // good, but the other arm never had this rate
  ArmResult other;
  other.runs.push_back(run(100, 10, 0, 2, Purpose::kMeasure, {{"ttft", 300}}));
  EXPECT_EQ(best_goodput(comparison({a, other}), a)->rate, 2);
  EXPECT_EQ(best_goodput(comparison({a}), a)->rate, 7);
}

TEST(Result, RunsThatAreShortBesideAnAnswerAreTooShort) {
  ArmResult a = arm("a", {});
  a.runs.push_back(run(1000, 500, 0, 2, Purpose::kSearch));  // an answer takes 3 s
  a.sustained = 2;
  EXPECT_THAT(too_short(a, 20), HasSubstr("come for 10 s at what it sustains, and an answer takes 3.0 s"));
  EXPECT_EQ(too_short(a, 30), "");
  a.sustained = 0;
  EXPECT_EQ(too_short(a, 20), "");
}

TEST(Advice, NamesTheBestByEndToEndLatencyAndSaysWhenDisaggregationDoesNotPay) {
  const auto c =
      comparison({arm("tp2", {{100, 40}, {101, 41}}), arm("dp", {{100, 20}, {101, 21}}), arm("pd", {{300, 30}, {301, 31}}, true)});
  const std::string text = advice(c);
  EXPECT_THAT(text, HasSubstr("At 2.00 requests/s dp finishes an answer soonest"));
  EXPECT_THAT(text, HasSubstr("First token soonest: tp2 and dp"));
  EXPECT_THAT(text, HasSubstr("lowest P99 ITL: dp"));
  EXPECT_THAT(text, HasSubstr("Disaggregation does not pay here: end-to-end latency +131.5 % against dp"));
  EXPECT_THAT(text, HasSubstr("(at 2.00 requests/s worse: end-to-end latency +131.5 %"));
}

TEST(Advice, SaysWhenDisaggregationPaysAndByHowMuch) {
  const std::string text = advice(comparison({arm("tp2", {{100, 40}}), arm("pd", {{100, 20}}, true)}));
  EXPECT_THAT(text, HasSubstr("Disaggregation pays here: end-to-end latency -30.8 % against tp2"));
  EXPECT_THAT(text, HasSubstr("mean TPOT -50.0 %"));
}

TEST(Advice, WhatTheRepeatsDoNotTellApartIsAlike) {
  const auto c = comparison({arm("dp", {{100, 20}, {110, 22}}), arm("pd", {{105, 20}, {100, 21}}, true)});
  EXPECT_THAT(advice(c), HasSubstr("pd and dp finish an answer soonest"));
  EXPECT_THAT(advice(c), HasSubstr("does not pay here: end-to-end latency is alike against dp"));
}

TEST(Advice, GoodputDecidesWhereThereAreLimits) {
  const std::map<std::string, double> limits = {{"tpot", 15}};
  auto c = comparison({});
  c.goodput_ms = limits;
  ArmResult dp, pd;
  dp.arm.name = "dp";
  pd.arm.name = "pd";
  pd.arm.disaggregated = true;
  for (int r = 0; r < 2; ++r) {
    dp.runs.push_back(run(50, 20, r, 2, Purpose::kMeasure, limits));
    pd.runs.push_back(run(100 + r, 10, r, 2, Purpose::kMeasure, limits));
  }
  c.arms = {dp, pd};
  EXPECT_THAT(
      advice(c),
      HasSubstr(
          "Under tpot:15, pd serves this load best: 1.97 good requests/s at 2.00 requests/s (dp 0.00 at 2.00); no other rate was tried."));
  EXPECT_THAT(advice(c), HasSubstr("Disaggregation pays here: goodput 1.97/s instead of none against dp"));
}

// An arm with one run of the sweep at each rate, of which so many requests keep the limit of 300 ms, and some fail.
ArmResult swept(const std::string& name, std::vector<std::pair<double, int>> rates_and_good, int failed_each = 0) {
  const std::map<std::string, double> limits = {{"ttft", 300}};
  ArmResult out = arm(name, {}, name == "pd");
  out.runs.push_back(run(100, 10, 0, 2, Purpose::kMeasure, limits));
  for (const auto& [rate, good] : rates_and_good) {
    Step step;
    step.purpose = Purpose::kSweep;
    step.rate = rate;
    auto o = outcomes(1000, 10);
    for (int i = 0; i < good; ++i) o[static_cast<std::size_t>(i)].ttft = 0.1;
    for (int i = 0; i < failed_each; ++i) o[o.size() - 1 - static_cast<std::size_t>(i)].ok = false;
    out.runs.push_back(make_run(step, std::move(o), 5, limits));
  }
  return out;
}

Comparison swept_comparison(std::vector<ArmResult> arms) {
  Comparison c = comparison(std::move(arms));
  c.goodput_ms = {{"ttft", 300}};
  return c;
}

TEST(Advice, ATieInGoodputIsATie) {
  const auto tie = swept_comparison({swept("dp", {{1, 5}, {3, 16}, {4, 8}}), swept("pd", {{1, 5}, {3, 17}, {4, 9}})});
  EXPECT_THAT(advice(tie), HasSubstr("Under ttft:300, pd and dp are not told apart and serve this load best: 3.40 good requests/s at 3.00 "
                                     "requests/s (dp 3.20 at 3.00); the rates tried next to it are 2.00 and 4.00."));
  EXPECT_THAT(advice(tie), HasSubstr("Disaggregation does not pay here: goodput is alike against dp"));
  EXPECT_THAT(advice(tie), HasSubstr("less than 10 % is not told apart"));
  const auto apart = swept_comparison({swept("dp", {{3, 14}}), swept("pd", {{3, 17}})});
  EXPECT_THAT(advice(apart), HasSubstr("Under ttft:300, pd serves this load best: 3.40"));
  EXPECT_THAT(advice(apart), HasSubstr("no higher rate was tried, 2.00 is the next lower one"));
  EXPECT_THAT(advice(apart), HasSubstr("Disaggregation pays here: goodput +21.4 % against dp"));
}

TEST(Advice, AnArmThatFailsHalfItsLoadDoesNotServeItBest) {
  auto c = swept_comparison({swept("dp", {{3, 15}}), swept("pd", {{3, 10}}, 10)});
  c.arms[1].runs[0] = c.arms[1].runs[1];  // at the comparison's rate, too
  c.arms[1].runs[0].purpose = Purpose::kMeasure;
  c.arms[1].runs[0].rate = 2;
  for (ArmRun& run : c.arms[1].runs) run.report.goodput = 9;  // what is left may be good as nothing is in its way
  EXPECT_THAT(advice(c), HasSubstr("dp serves this load best: 3.00"));
  EXPECT_THAT(advice(c), HasSubstr("(pd 9.00 at 2.00, where requests failed)"));
  EXPECT_THAT(advice(c), HasSubstr("Requests failed, so whether disaggregation pays is not said; against dp"));
  // Where it fails at one rate only, another one counts.
  auto one = swept_comparison({swept("dp", {{3, 15}}), swept("pd", {{3, 10}}, 10)});
  const auto best = best_goodput(one, one.arms[1]);
  EXPECT_EQ(best->rate, 2);
  EXPECT_FALSE(best->failed);
}

TEST(Result, RunsTellApartWhatDoesNotOverlapAndDiffersByEnough) {
  const auto f = [](double low, double high, int runs) { return Figure{(low + high) / 2, low, high, runs}; };
  EXPECT_TRUE(told_apart(f(100, 101, 3), f(105, 106, 3)));
  EXPECT_TRUE(told_apart(f(105, 106, 3), f(100, 101, 3)));
  EXPECT_FALSE(told_apart(f(100, 101, 3), f(102, 103, 3))) << "2 % is not an effect";
  EXPECT_FALSE(told_apart(f(100, 120, 3), f(119, 140, 3))) << "they overlap";
  EXPECT_FALSE(told_apart(f(100, 100, 1), f(109, 109, 1))) << "one run each";
  EXPECT_FALSE(told_apart(f(100, 100, 3), f(109, 109, 1)));
  EXPECT_TRUE(told_apart(f(100, 100, 1), f(111, 111, 1)));
  EXPECT_TRUE(told_apart(f(0, 0, 1), f(1, 1, 1)));
}

TEST(Table, OnlyWhatIsToldApartIsJudged) {
  const auto c = comparison({arm("tp2", {{100, 20}, {101, 20.1}}), arm("pd", {{101.5, 10}, {102, 10.1}}, true)});
  const auto rows = table_rows(c);
  ASSERT_EQ(rows.size(), 5U);
  EXPECT_EQ(rows[1].name, "spread, n=2");
  EXPECT_EQ(rows[4].judged[1], 0) << "TTFT: 1 %";
  EXPECT_EQ(rows[4].judged[2], 1) << "TPOT";
  const auto back = table_rows(comparison({c.arms[1], c.arms[0]}));
  EXPECT_EQ(back[4].judged[2], -1);
  EXPECT_EQ(back[4].judged[8], judge(c.arms[0], c.arms[1], measure("output_throughput")));
  const auto json = to_json(c);
  EXPECT_EQ(json["arms"][1]["told_apart_from_first"]["mean_ttft"], false);
  EXPECT_EQ(json["arms"][1]["told_apart_from_first"]["mean_tpot"], true);
  EXPECT_EQ(json["arms"][1]["figures"]["mean_tpot"]["runs"], 2);
}

TEST(Table, AnArmWhoseRequestsFailedIsMarkedAndNotJudged) {
  auto c = comparison({arm("tp2", {{100, 20}}), arm("pd", {{100, 10}}, true)});
  c.arms[1].runs[0].report.failed = 1;
  const auto rows = table_rows(c);
  EXPECT_FALSE(rows[0].failed);
  EXPECT_TRUE(rows[2].failed);
  EXPECT_THAT(rows[4].judged, testing::Each(0));
  EXPECT_THAT(table(c), HasSubstr("\npd *  "));
  EXPECT_THAT(table(c), HasSubstr("*: requests failed"));
  EXPECT_THAT(markdown(c), HasSubstr("| pd \\* |"));
  EXPECT_THAT(table(comparison({arm("tp2", {{100, 20}})})), Not(HasSubstr("*")));
  c = comparison({arm("tp2", {{100, 20}, {100, 20}})});
  c.arms[0].runs[1].report.completed = 0;
  c.arms[0].runs[1].report.failed = 20;
  EXPECT_TRUE(table_rows(c)[0].failed) << "a repeat of which nothing is left";
}

TEST(Advice, SaysWhichArmsAreOverloadedAndWhatEachSustains) {
  auto c = comparison({arm("tp2", {{100, 40}}), arm("dp", {{100, 20}}), arm("pd", {{100, 10}}, true)});
  EXPECT_THAT(advice(c), HasSubstr("At 2.00 requests/s pd finishes"));
  EXPECT_THAT(advice(c), Not(HasSubstr("Sustained")));
  c.arms[0].runs[0].kept_up.sustained = false;
  c.arms[0].sustained = 1.6;
  c.arms[0].beyond = 1.7;
  c.arms[1].sustained = 4.6;
  c.arms[2].beyond = 3;
  EXPECT_THAT(advice(c),
              HasSubstr("At 2.00 requests/s, where tp2 is overloaded and queueing grows with the length of the run, pd finishes"));
  EXPECT_THAT(advice(c), HasSubstr("Sustained, requests/s: tp2 1.60, dp at least 4.60, pd less than 3.00."));
  c.arms[0].runs[0].kept_up.sustained = true;  // by chance: the search knows better
  EXPECT_THAT(advice(c), HasSubstr("where tp2 is overloaded"));
  c.arms[0].sustained = c.arms[0].beyond = 0;
  EXPECT_THAT(advice(c), Not(HasSubstr("overloaded")));
  c.arms[1].runs[0].kept_up.sustained = false;
  EXPECT_THAT(advice(c), Not(HasSubstr("overloaded"))) << "dp sustained more";
}

TEST(Advice, SaysOnWhichSideOfARateTheOrderTurns) {
  auto c = comparison({arm("dp", {{100, 20}, {100, 20}}), arm("pd", {{100, 10}, {100, 10}}, true)});
  const auto add = [&](double rate, double dp, double pd) {
    c.arms[0].runs.push_back(run(dp, 1, 0, rate, Purpose::kSweep));
    c.arms[1].runs.push_back(run(pd, 1, 0, rate, Purpose::kSweep));
  };
  EXPECT_THAT(advice(c), Not(HasSubstr("turns")));
  add(0.5, 100, 300);
  add(1, 100, 105);  // not told apart
  add(3, 300, 200);
  EXPECT_THAT(advice(c), HasSubstr("the order turns between 0.50 and 2.00 requests/s: dp is better up to the one, pd from the other on."));
  add(4, 100, 300);
  EXPECT_THAT(advice(c), Not(HasSubstr("turns"))) << "and back: no side of a rate";
}

TEST(Result, OfAMixTheRateCountsChatsAndTheRequestsAreThoseOfTheRuns) {
  auto c = comparison({arm("tp2", {{100, 20}}), arm("pd", {{100, 10}}, true)});
  c.unit = "chats";
  c.requests = 15;  // chats; the runs had twenty requests
  c.overload = 1.23;
  c.rate_from = "what tp2 completed when all came at once";
  c.arms[0].saturation = c.arms[0].sustained = 1.5;
  EXPECT_EQ(to_json(c)["requests"], 20);
  EXPECT_EQ(to_json(c)["rates_count"], "chats");
  EXPECT_THAT(table(c), HasSubstr("20 requests at 2.00 chats/s: 1.23 times what tp2 completed when all came at once. Medians"));
  EXPECT_THAT(table(c), HasSubstr("tp2: sustains 1.50 chats/s"));
  EXPECT_THAT(advice(c), HasSubstr("At 2.00 chats/s pd finishes"));
  EXPECT_EQ(to_json(comparison({}))["requests"], 20) << "as planned";
}

TEST(Advice, FailedRequestsForbidAVerdictAndAnArmThatFailedIsNotBest) {
  auto c = comparison({arm("dp", {{100, 20}}), arm("pd", {{10, 2}}, true)});
  c.arms[1].runs[0].outcomes[3].ok = false;
  c.arms[1].runs[0].outcomes[3].error = "HTTP 503: no room";
  Step step;
  step.purpose = Purpose::kMeasure;
  step.rate = 2;
  c.arms[1].runs[0] = make_run(step, c.arms[1].runs[0].outcomes, 11, {});
  EXPECT_THAT(advice(c), HasSubstr("dp finishes an answer soonest"));
  EXPECT_THAT(advice(c), HasSubstr("Requests failed, so whether disaggregation pays is not said"));
  const std::string text = table(c);
  EXPECT_TRUE(text.starts_with("ERROR  pd: 1 of 20 requests failed: HTTP 503: no room")) << text;
  EXPECT_EQ(c.failed(), 1);
}

TEST(Advice, SaysSoWhenThereIsNothingToCompare) {
  EXPECT_THAT(advice(comparison({})), HasSubstr("no advice"));
  EXPECT_THAT(advice(comparison({arm("tp2", {{1, 1}})})), HasSubstr("Only one arm"));
}

TEST(Table, AnArmThatDidNotStartIsAnErrorAndTheNextOneIsTheBase) {
  ArmResult failed;
  failed.arm.name = "tp2";
  failed.failure = "baton serve ended with code 1";
  const auto c = comparison({failed, arm("dp", {{100, 20}, {100, 20}}), arm("pd", {{150, 10}}, true)});
  const std::string text = table(c);
  EXPECT_TRUE(text.starts_with("ERROR  tp2: baton serve ended with code 1")) << text;
  EXPECT_EQ(c.first(), &c.arms[1]);
  const auto rows = table_rows(c);
  ASSERT_EQ(rows.size(), 5U);  // dp, its spread, pd, which has none of one run, and its difference
  EXPECT_EQ(rows[3].name, "n=1");
  EXPECT_EQ(rows[3].cells[1], "-");
  EXPECT_EQ(rows[4].name, "vs dp");
  EXPECT_EQ(rows[4].cells.size(), measures().size());
  EXPECT_EQ(rows[4].cells[1], "+50.00 %");
  EXPECT_EQ(rows[4].cells[6], "-50.00 %");
  EXPECT_EQ(rows[0].cells[1], "100.00");
}

TEST(Table, SaysWhatWasSearchedAndLeftOut) {
  auto c = comparison({arm("tp3", {{100, 20}})});
  c.arms[0].saturation = c.arms[0].sustained = 1.5;
  c.arms[0].beyond = 1.65;
  c.left_out.push_back({"pd", "3 devices are not two equal halves"});
  c.notes.push_back("interrupted");
  EXPECT_THAT(table(c), HasSubstr("tp3: sustains 1.50 requests/s, not 1.65"));
  EXPECT_THAT(table(c), HasSubstr("NOTE   pd is left out: 3 devices"));
  EXPECT_THAT(table(c), HasSubstr("NOTE   interrupted"));
  c.arms[0].beyond = 0;
  EXPECT_THAT(table(c), HasSubstr("the most tried"));
  c.arms[0].sustained = 0;
  c.arms[0].beyond = 2;
  EXPECT_THAT(table(c), HasSubstr("less than 2.00 requests/s"));
  c.arms[0].beyond = 0;
  EXPECT_THAT(table(c), HasSubstr("tp3: completed 1.50 requests/s when all came at once; no rate was tried"));
}

TEST(Markdown, CellsStayCells) {
  auto c = comparison({arm("tp2", {{100, 20}}), arm("pd", {{90, 10}}, true)});
  c.command = "baton bench compare a|b\nc";
  const std::string text = markdown(c);
  EXPECT_THAT(text, HasSubstr("| command | baton bench compare a\\|b c |"));
  EXPECT_THAT(text, HasSubstr("| tp2 |"));
  EXPECT_THAT(text, HasSubstr("| &nbsp;&nbsp;vs tp2 |"));
}

TEST(Json, HoldsRunsFiguresDifferencesAndWhatWasRunOnWhat) {
  auto c = comparison({arm("tp2", {{100, 20}}), arm("pd", {{150, 10}}, true)});
  c.seed = 7;
  c.machine.cpu = "cpu \xff";
  c.arms[1].runs.push_back(run(1, 1, 0, 0, Purpose::kSearch));
  const auto json = to_json(c);
  EXPECT_EQ(json["seed"], 7);
  EXPECT_NEAR(json["arms"][1]["difference_to_first"]["mean_ttft"].get<double>(), 0.5, 1e-9);
  EXPECT_FALSE(json["arms"][0].contains("difference_to_first"));
  EXPECT_EQ(json["arms"][1]["runs"][1]["purpose"], "search");
  EXPECT_EQ(json["arms"][1]["runs"][1]["request_rate"], "inf");
  EXPECT_NEAR(json["arms"][0]["runs"][0]["p99_itl_ms"].get<double>(), 20, 1e-9);
  EXPECT_EQ(json["advice"], advice(c));
}

}  // namespace
}  // namespace baton::app
