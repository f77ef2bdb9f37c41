#include "app/bench/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace baton::app {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

// numpy.percentile([1, 2, 3, 4, 10], [50, 90, 99]) = [3, 7.6, 9.76]
TEST(Report, PercentilesAreNumpys) {
  const std::vector<double> sorted = {1, 2, 3, 4, 10};
  EXPECT_DOUBLE_EQ(percentile(sorted, 50), 3);
  EXPECT_DOUBLE_EQ(percentile(sorted, 90), 7.6);
  EXPECT_DOUBLE_EQ(percentile(sorted, 99), 9.76);
}

TEST(Report, DefinitionsAndTable) {
  std::vector<RequestOutcome> outcomes(3);
  outcomes[0] = {true, "", 0.0, 0.1, 1.1, {0.5, 0.5}, 10, 3, ""};
  outcomes[1] = {true, "", 1.0, 0.2, 0.2, {}, 20, 1, ""};
  outcomes[2].error = "refused";
  ReportOptions options;
  options.request_rate = 2;
  options.goodput_ms = {{"ttft", 150}};
  const Report r = summarize(outcomes, 2.0, options);
  EXPECT_EQ(r.completed, 2);
  EXPECT_EQ(r.failed, 1);
  EXPECT_DOUBLE_EQ(r.request_throughput, 1.0);
  EXPECT_DOUBLE_EQ(r.output_throughput, 2.0);
  EXPECT_DOUBLE_EQ(r.total_throughput, 17.0);
  EXPECT_DOUBLE_EQ(r.goodput, 0.5);
  EXPECT_DOUBLE_EQ(r.ms.at("ttft").mean, 150);
  EXPECT_DOUBLE_EQ(r.ms.at("tpot").mean, 500);  // (1.1 - 0.1) / (3 - 1); the answer of one token has none
  EXPECT_EQ(r.peak_concurrency, 2);
  const std::string text = table(r, options);
  EXPECT_THAT(text, HasSubstr("============ Serving Benchmark Result ============\nSuccessful requests:                     2         \n"));
  EXPECT_THAT(text, HasSubstr("Request throughput (req/s):              1.00      \n"));
  EXPECT_THAT(text, HasSubstr("---------------Time to First Token----------------\n"));
  EXPECT_THAT(text, HasSubstr("-----Time per Output Token (excl. 1st token)------\n"));
  EXPECT_THAT(text, HasSubstr("Mean TTFT (ms):                          150.00    \n"));
  EXPECT_TRUE(text.ends_with(std::string(50, '=') + "\n"));
  EXPECT_TRUE(to_json(r, options).contains("p99_itl_ms"));
}

TEST(Report, KindsOfRequestsApart) {
  std::vector<RequestOutcome> outcomes(3);
  outcomes[0] = {true, "", 0, 0.1, 0.2, {0.1}, 10, 2, ""};
  outcomes[1] = {true, "", 0, 0.5, 1.5, {0.4, 0.6}, 2000, 3, ""};
  outcomes[2].error = "refused";
  EXPECT_TRUE(summarize_by_kind(outcomes, 2, {}).empty()) << "all of one kind";
  outcomes[0].kind = outcomes[2].kind = "chat";
  outcomes[1].kind = "long";
  const auto by_kind = summarize_by_kind(outcomes, 2, {});
  ASSERT_EQ(by_kind.size(), 2u);
  EXPECT_EQ(by_kind.at("chat").completed, 1);
  EXPECT_EQ(by_kind.at("chat").failed, 1);
  EXPECT_DOUBLE_EQ(by_kind.at("long").ms.at("itl").mean, 500);
  EXPECT_EQ(kinds_table(by_kind, {}),
            "chat:      1 requests; ms: mean TTFT 100.00; ITL mean 100.00, median 100.00, P99 100.00\n"
            "long:      1 requests; ms: mean TTFT 500.00; ITL mean 500.00, median 500.00, P99 598.00\n");
  EXPECT_EQ(kinds_table({}, {}), "");
}

RequestOutcome outcome(double start, double ttft, std::vector<double> itl, std::int64_t tokens, double queued) {
  RequestOutcome o{true, "", start, ttft, ttft, std::move(itl), 10, tokens, "", queued};
  for (const double gap : o.itl) o.latency += gap;
  return o;
}

