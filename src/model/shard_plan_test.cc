#include "model/shard_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/rng.h"

namespace baton::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr ShardShape kSmol{.heads = 9, .kv_heads = 3, .ffn = 1536, .vocab = 49152, .head_unit = 1, .ffn_unit = 32};
constexpr ShardShape kQwen32B{.heads = 40, .kv_heads = 8, .ffn = 27648, .vocab = 152064, .head_unit = 1, .ffn_unit = 32};

// What must hold for every shape and degree, whatever rule splits them.
void check(const ShardShape& s, const ShardPlan& plan) {
  const std::int32_t group = s.heads / s.kv_heads;
  std::int32_t heads = 0, ffn = 0, vocab = 0, held = 0;
  for (int r = 0; r < plan.ranks(); ++r) {
    const Shard& shard = plan.of(Rank(r));
    ASSERT_EQ(shard.heads.begin, heads) << "each query head on one rank, in order";
    ASSERT_EQ(shard.ffn.begin, ffn);
    ASSERT_EQ(shard.vocab.begin, vocab);
    heads = shard.heads.end, ffn = shard.ffn.end, vocab = shard.vocab.end;
    ASSERT_GT(shard.heads.size(), 0);
    ASSERT_GT(shard.ffn.size(), 0);
    ASSERT_GT(shard.vocab.size(), 0);
    ASSERT_EQ(shard.heads.begin % s.head_unit, 0);
    ASSERT_EQ(shard.ffn.begin % s.ffn_unit, 0);
    ASSERT_EQ(shard.heads.size() % shard.kv_heads.size(), 0) << "each KV head of a rank has equally many query heads there";
    const std::int32_t local_group = shard.heads.size() / shard.kv_heads.size();
    for (std::int32_t h = shard.heads.begin; h < shard.heads.end; ++h)
      ASSERT_EQ(shard.kv_heads.begin + (h - shard.heads.begin) / local_group, h / group) << "a query head finds its KV head by division";
    ASSERT_LE(shard.kv_heads.begin, held) << "no KV head is left out";
    ASSERT_GE(shard.kv_heads.end, held) << "KV heads are in order, as a hand-off wants them";
    held = shard.kv_heads.end;
  }
  ASSERT_EQ(heads, s.heads);
  ASSERT_EQ(ffn, s.ffn);
  ASSERT_EQ(vocab, s.vocab);
  ASSERT_EQ(held, s.kv_heads);
}

TEST(ShardPlan, CoversEveryShapeOnceAtEveryDegreeThatItSaysWorks) {
  Rng rng(1);
  int plans = 0;
  for (int i = 0; i < 3000; ++i) {
    ShardShape s;
    s.kv_heads = 1 + static_cast<std::int32_t>(rng.below(16));
    s.head_unit = 1 << rng.below(2);
    s.heads = s.kv_heads * s.head_unit * (1 + static_cast<std::int32_t>(rng.below(8)));
    s.ffn_unit = rng.below(2) == 0 ? 32 : 256;
    s.ffn = s.ffn_unit * (1 + static_cast<std::int32_t>(rng.below(60)));
    s.vocab = 100 + static_cast<std::int32_t>(rng.below(3000));
    const auto degrees = ShardPlan::degrees(s, 16);
    ASSERT_FALSE(degrees.empty());
    for (int ranks = 1; ranks <= 16; ++ranks) {
      const auto plan = ShardPlan::make(s, ranks);
      ASSERT_EQ(plan.ok(), std::ranges::find(degrees, ranks) != degrees.end());
      if (!plan.ok()) continue;
      ASSERT_EQ(plan->ranks(), ranks);
      check(s, *plan);
      if (HasFatalFailure()) FAIL() << "shape " << i << " over " << ranks;
      ++plans;
    }
  }
  EXPECT_GT(plans, 10'000);
}

TEST(ShardPlan, UnevenHeadsAndMoreRanksThanKvHeads) {
  EXPECT_THAT(ShardPlan::degrees(kSmol, 12), ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 9));
  const ShardPlan two = *ShardPlan::make(kSmol, 2);
  EXPECT_EQ(two.of(Rank(0)).kv_heads, (Extent{0, 2}));
  EXPECT_EQ(two.of(Rank(1)).heads, (Extent{6, 9}));
  EXPECT_EQ(two.of(Rank(1)).ffn, (Extent{768, 1536}));
  const ShardPlan four = *ShardPlan::make(kSmol, 4);
  EXPECT_EQ(four.of(Rank(0)).heads, (Extent{0, 2}));
  EXPECT_EQ(four.of(Rank(1)).heads, (Extent{2, 3}));
  EXPECT_EQ(four.of(Rank(1)).kv_heads, (Extent{0, 1})) << "a copy";
  const ShardPlan eight = *ShardPlan::make(kQwen32B, 8);
  for (int r = 0; r < 8; ++r) EXPECT_EQ(eight.of(Rank(r)).heads, (Extent{5 * r, 5 * r + 5}));
}

TEST(ShardPlan, ADegreeThatCannotWorkIsRefusedWithThoseThatCan) {
  const auto ten = ShardPlan::make(kSmol, 10);
  ASSERT_FALSE(ten.ok());
  EXPECT_THAT(ten.status().message(), HasSubstr("10 ranks"));
  EXPECT_THAT(ten.status().message(), HasSubstr("1, 2, 3, 4, 5, 6, 7, 8, 9"));
  // Scales over 256 weights span two heads of 128: only a border behind an even head is one.
  ShardShape k_quants = kQwen32B;
  k_quants.head_unit = 2;
  EXPECT_THAT(ShardPlan::degrees(k_quants, 8), ElementsAre(1, 2, 4));
}

}  // namespace
}  // namespace baton::model
