#include "transfer/relayout.h"

#include <gtest/gtest.h>

#include "transfer/shm/copy_digest.h"
#include "transfer/test_pool.h"

namespace baton::transfer {
namespace {

using testing::logical_row;
using testing::random_blocks;
using testing::random_layout;
using testing::rows_equal;
using testing::TestPool;
using testing::write_rows;

// Random pairs of layouts, block sizes and head shards: what arrives equals what the target would have written itself, nothing else is
// touched, and both sides get the digest that an independent walk over logical rows gives.
TEST(Relayout, AnyLayoutFeedsAnyOther) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    const int model_heads = 1 + static_cast<int>(rng.below(6));
    const int dim = 2 * (1 + static_cast<int>(rng.below(20)));
    const std::int32_t n_tokens = 1 + static_cast<std::int32_t>(rng.below(90));
    const auto shard = [&] {
      const int begin = static_cast<int>(rng.below(model_heads));
      return Range{begin, begin + 1 + static_cast<int>(rng.below(model_heads - begin))};
    };
    Range from_heads = shard(), to_heads = shard();
    const Range heads{std::max(from_heads.begin, to_heads.begin), std::min(from_heads.end, to_heads.end)};
    if (heads.size() <= 0) continue;
    const auto spec = [&](Range own) {
      device::KvSpec s;
      s.layers = 2;
      s.kv_heads = own.size();
      s.head_dim = dim;
      s.dtype = device::DType::kBF16;
      s.block_tokens = 1 + static_cast<int>(rng.below(40));
      s.blocks = n_tokens / s.block_tokens + 3;
      return s;
    };
    const auto from_layout = random_layout(rng, spec(from_heads)), to_layout = random_layout(rng, spec(to_heads));
    TestPool from(from_layout.view, from_layout.bytes), to(to_layout.view, to_layout.bytes);
    ASSERT_TRUE(check_view(from.view(), from.shared_region()->bytes).ok());
    const auto blocks_of = [&](const TestPool& p) {
      return random_blocks(rng, p.view().spec.blocks,
                           static_cast<std::size_t>((n_tokens + p.view().spec.block_tokens - 1) / p.view().spec.block_tokens));
    };
    const auto from_blocks = blocks_of(from), to_blocks = blocks_of(to);
    const std::int32_t begin = static_cast<std::int32_t>(rng.below(n_tokens));
    const Range tokens{begin, begin + 1 + static_cast<std::int32_t>(rng.below(n_tokens - begin))};
    for (int layer = 0; layer < 2; ++layer) write_rows(from, from_heads, from_blocks, seed, layer, {0, n_tokens});
    std::memset(to.shared_region()->base, 0x5a, to.shared_region()->bytes);

    // Placements begin at the first block that holds a token of the range, as they do on the wire.
    const auto place = [&](const TestPool& p, Range own, const std::vector<BlockId>& blocks) {
      const Range b = block_range(tokens, p.view().spec.block_tokens);
      return Placement{p.view(), own, std::span(blocks).subspan(b.begin, b.size()), b.begin * p.view().spec.block_tokens};
    };
    const auto source = place(from, from_heads, from_blocks), target = place(to, to_heads, to_blocks);
    const auto runs = plan_runs(source, target, 1, heads, tokens);
    ASSERT_TRUE(runs.ok()) << runs.status().to_string();
    ASSERT_TRUE(runs_inside(*runs, from.shared_region()->bytes, to.shared_region()->bytes));
    const Digest digest = copy_and_digest(from.shared_region()->base, to.shared_region()->base, *runs);

    Digester reference;
    for (int h = heads.begin; h < heads.end; ++h) {
      for (auto kind : {device::KvKind::kKey, device::KvKind::kValue}) {
        for (std::int32_t t = tokens.begin; t < tokens.end; ++t) {
          const auto row = logical_row(seed, 1, h, kind, t, from.view().spec.row_bytes());
          reference.update(row.data(), row.size());
        }
      }
    }
    EXPECT_EQ(digest, reference.finish());
    EXPECT_EQ(digest_runs(from.shared_region()->base, *plan_local(source, 1, heads, tokens)), digest);
    EXPECT_EQ(digest_runs(to.shared_region()->base, *plan_local(target, 1, heads, tokens)), digest);

    // The target's bytes: exactly the range changed.
    std::size_t changed = 0;
    for (std::size_t i = 0; i < to.shared_region()->bytes; ++i) changed += to.shared_region()->base[i] != std::byte{0x5a};
    EXPECT_LE(changed, static_cast<std::size_t>(heads.size()) * 2 * tokens.size() * to.view().spec.row_bytes());
    for (int h = heads.begin; h < heads.end; ++h) {
      for (auto kind : {device::KvKind::kKey, device::KvKind::kValue}) {
        for (std::int32_t t = tokens.begin; t < tokens.end; ++t) {
          const auto row = logical_row(seed, 1, h, kind, t, to.view().spec.row_bytes());
          const int bt = to.view().spec.block_tokens;
          ASSERT_EQ(std::memcmp(to.row(1, to_blocks[t / bt], h - to_heads.begin, kind, t % bt), row.data(), row.size()), 0);
        }
      }
    }
  }
}

TEST(Relayout, DenseRunsAreWholeBlocks) {
  device::KvSpec spec{4, 3, 64, device::DType::kBF16, 16, 10};
  const auto view = device::KvView::dense(spec);
  const std::vector<BlockId> a = {BlockId(7), BlockId(2)}, b = {BlockId(1), BlockId(9)};
  const auto runs = plan_runs({view, {0, 3}, a, 0}, {view, {0, 3}, b, 0}, 2, {0, 3}, {0, 32});
  ASSERT_TRUE(runs.ok());
  EXPECT_EQ(runs->size(), 3u * 2 * 2);
  for (const ByteRun& r : *runs) EXPECT_EQ(r.bytes, 16 * 128);
}

TEST(Relayout, RefusesWhatLeavesThePlacement) {
  device::KvSpec spec{4, 3, 64, device::DType::kBF16, 16, 10};
  const auto view = device::KvView::dense(spec);
  const std::vector<BlockId> blocks = {BlockId(7), BlockId(2)};
  const Placement p{view, {0, 3}, blocks, 16};
  EXPECT_TRUE(plan_runs(p, p, 0, {0, 3}, {16, 48}).ok());
  EXPECT_FALSE(plan_runs(p, p, 4, {0, 3}, {16, 48}).ok());
  EXPECT_FALSE(plan_runs(p, p, 0, {0, 4}, {16, 48}).ok());
  EXPECT_FALSE(plan_runs(p, p, 0, {0, 3}, {15, 48}).ok());
  EXPECT_FALSE(plan_runs(p, p, 0, {0, 3}, {16, 49}).ok());
  EXPECT_FALSE(plan_runs(p, p, 0, {0, 3}, {20, 20}).ok());
}

TEST(Relayout, ViewsThatLeaveTheirRegionAreRefused) {
  auto view = device::KvView::dense({4, 3, 64, device::DType::kBF16, 16, 10});
  EXPECT_TRUE(check_view(view, view.spec.bytes()).ok());
  EXPECT_FALSE(check_view(view, view.spec.bytes() - 1).ok());
  view.layer_stride = std::int64_t{1} << 62;
  EXPECT_FALSE(check_view(view, ~0ull >> 1).ok());
  view = device::KvView::dense({4, 3, 64, device::DType::kBF16, 16, 10});
  view.head_stride = -1;
  EXPECT_FALSE(check_view(view, view.spec.bytes()).ok());
}

}  // namespace
}  // namespace baton::transfer
