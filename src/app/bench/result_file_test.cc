#include "app/bench/result_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "app/args.h"
#include "app/bench/testing.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;

BenchServeFlags flags_of(std::vector<std::string> args) {
  BenchServeFlags flags;
  CLI::App app("test", "baton bench serve");
  flags.add_to(app);
  EXPECT_EQ(parse_args(app, std::move(args)), std::nullopt);
  EXPECT_TRUE(flags.interpret().ok());
  flags.load.model = "org/model";
  return flags;
}

std::string text_of(const std::string& path) {
  std::stringstream out;
  out << std::ifstream(path).rdbuf();
  return out.str();
}

std::vector<std::string> keys_of(const Json& json) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : json.items()) keys.push_back(key);
  return keys;
}

LoadResult two_outcomes() {
  LoadResult result;
  result.outcomes = {{true, "", 0.5, 0.1, 0.3, {0.1, 0.1}, 10, 3, "abc", 0.25}, {}};
  result.outcomes[1].error = "refused";
  result.outcomes[1].output_tokens = 1;
  result.duration = 2;
  return result;
}

Json json_of(const BenchServeFlags& flags, const LoadResult& result, std::vector<double> times = {0, 0.5}) {
  RunFacts facts;
  facts.begun = 1'700'000'000;
  facts.times = std::move(times);
  return result_json(flags, facts, result, summarize(result.outcomes, result.duration, flags.report));
}

// The keys of vLLM's result, 0.7.3 and today's, but for those of other endpoints (best_of, spec_decode_*) and the misspelt
// "request_goodput:".
TEST(ResultJson, HasVllmsKeys) {
  const BenchServeFlags flags = flags_of({"--save-result", "--save-detailed", "--metadata", "tp=2", "--ramp-up-strategy", "linear",
                                          "--ramp-up-start-rps", "1", "--ramp-up-end-rps", "3", "--metric-percentiles", "50,99"});
  const Json json = json_of(flags, two_outcomes());
  const std::vector<std::string> keys = keys_of(json);
  for (const char* key : {"date",
                          "endpoint_type",
                          "backend",
                          "label",
                          "model_id",
                          "tokenizer_id",
                          "num_prompts",
                          "tp",
                          "request_rate",
                          "burstiness",
                          "max_concurrency",
                          "ramp_up_strategy",
                          "ramp_up_start_rps",
                          "ramp_up_end_rps",
                          "duration",
                          "completed",
                          "failed",
                          "total_input_tokens",
                          "total_output_tokens",
                          "request_throughput",
                          "request_goodput",
                          "output_throughput",
                          "total_token_throughput",
                          "input_lens",
                          "output_lens",
                          "ttfts",
                          "itls",
                          "latencies",
                          "start_times",
                          "queue_times",
                          "generated_texts",
                          "errors",
                          "max_output_tokens_per_s",
                          "max_concurrent_requests",
                          "rtfx",
                          "rps_change_events"})
    EXPECT_THAT(keys, testing::Contains(key));
  for (const char* statistic : {"mean_", "median_", "std_", "p50_", "p99_"})
    for (const char* metric : {"ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"})
      EXPECT_THAT(keys, testing::Contains(std::string(statistic) + metric));
  EXPECT_EQ(json["request_rate"], "inf");
  EXPECT_TRUE(json["max_concurrency"].is_null());
  EXPECT_TRUE(json["label"].is_null());
  EXPECT_TRUE(json["tokenizer_id"].is_null());
  EXPECT_EQ(json["tp"], "2");
  EXPECT_EQ(json["num_prompts"], 2);
  EXPECT_EQ(json["ttfts"], Json::parse("[0.1, 0.0]")) << "seconds";
  EXPECT_EQ(json["itls"], Json::parse("[[0.1, 0.1], []]"));
  EXPECT_EQ(json["output_lens"], Json::parse("[3, 0]")) << "0 for what failed";
  EXPECT_EQ(json["errors"], Json::parse(R"(["", "refused"])"));
  EXPECT_EQ(json["generated_texts"], Json::parse(R"(["abc", ""])"));
  EXPECT_EQ(json["queue_times"], Json::parse("[0.25, 0.0]"));
  ASSERT_EQ(json["rps_change_events"].size(), 3u);
  EXPECT_EQ(json["rps_change_events"][0]["rps"], 1);
  EXPECT_EQ(json["rps_change_events"][2]["rps"], 3);
}

