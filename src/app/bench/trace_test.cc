#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "app/bench/dataset.h"
#include "app/bench/testing.h"

namespace baton::app {
namespace {

using testing::DoubleNear;
using testing::HasSubstr;
using testing::Pointwise;

DatasetFlags trace(const std::string& name, const std::string& path) {
  DatasetFlags flags;
  flags.name = name;
  flags.path = path;
  return flags;
}

std::vector<BenchRequest> load(const DatasetFlags& flags, const text::Tokenizer* tokenizer = nullptr, bool as_text = false) {
  auto out = load_dataset(flags, tokenizer, as_text);
  EXPECT_TRUE(out.ok()) << out.status().to_string();
  return out.ok() ? *out : std::vector<BenchRequest>();
}

std::vector<double> times_of(const std::vector<BenchRequest>& requests) {
  std::vector<double> out;
  for (const BenchRequest& r : requests) out.push_back(r.arrival_s);
  return out;
}

// Equal but for the rounding of a time stamp's seconds.
auto times(const std::vector<double>& expected) { return Pointwise(DoubleNear(1e-6), expected); }

constexpr char kAzure[] =
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-30 23:59:58.5000000,10,1\r\n2023-11-30 23:59:59.7500000,20,2\r\n"
    "2023-12-01 00:00:02.5000000,30,3\r\n2023-12-01 00:01:00,40,4\r\n";

TEST(AzureTrace, TimesCountFromTheFirstRowAlsoOverMidnight) {
  const DataFile file(kAzure);
  const auto requests = load(trace("azure", file.path()));
  EXPECT_THAT(times_of(requests), times({0, 1.25, 4, 61.5}));
  EXPECT_EQ(requests[2].ids.size(), 30u);
  EXPECT_EQ(requests[2].output_tokens, 3);
}

TEST(AzureTrace, AWindowIsReplayedFromItsBeginAtItsScale) {
  const DataFile file(kAzure);
  DatasetFlags flags = trace("azure", file.path());
  flags.trace_start_s = 1;
  flags.trace_duration_s = 60.5;
  EXPECT_THAT(times_of(load(flags)), times({0.25, 3})) << "the end is not part of the window";
  flags.trace_duration_s = 60.6;
  flags.trace_scale = 2;
  EXPECT_THAT(times_of(load(flags)), times({0.125, 1.5, 30.25}));
  flags.num_prompts = 2;
  EXPECT_EQ(load(flags).size(), 2u);
  flags.trace_max_len = 33;
  EXPECT_THAT(times_of(load(flags)), times({0.125, 1.5}));
  flags.trace_max_len = 32;
  EXPECT_THAT(times_of(load(flags)), times({0.125}));
  flags.trace_max_len = 21;
  EXPECT_THAT(load_dataset(flags, nullptr, false).status().message(), HasSubstr("3 are longer than --trace-max-len"));
  flags.trace_start_s = 100;
  EXPECT_THAT(load_dataset(flags, nullptr, false).status().message(), HasSubstr("it covers 62 s, --trace-start is 100"));
}

// The first rows of the trace, their differences taken by hand: 18:15:46.6805900, 18:15:50.9951690.
TEST(AzureTrace, TheBuiltInSampleIsTheTracesBegin) {
  const auto requests = load(trace("azure", ""));
  ASSERT_EQ(requests.size(), 1000u);
  EXPECT_EQ(requests[0].input_tokens, 374);
  EXPECT_EQ(requests[0].output_tokens, 44);
  EXPECT_NEAR(requests[1].arrival_s, 4.314579, 1e-6);
  EXPECT_NEAR(requests.back().arrival_s, 216.027393, 1e-6);  // 18:19:22.7079830
}

TEST(AzureTrace, BadRowsAreNamed) {
  const std::string header = "TIMESTAMP,ContextTokens,GeneratedTokens\n", first = "2023-11-16 18:15:46.5,10,1\n";
  for (const auto& [rows, message] : std::vector<std::pair<std::string, std::string>>{
           {first + "2023-11-16 18:15:46.25,10,1\n", ":3: its time is 0.25 s before the row above; sort the trace by time"},
           {"-5,10,1\n", ":2: TIMESTAMP: expected e.g. 2023-11-16 18:15:46.6805900, got `-5`"},
           {"2023-02-30 18:15:46,10,1\n", ":2: TIMESTAMP"},
           {"2023-11-16 18:15:-6,10,1\n", ":2: TIMESTAMP"},
           {"2023-11-16 18:15:46+02:00,10,1\n", ":2: TIMESTAMP"},
           {first + "2023-11-16 18:15:47,10,0\n", ":3: GeneratedTokens: expected a number of tokens"},
           {first + "2023-11-16 18:15:47,10\n", ":3: `2023-11-16 18:15:47,10` has no GeneratedTokens"}}) {
    const DataFile file(header + rows);
    EXPECT_THAT(load_dataset(trace("azure", file.path()), nullptr, false).status().message(), HasSubstr(message)) << rows;
  }
  const DataFile file("time,in,out\n1,2,3\n");
  EXPECT_THAT(load_dataset(trace("azure", file.path()), nullptr, false).status().message(), HasSubstr("there is no `TIMESTAMP`"));
  const DataFile other_zone(header + "2024-05-10T00:00:00.25+00:00,10,1\n2024-05-10T00:00:01Z,10,1\n");
  EXPECT_THAT(times_of(load(trace("azure", other_zone.path()))), times({0, 0.75}));
}

std::size_t shared(const BenchRequest& a, const BenchRequest& b) {
  return static_cast<std::size_t>(std::mismatch(a.ids.begin(), a.ids.end(), b.ids.begin(), b.ids.end()).first - a.ids.begin());
}

TEST(MooncakeTrace, EqualHashesAreEqualBlocksOf512Tokens) {
  const DataFile file(
      "{\"timestamp\": 1000, \"input_length\": 1100, \"output_length\": 5, \"hash_ids\": [7, 8, 9]}\n"
      "{\"timestamp\": 1000, \"input_length\": 1536, \"output_length\": 6, \"hash_ids\": [7, 8, 10]}\n"
      "{\"timestamp\": 4000, \"input_length\": 512, \"output_length\": 7, \"hash_ids\": [11]}\n"
      "{\"timestamp\": 4500, \"input_length\": 600, \"output_length\": 8, \"hash_ids\": [7, 12]}\n"
      "{\"timestamp\": 4500, \"input_length\": 1537, \"output_length\": 8, \"hash_ids\": [11, 7, 8, 10]}\n");
  DatasetFlags flags = trace("mooncake", file.path());
  const auto r = load(flags);
  ASSERT_EQ(r.size(), 5u);
  EXPECT_THAT(times_of(r), times({0, 0, 3, 3.5, 3.5}));
  for (const auto& [i, length] : std::vector<std::pair<std::size_t, std::size_t>>{{0, 1100}, {1, 1536}, {2, 512}, {3, 600}, {4, 1537}})
    EXPECT_EQ(r[i].ids.size(), length);
  EXPECT_EQ(shared(r[0], r[1]), 1024u);
  EXPECT_EQ(shared(r[0], r[3]), 512u);
  EXPECT_LT(shared(r[0], r[2]), 4u);
  EXPECT_EQ(shared(r[2], r[4]), 512u);
  EXPECT_TRUE(std::equal(r[1].ids.begin(), r[1].ids.begin() + 1024, r[4].ids.begin() + 512)) << "wherever the block stands";
  EXPECT_EQ(r[3].output_tokens, 8);
  flags.name = "timed_trace";
  EXPECT_EQ(load(flags)[1].ids, r[1].ids) << "vLLM's name for it";
  flags.seed = 1;
  EXPECT_LT(shared(load(flags)[1], r[1]), 4u);
}

TEST(MooncakeTrace, TheBuiltInSampleIsTheTracesBegin) {
  DatasetFlags flags = trace("mooncake", "");
  flags.num_prompts = 12;
  const auto r = load(flags);
  ASSERT_EQ(r.size(), 12u);
  EXPECT_EQ(r[0].ids.size(), 6758u);
  EXPECT_EQ(r[0].output_tokens, 500);
  EXPECT_EQ(r[10].arrival_s, 3);
  EXPECT_EQ(shared(r[0], r[1]), 512u) << "both begin with block 0";
}

TEST(MooncakeTrace, BadRowsAreNamed) {
  const std::string good = "{\"timestamp\": 10, \"input_length\": 4, \"output_length\": 1, \"hash_ids\": [1]}\n";
  for (const auto& [row, message] : std::vector<std::pair<std::string, std::string>>{
           {"{\"timestamp\": 9, \"input_length\": 4, \"output_length\": 1, \"hash_ids\": [1]}",
            ":2: its time is 0.001 s before the row above"},
           {"{\"timestamp\": -1, \"input_length\": 4, \"output_length\": 1, \"hash_ids\": [1]}", ":2: `timestamp`: expected milliseconds"},
           {"{\"timestamp\": \"10\", \"input_length\": 4, \"output_length\": 1, \"hash_ids\": [1]}", ":2: `timestamp`"},
           {"{\"timestamp\": 10, \"input_length\": 0, \"output_length\": 1, \"hash_ids\": []}", ":2: input_length: expected a number"},
           {"{\"timestamp\": 10, \"input_length\": 4, \"output_length\": 1.5, \"hash_ids\": [1]}", ":2: output_length: expected a number"},
           {"{\"timestamp\": 10, \"input_length\": 513, \"output_length\": 1, \"hash_ids\": [1]}", ":2: `hash_ids`: expected 2 numbers"},
           {"{\"timestamp\": 10, \"input_length\": 4, \"output_length\": 1, \"hash_ids\": [-1]}", ":2: `hash_ids`: expected 1 numbers"},
           {"{\"timestamp\": 10, \"input_length\": 4, \"output_length\": 1}", ":2: `hash_ids`"},
           {"{\"timestamp\": 10", ":2: expected a JSON object"}}) {
    const DataFile file(good + row + "\n");
    EXPECT_THAT(load_dataset(trace("mooncake", file.path()), nullptr, false).status().message(), HasSubstr(message)) << row;
  }
  EXPECT_THAT(load_dataset(trace("mooncake", "/nowhere/trace.jsonl"), nullptr, false).status().message(),
              HasSubstr("/nowhere/trace.jsonl"));
}

TEST(Traces, AsTextWhereTheEndpointTakesOnlyText) {
  const auto tokenizer = byte_tokenizer();
  const DataFile file(kAzure);
  for (const BenchRequest& r : load(trace("azure", file.path()), tokenizer.get(), true)) {
    EXPECT_TRUE(r.ids.empty() && !r.prompt.empty());
    EXPECT_GE(r.arrival_s, 0);
  }
}

}  // namespace
}  // namespace baton::app
