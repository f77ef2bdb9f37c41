#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "app/bench/dataset.h"

namespace baton::app {
namespace {

DatasetFlags mix(std::int64_t chats, double rate) {
  DatasetFlags flags;
  flags.name = "mix";
  flags.num_prompts = chats;
  flags.mix_rate = rate;
  return flags;
}

std::vector<BenchRequest> load(const DatasetFlags& flags, const std::string& kind = "") {
  auto out = load_dataset(flags, nullptr, false);
  EXPECT_TRUE(out.ok()) << out.status().to_string();
  if (!out.ok()) return {};
  if (!kind.empty()) std::erase_if(*out, [&](const BenchRequest& r) { return r.kind != kind; });
  return *out;
}

TEST(Mix, LongPromptsComeEveryFewSecondsAsLongAsChatsDo) {
  const auto all = load(mix(60, 2)), longs = load(mix(60, 2), "long"), chats = load(mix(60, 2), "chat");
  EXPECT_EQ(chats.size(), 60u);
  ASSERT_EQ(longs.size(), 7u) << "the chats come for 30 s";
  for (std::size_t i = 0; i < longs.size(); ++i) {
    EXPECT_DOUBLE_EQ(longs[i].arrival_s, 4.0 * static_cast<double>(i + 1));
    EXPECT_EQ(longs[i].input_tokens, 2000);
    EXPECT_EQ(longs[i].output_tokens, 16);
  }
  EXPECT_NEAR(chats.back().arrival_s, 30, 1e-9);
  EXPECT_TRUE(std::ranges::is_sorted(all, {}, &BenchRequest::arrival_s));
}

TEST(Mix, ChatsAreShortAndTheSameAtEveryRate) {
  const auto slow = load(mix(200, 1), "chat"), fast = load(mix(200, 10), "chat");
  double input = 0, output = 0;
  for (std::size_t i = 0; i < slow.size(); ++i) {
    EXPECT_EQ(slow[i].ids, fast[i].ids);
    EXPECT_EQ(slow[i].output_tokens, fast[i].output_tokens);
    EXPECT_NEAR(slow[i].arrival_s, 10 * fast[i].arrival_s, 1e-9);
    EXPECT_TRUE(slow[i].input_tokens >= 32 && slow[i].input_tokens <= 96);
    input += static_cast<double>(slow[i].input_tokens) / 200;
    output += static_cast<double>(slow[i].output_tokens) / 200;
  }
  EXPECT_NEAR(input, 64, 4);
  EXPECT_NEAR(output, 128, 8);
}

TEST(Mix, AllAtOnceHasOneLongPrompt) {
  const auto all = load(mix(10, 0));
  EXPECT_EQ(all.size(), 11u);
  EXPECT_TRUE(std::ranges::all_of(all, [](const BenchRequest& r) { return r.arrival_s == 0; }));
  EXPECT_EQ(load(mix(10, 0), "long").size(), 1u);
}

TEST(Mix, ItsParametersHold) {
  DatasetFlags flags = mix(20, 4);
  flags.mix_chat_input_len = 10;
  flags.mix_chat_output_len = 20;
  flags.mix_long_input_len = 500;
  flags.mix_long_output_len = 3;
  flags.mix_long_every_s = 1;
  EXPECT_EQ(load(flags, "long").size(), 5u);
  EXPECT_EQ(load(flags, "long")[0].ids.size(), 500u);
  EXPECT_LE(load(flags, "chat")[0].ids.size(), 15u);
  EXPECT_TRUE(flags.wants_full_answers());
}

}  // namespace
}  // namespace baton::app
