#include "engine/device_step.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace baton::engine {
namespace {

constexpr DeviceStepLimits kLimits{.tokens = 16, .seqs = 4, .logit_rows = 8, .positions = 40, .blocks = 20, .block_tokens = 4};

struct Sequence {
  std::vector<TokenId> ids;
  std::vector<BlockId> blocks;
};

Sequence sequence(std::int32_t first_id, std::vector<std::int32_t> blocks) {
  Sequence s;
  for (std::int32_t i = 0; i < 24; ++i) s.ids.push_back(first_id + i);
  for (const std::int32_t b : blocks) s.blocks.push_back(BlockId(b));
  return s;
}

StepRow row(const Sequence& s, std::int32_t begin, std::int32_t end, bool sample) {
  StepRow r;
  r.begin = begin, r.end = end, r.ids = &s.ids, r.blocks = &s.blocks;
  if (sample) r.sample.emplace();
  return r;
}

std::vector<std::int32_t> copy(std::span<const std::int32_t> x) { return {x.begin(), x.end()}; }
using Words = std::vector<std::int32_t>;

TEST(DeviceStep, HoldsTheRowsOfAPlan) {
  const Sequence a = sequence(100, {7, 3}), b = sequence(200, {9, 1, 2});
  StepPlan plan;
  plan.copies = {{.from = BlockId(5), .to = BlockId(6)}};
  plan.rows = {row(a, 5, 6, true), row(b, 6, 10, false)};
  DeviceStep step(kLimits);
  step.fill(plan);
  const device::StepMeta& m = step.meta();
  EXPECT_EQ(copy(m.token_ids), (Words{105, 206, 207, 208, 209}));
  EXPECT_EQ(copy(m.positions), (Words{5, 6, 7, 8, 9}));
  EXPECT_EQ(copy(m.slots), (Words{13, 6, 7, 8, 9}));
  EXPECT_EQ(copy(m.q_start), (Words{0, 1, 5}));
  EXPECT_EQ(copy(m.kv_len), (Words{6, 10}));
  EXPECT_EQ(m.max_blocks, 3);
  EXPECT_EQ(copy(m.block_tables), (Words{7, 3, 0, 9, 1, 2}));
  EXPECT_EQ(copy(m.logit_rows), (Words{0}));
  ASSERT_EQ(step.copies().size(), 1u);
  EXPECT_EQ(step.copies()[0].to, BlockId(6));
}

TEST(DeviceStep, IsTheSameOnAnotherHost) {
  const Sequence a = sequence(100, {7, 3}), b = sequence(200, {9, 1, 2});
  StepPlan plan;
  plan.copies = {{.from = BlockId(5), .to = BlockId(6)}, {.from = BlockId(0), .to = BlockId(19)}};
  plan.rows = {row(a, 5, 6, true), row(b, 6, 10, true)};
  DeviceStep here(kLimits), there(kLimits);
  for (int round = 0; round < 2; ++round) {  // its memory is used again
    here.fill(plan);
    Words words, again;
    here.write(words);
    EXPECT_LE(words.size(), kLimits.words());
    ASSERT_TRUE(there.read(words).ok());
    there.write(again);
    EXPECT_EQ(words, again);
    EXPECT_EQ(copy(there.meta().token_ids), copy(here.meta().token_ids));
    EXPECT_EQ(there.meta().max_blocks, here.meta().max_blocks);
    plan.rows.pop_back();
    plan.copies.clear();
  }
}

TEST(DeviceStep, GarbageIsRefused) {
  const Sequence a = sequence(100, {7, 3, 19});
  StepPlan plan;
  plan.copies = {{.from = BlockId(5), .to = BlockId(6)}};
  plan.rows = {row(a, 2, 9, true)};
  DeviceStep here(kLimits), there(kLimits);
  here.fill(plan);
  Words good;
  here.write(good);
  for (std::size_t length = 0; length < good.size(); ++length) EXPECT_FALSE(there.read(std::span(good).first(length)).ok());
  Words longer = good;
  longer.push_back(0);
  EXPECT_FALSE(there.read(longer).ok());
  // Whatever is read is within what ops may index: token ids alone can be anything.
  Rng rng(1);
  for (int round = 0; round < 20000; ++round) {
    Words words = good;
    const std::size_t at = rng.below(words.size());
    words[at] = rng.below(2) == 0 ? static_cast<std::int32_t>(rng.below(50)) - 5 : static_cast<std::int32_t>(rng.next_u64());
    if (!there.read(words).ok()) continue;
    const device::StepMeta& m = there.meta();
    for (const std::int32_t slot : m.slots) ASSERT_TRUE(slot >= 0 && slot < 80);
    for (const std::int32_t block : m.block_tables) ASSERT_TRUE(block >= 0 && block < 20);
    for (const std::int32_t position : m.positions) ASSERT_TRUE(position >= 0 && position < 40);
    for (const std::int32_t logit : m.logit_rows) ASSERT_TRUE(logit >= 0 && logit < m.tokens());
    for (const std::int32_t length : m.kv_len) ASSERT_TRUE(length >= 0 && length <= 4 * m.max_blocks);
    ASSERT_EQ(m.q_start.back(), m.tokens());
    for (std::size_t s = 0; s < m.kv_len.size(); ++s) ASSERT_GE(m.kv_len[s], m.q_start[s + 1] - m.q_start[s]);
    ASSERT_EQ(m.block_tables.size(), m.kv_len.size() * static_cast<std::size_t>(m.max_blocks));
  }
  ASSERT_TRUE(there.read(good).ok());
}

}  // namespace
}  // namespace baton::engine