// Five requests, measured with numpy: x.mean(), numpy.median(x), x.std(), numpy.percentile(x, p) over the lists in ms.
TEST(Report, StatisticsAreNumpys) {
  std::vector<RequestOutcome> outcomes = {outcome(0.5, 0.120, {0.010, 0.030, 0.020}, 4, 0),
                                          outcome(1.0, 0.033, std::vector<double>(6, 0.015), 7, 0), outcome(1.4, 0.700, {}, 1, 0.4),
                                          outcome(1.75, 0.050, {0.2, 0.011}, 3, 0.1), outcome(2.5, 0.250, {0.040, 0.041, 0.5}, 9, 0)};
  ReportOptions options;
  options.percentiles = {25, 90, 99, 99.9};
  options.max_concurrency = 3;
  options.request_rate = 2;
  const Report r = summarize(outcomes, 4.0, options);
  struct Expected {
    const char* metric;
    double mean, median, std;
    std::vector<double> percentiles;
  };
  const Expected expected[] = {
      {"ttft", 230.6, 120.0, 246.82268939463404, {50.0, 520.0, 682.0, 698.2}},
      {"tpot", 53.28125, 46.3125, 37.66322549500375, {18.75, 95.6375, 104.51375, 105.401375}},
      {"itl", 67.28571428571429, 15.0, 128.94319268102333, {15.0, 152.3, 461.0, 496.1}},
      {"e2el", 419.0, 261.0, 289.2770298520088, {180.0, 778.6, 825.76, 830.476}},
      {"client_queue_time", 100.0, 0.0, 154.91933384829667, {0.0, 280.0, 388.0, 398.8}},
      {"e2el_including_client_queue", 519.0, 361.0, 382.5195419844586, {180.0, 992.4, 1089.24, 1098.924}},
  };
  for (const Expected& e : expected) {
    const Report::Summary& s = r.ms.at(e.metric);
    EXPECT_NEAR(s.mean, e.mean, 1e-9) << e.metric;
    EXPECT_NEAR(s.median, e.median, 1e-9) << e.metric;
    EXPECT_NEAR(s.std, e.std, 1e-9) << e.metric;
    EXPECT_THAT(s.percentiles, testing::Pointwise(testing::DoubleNear(1e-9), e.percentiles)) << e.metric;
  }
  EXPECT_EQ(r.peak_output_throughput, 11) << "chunks in the first second after the first start: 4 and 7";
  EXPECT_EQ(r.peak_concurrency, 2);
  const nlohmann::ordered_json json = to_json(r, options);
  EXPECT_NEAR(json["p99.9_ttft_ms"].get<double>(), 698.2, 1e-9);
  EXPECT_NEAR(json["p25_client_queue_time_ms"].get<double>(), 0, 1e-9);
}

TEST(Report, QueueingIsShownOnlyWhereTheClientLimits) {
  ReportOptions options;
  options.metrics = {"e2el_including_client_queue", "client_queue_time", "ttft"};
  const std::vector<RequestOutcome> outcomes = {outcome(0, 0.1, {0.1}, 2, 0.5)};
  EXPECT_THAT(table(summarize(outcomes, 1, options), options), testing::Not(HasSubstr("Queue")));
  options.max_concurrency = 1;
  EXPECT_THAT(
      table(summarize(outcomes, 1, options), options),
      testing::AllOf(HasSubstr("---------------Client-side Queueing---------------\nMean Client Queue Time (ms):             500.00    \n"),
                     testing::Not(HasSubstr("Queue-inclusive"))));
  options.request_rate = 1;
  const std::string text = table(summarize(outcomes, 1, options), options);
  EXPECT_THAT(text, HasSubstr("--------Queue-inclusive End-to-end Latency--------\nMean E2EL incl. Client Queue (ms):       700.00    \n"));
  EXPECT_LT(text.find("Time to First Token"), text.find("Client-side Queueing")) << "vLLM's order, whatever the flag's";
}

TEST(Report, GoodputWantsEveryLimitKeptAndCountsTheLimitItself) {
  ReportOptions options;
  options.goodput_ms = {{"ttft", 125}, {"tpot", 62.5}, {"e2el", 1000}};  // exact in binary, as the times below
  std::vector<RequestOutcome> outcomes = {outcome(0, 0.125, {0.0625}, 2, 9), outcome(0, 0.25, {0.0625}, 2, 0),
                                          outcome(0, 0.125, {0.125}, 2, 0), outcome(0, 0.125, std::vector<double>(20, 0.0625), 21, 0),
                                          outcome(0, 0.0625, {}, 1, 0)};
  outcomes.push_back({});
  outcomes.back().error = "refused";
  EXPECT_DOUBLE_EQ(summarize(outcomes, 2, options).goodput, 1.0) << "the first and the one without TPOT";
  EXPECT_TRUE(to_json(summarize(outcomes, 2, {}), {})["request_goodput"].is_null());
}

TEST(Report, FailuresAreCountedByKind) {
  std::vector<RequestOutcome> outcomes(8);
  const char* errors[] = {"HTTP 503: worker d0 is gone [request bench-1]",
                          "unavailable: cut",
                          "HTTP 503: worker d7 is gone [request bench-22]",
                          "HTTP 500: worker d0 is gone [request bench-3]",
                          "",
                          "HTTP 503: worker d1 is gone [request bench-4]",
                          "unavailable: cut",
                          "HTTP 503: worker d0 is full [request bench-1]"};
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    outcomes[i].ok = !*errors[i];
    outcomes[i].error = errors[i];
  }
  const Report r = summarize(outcomes, 1, {});
  EXPECT_THAT(r.errors, ElementsAre(Pair(errors[0], 3), Pair("unavailable: cut", 2), Pair(errors[3], 1), Pair(errors[7], 1)));
  EXPECT_EQ(error_summary(r),
            "7 of 8 requests failed:\n       3 x HTTP 503: worker d0 is gone [request bench-1]\n       2 x unavailable: cut\n"
            "       1 x HTTP 500: worker d0 is gone [request bench-3]\n       1 x HTTP 503: worker d0 is full [request bench-1]\n");
  EXPECT_EQ(to_json(r, {})["error_counts"]["unavailable: cut"], 2);
  EXPECT_EQ(error_summary(summarize({outcomes[4]}, 1, {})), "");
}

TEST(Report, NothingDividesByNothing) {
  const Report r = summarize({}, 0, {});
  EXPECT_EQ(r.request_throughput, 0);
  EXPECT_THAT(to_json(r, {}).dump(), testing::Not(HasSubstr("mean_ttft_ms\":null")));
}

}  // namespace
}  // namespace baton::app
