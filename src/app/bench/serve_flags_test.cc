#include "app/bench/serve_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cmath>

#include "app/args.h"

namespace baton::app {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::MatchesRegex;
using testing::Pair;

// Parses and interprets; the error's message, or "".
std::string parse(BenchServeFlags& flags, std::vector<std::string> args) {
  CLI::App app("test", "baton bench serve");
  flags.add_to(app);
  testing::internal::CaptureStderr();
  const auto exit = parse_args(app, std::move(args));
  const std::string err = testing::internal::GetCapturedStderr();
  if (exit) return err;
  const Status status = flags.interpret();
  return status.message();
}

std::string error_of(std::vector<std::string> args) {
  BenchServeFlags flags;
  return parse(flags, std::move(args));
}

TEST(ServeFlags, TrafficAsItIsMeant) {
  BenchServeFlags plain;
  EXPECT_EQ(parse(plain, {}), "");
  EXPECT_EQ(plain.load.request_rate, 0);
  EXPECT_EQ(plain.rate, "inf");
  EXPECT_TRUE(plain.load.ignore_eos) << "random prompts have only lengths";
  EXPECT_THAT(plain.load.request_id_prefix, MatchesRegex("bench-[0-9a-f]{8}-"));
  BenchServeFlags rate;
  EXPECT_EQ(parse(rate, {"--request-rate", "2", "--burstiness", "inf", "--arrival", "v0.7.3", "--max_concurrency", "3"}), "");
  EXPECT_EQ(rate.load.request_rate, 2);
  EXPECT_EQ(rate.report.request_rate, 2);
  EXPECT_EQ(rate.rate, "2.0") << "as Python writes it in the file's name";
  EXPECT_TRUE(std::isinf(rate.load.burstiness));
  EXPECT_EQ(rate.load.arrival, ArrivalForm::kV073);
  EXPECT_EQ(rate.report.max_concurrency, 3);
  BenchServeFlags ramp;
  EXPECT_EQ(parse(ramp, {"--ramp-up-strategy", "exponential", "--ramp-up-start-rps", "1", "--ramp-up-end-rps", "8"}), "");
  ASSERT_TRUE(ramp.load.ramp_up);
  EXPECT_TRUE(ramp.load.ramp_up->exponential);
  EXPECT_EQ(ramp.load.ramp_up->end_rps, 8);
}

TEST(ServeFlags, ATraceHasItsOwnTimesUntilARateIsGiven) {
  std::vector<BenchRequest> requests(2);
  requests[0].arrival_s = 5;
  requests[1].arrival_s = 7;
  BenchServeFlags own;
  EXPECT_EQ(parse(own, {"--dataset-name", "timed_trace"}), "");
  EXPECT_THAT(planned_times(requests, own.load), ElementsAre(5, 7));
  EXPECT_TRUE(own.load.ignore_eos);
  BenchServeFlags at_once;
  EXPECT_EQ(parse(at_once, {"--dataset-name", "azure", "--request-rate", "inf"}), "");
  EXPECT_THAT(planned_times(requests, at_once.load), testing::Each(testing::Lt(1e-6)));
  EXPECT_EQ(at_once.report.request_rate, 0) << "the table shows no rate";
}

TEST(ServeFlags, ChatsOfAMixComeAtTheRateAndLongPromptsInTheirOwnTime) {
  BenchServeFlags f;
  EXPECT_EQ(parse(f, {"--dataset-name", "mix", "--num-prompts", "20", "--request-rate", "2", "--burstiness", "inf"}), "");
  EXPECT_EQ(f.report.request_rate, 2);
  const auto requests = load_dataset(f.dataset, nullptr, false);
  ASSERT_TRUE(requests.ok());
  const std::vector<double> times = planned_times(*requests, f.load);
  std::vector<double> chats, longs;
  for (std::size_t i = 0; i < times.size(); ++i) ((*requests)[i].kind == "chat" ? chats : longs).push_back(times[i]);
  ASSERT_EQ(chats.size(), 20u);
  for (std::size_t i = 0; i < chats.size(); ++i) EXPECT_NEAR(chats[i], 0.5 * static_cast<double>(i + 1), 1e-9);
  EXPECT_THAT(longs, ElementsAre(4, 8));
}

TEST(ServeFlags, SamplingGoesIntoTheBodyAndExtraBodyWins) {
  BenchServeFlags f;
  EXPECT_EQ(parse(f, {"--temperature", "0", "--top-p", "0.5", "--top-k", "7", "--min-p", "0.25", "--frequency-penalty", "0.5",
                      "--presence-penalty", "-1", "--repetition-penalty", "1.5", "--logprobs", "2", "--extra-body",
                      R"({"top_k": 9, "stop": ["x"]})"}),
            "");
  EXPECT_EQ(f.load.extra_body,
            nlohmann::ordered_json::parse(R"({"temperature": 0.0, "top_p": 0.5, "top_k": 9, "min_p": 0.25, "frequency_penalty": 0.5,
      "presence_penalty": -1.0, "repetition_penalty": 1.5, "logprobs": 2, "stop": ["x"]})"));
  BenchServeFlags chat;
  EXPECT_EQ(parse(chat, {"--backend", "openai-chat", "--logprobs", "2"}), "");
  EXPECT_EQ(chat.load.endpoint, "/v1/chat/completions");
  EXPECT_EQ(chat.load.extra_body, nlohmann::ordered_json::parse(R"({"logprobs": true, "top_logprobs": 2})"));
  BenchServeFlags none;
  EXPECT_EQ(parse(none, {}), "");
  EXPECT_TRUE(none.load.extra_body.empty()) << "what is not asked for is the server's to choose";
}

TEST(ServeFlags, LengthsForAllDatasets) {
  BenchServeFlags f;
  EXPECT_EQ(parse(f, {"--input-len", "11", "--output-len", "12", "--random-input-len", "13"}), "");
  EXPECT_EQ(f.dataset.random_input_len, 11) << "the general flag wins, as in vLLM";
  EXPECT_THAT((std::vector<std::int64_t>{f.dataset.random_output_len, f.dataset.sharegpt_output_len, f.dataset.custom_output_len}),
              ElementsAre(12, 12, 12));
}

TEST(ServeFlags, HeadersMetadataAndKey) {
  BenchServeFlags f;
  EXPECT_EQ(parse(f, {"--header", "x-a=1=2", " x-b = 3 ", "--metadata", "version=0.3", "tp=1"}), "");
  EXPECT_THAT(f.load.headers, ElementsAre(Pair("x-a", "1=2"), Pair("x-b", "3")));
  EXPECT_THAT(f.metadata, ElementsAre(Pair("version", "0.3"), Pair("tp", "1")));
  setenv("OPENAI_API_KEY", "from-the-environment", 1);
  BenchServeFlags from_environment, given;
  EXPECT_EQ(parse(from_environment, {}), "");
  EXPECT_EQ(parse(given, {"--api-key", "given"}), "");
  unsetenv("OPENAI_API_KEY");
  EXPECT_EQ(from_environment.load.api_key, "from-the-environment");
  EXPECT_EQ(given.load.api_key, "given");
}

TEST(ServeFlags, Figures) {
  BenchServeFlags f;
  EXPECT_EQ(parse(f, {"--percentile-metrics", "e2el,ttft", "--metric-percentiles", "25,99.9", "--goodput", "ttft:300", "tpot:50.5"}), "");
  EXPECT_THAT(f.report.metrics, ElementsAre("e2el", "ttft"));
  EXPECT_THAT(f.report.percentiles, ElementsAre(25, 99.9));
  EXPECT_THAT(f.report.goodput_ms, ElementsAre(Pair("tpot", 50.5), Pair("ttft", 300)));
}

TEST(ServeFlags, WhatCannotBeIsRefusedByName) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--request-rate", "-1"}, "--request-rate -1: expected a number from 0.001 on, or inf"},
      {{"--request-rate", "0"}, "--request-rate 0: expected"},
      {{"--request-rate", "2x"}, "--request-rate 2x: expected"},
      {{"--burstiness", "0"}, "--burstiness 0: expected"},
      {{"--ramp-up-strategy", "linear", "--ramp-up-start-rps", "1"}, "--ramp-up-strategy wants"},
      {{"--ramp-up-strategy", "linear", "--ramp-up-start-rps", "3", "--ramp-up-end-rps", "2"}, "not below it"},
      {{"--ramp-up-strategy", "linear", "--ramp-up-start-rps", "0", "--ramp-up-end-rps", "2"}, "--ramp-up-start-rps"},
      {{"--ramp-up-strategy", "linear", "--ramp-up-start-rps", "1", "--ramp-up-end-rps", "2", "--request-rate", "2"}, "give one of them"},
      {{"--ramp-up-end-rps", "2"}, "want --ramp-up-strategy"},
      {{"--dataset-name", "mix", "--arrival", "v0.7.3"}, "--arrival: the chats of --dataset-name mix"},
      {{"--max-concurrency", "0"}, "--max-concurrency"},
      {{"--header", "x-a"}, "--header: expected KEY=VALUE, got `x-a`"},
      {{"--metadata", "=1"}, "--metadata: expected KEY=VALUE"},
      {{"--extra-body", "[1]"}, "--extra-body: not a JSON object"},
      {{"--percentile-metrics", "ttft,p99"}, "--percentile-metrics: `p99` is not one of ttft, tpot"},
      {{"--metric-percentiles", "99,101"}, "--metric-percentiles: `101`"},
      {{"--metric-percentiles", "99x"}, "--metric-percentiles: `99x`"},
      {{"--goodput", "itl:5"}, "--goodput: expected limits in ms for ttft, tpot or e2el"},
      {{"--goodput", "ttft:5ms"}, "got `ttft:5ms`"},
      {{"--trace-scale", "0"}, "--trace-scale"},
      {{"--trace-start", "-1"}, "--trace-start"},
      {{"--dataset-name", "hf"}, "--dataset-name"},
      {{"--percentile-metric", "ttft"}, "did you mean --percentile-metrics?"},
  };
  for (const auto& [args, message] : cases) EXPECT_THAT(error_of(args), HasSubstr(message)) << args[1];
}

}  // namespace
}  // namespace baton::app