TEST(ResultJson, EachRequestOnlyWhenAskedAndTheRateAsANumber) {
  LoadResult result = two_outcomes();
  result.interrupted = true;
  const Json json = json_of(flags_of({"--save-result", "--request-rate", "2", "--max-concurrency", "4"}), result);
  for (const char* key : {"input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times", "generated_texts",
                          "errors", "rps_change_events", "ramp_up_strategy"})
    EXPECT_FALSE(json.contains(key)) << key;
  EXPECT_EQ(json["request_rate"], 2.0);
  EXPECT_EQ(json["max_concurrency"], 4);
  EXPECT_EQ(json["interrupted"], true);
  EXPECT_EQ(json["error_counts"]["refused"], 1);
  EXPECT_TRUE(json.contains("p99_client_queue_time_ms"));
}

TEST(ResultPath, IsVllmsNameWhereNoneIsGiven) {
  setenv("TZ", "UTC", 1);
  tzset();
  const std::time_t begun = 1'700'000'000;  // 2023-11-14 22:13:20
  const auto path = [&](std::vector<std::string> args) { return result_path(flags_of(std::move(args)), begun); };
  EXPECT_EQ(path({}), "./openai-infqps-model-20231114-221320.json");
  EXPECT_EQ(path({"--request-rate", "2", "--max-concurrency", "8", "--result-dir", "/r"}),
            "/r/openai-2.0qps-concurrency8-model-20231114-221320.json");
  EXPECT_EQ(path({"--label", "night", "--request-rate", "0.5"}), "./night-0.5qps-model-20231114-221320.json");
  EXPECT_EQ(path({"--ramp-up-strategy", "linear", "--ramp-up-start-rps", "1", "--ramp-up-end-rps", "9"}),
            "./openai-ramp-up-linear-1qps-9qps-model-20231114-221320.json");
  EXPECT_EQ(path({"--result-filename", "r.json", "--result-dir", "a/b"}), "a/b/r.json");
}

TEST(ResultFile, ReplacesOrAddsALine) {
  const DataFile place("");
  const std::string path = place.path() + ".json";
  EXPECT_TRUE(check_result_path(path, true).ok());
  EXPECT_FALSE(std::filesystem::exists(path)) << "a check leaves nothing behind";
  EXPECT_TRUE(save_result(path, true, Json{{"run", 1}}).ok());
  EXPECT_TRUE(check_result_path(path, true).ok());
  EXPECT_TRUE(save_result(path, true, Json{{"run", 2}}).ok());
  EXPECT_EQ(text_of(path), "{\"run\":1}\n{\"run\":2}\n");
  EXPECT_TRUE(check_result_path(path, false).ok());
  EXPECT_EQ(text_of(path), "{\"run\":1}\n{\"run\":2}\n") << "kept until the new one is there";
  EXPECT_TRUE(save_result(path, false, Json{{"run", 3}}).ok());
  EXPECT_EQ(text_of(path), "{\"run\":3}\n");
  std::ofstream(path) << "{\"run\":4}";  // as vLLM ends its file
  EXPECT_TRUE(save_result(path, true, Json{{"run", 5}}).ok());
  EXPECT_EQ(text_of(path), "{\"run\":4}\n{\"run\":5}\n");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(std::filesystem::path(path).parent_path()), {}), 2)
      << "data and result, nothing else";
}

TEST(ResultFile, WhatCannotBeWrittenIsFoundBeforeTheRun) {
  const DataFile file("{}\n");
  const std::string folder = std::filesystem::path(file.path()).parent_path();
  for (const bool append : {false, true}) {
    EXPECT_THAT(check_result_path(folder, append).message(), testing::AllOf(HasSubstr(folder), HasSubstr("it is a folder")));
    EXPECT_FALSE(check_result_path(file.path() + "/r.json", append).ok()) << "a file where a folder should be";
    EXPECT_TRUE(check_result_path(folder + "/new/deep/r.json", append).ok()) << "folders are made";
    EXPECT_FALSE(std::filesystem::exists(folder + "/new/deep/r.json"));
  }
  EXPECT_EQ(text_of(file.path()), "{}\n");
}

TEST(ResultFile, DevicesAreWrittenToAndNotReplaced) {
  EXPECT_TRUE(check_result_path("/dev/null", false).ok());
  EXPECT_TRUE(save_result("/dev/null", false, Json::object()).ok());
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  EXPECT_THAT(save_result("/dev/full", false, Json::object()).message(),
              testing::AllOf(HasSubstr("cannot write the result to /dev/full"), HasSubstr("No space left"), HasSubstr("--result-dir")));
}

}  // namespace
}  // namespace baton::app
