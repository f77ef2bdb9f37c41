#include "transfer/relayout.h"

#include <gtest/gtest.h>

#include <bit>
#include <map>

#include "device/half.h"
#include "transfer/shm/copy_digest.h"
#include "transfer/test_pool.h"

namespace baton::transfer {
namespace {

using device::DType;
using device::KvKind;
using testing::each_row;
using testing::logical_row;
using testing::random_blocks;
using testing::random_shards;
using testing::TestRanks;
using testing::write_rows;

// A logical row as a pool of another element type would have it, by another way than the fabric's.
std::vector<std::byte> converted(const std::vector<std::byte>& row, DType from, DType to) {
  if (from == to) return row;
  std::vector<std::byte> out(row.size() / size_of(from) * size_of(to));
  for (std::size_t i = 0; i < row.size() / size_of(from); ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, row.data() + i * size_of(from), size_of(from));
    float value = std::bit_cast<float>(bits);
    if (from == DType::kBF16) value = std::bit_cast<float>(bits << 16);
    if (from == DType::kF16) {
      _Float16 half;
      std::memcpy(&half, &bits, sizeof half);
      value = static_cast<float>(half);
    }
    std::byte* at = out.data() + i * size_of(to);
    const auto half = static_cast<_Float16>(value);
    const std::uint16_t bf16 = device::float_to_bf16(value);
    if (to == DType::kF32) std::memcpy(at, &value, 4);
    if (to == DType::kF16) std::memcpy(at, &half, 2);
    if (to == DType::kBF16) std::memcpy(at, &bf16, 2);
  }
  return out;
}

// Values that no type makes a NaN of: a NaN's payload is nobody's promise.
void write_numbers(const TestRanks& ranks, const std::vector<BlockId>& blocks, std::uint64_t seed, int layer, Range tokens) {
  each_row(ranks, blocks, layer, tokens, [&](std::byte* at, int head, KvKind kind, std::int32_t token) {
    const auto& spec = ranks.spec();
    std::vector<std::byte> floats(static_cast<std::size_t>(spec.head_dim) * 4);
    Rng rng(seed, (static_cast<std::uint64_t>(head) << 40) ^ (static_cast<std::uint64_t>(kind) << 36) ^ static_cast<std::uint64_t>(token));
    for (std::size_t i = 0; i < floats.size(); i += 4) {
      const float f = (static_cast<float>(rng.below(1 << 20)) - (1 << 19)) / static_cast<float>(1 << rng.below(30));
      std::memcpy(floats.data() + i, &f, 4);
    }
    const auto row = converted(floats, DType::kF32, spec.dtype);
    std::memcpy(at, row.data(), row.size());
  });
}

// Random pairs of degrees, shards, layouts, block sizes and element types: what arrives on every rank of the target is what it would hold
// if it had laid out the logical KV itself, nothing else is touched, and both sides get the digest that an independent walk over logical
// rows gives. The source's ranks announce apart, as they do on the wire, and cover every head once.
TEST(Relayout, AnyLayoutFeedsAnyOther) {
  int pairs = 0, replicas = 0, conversions = 0;
  for (std::uint64_t seed = 0; seed < 1000; ++seed, ++pairs) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    const int heads = 1 + static_cast<int>(rng.below(8));
    const std::int32_t n_tokens = 1 + static_cast<std::int32_t>(rng.below(60));
    constexpr DType kTypes[] = {DType::kBF16, DType::kF16, DType::kF32};
    device::KvSpec spec;
    spec.layers = 2;
    spec.kv_heads = heads;
    spec.head_dim = 2 * (1 + static_cast<int>(rng.below(20)));
    const auto ranks = [&] {
      spec.dtype = rng.below(2) == 0 ? DType::kBF16 : kTypes[rng.below(3)];
      spec.block_tokens = 1 + static_cast<int>(rng.below(40));
      spec.blocks = n_tokens / spec.block_tokens + 3;
      return TestRanks(rng, spec, random_shards(rng, heads, 1 + static_cast<int>(rng.below(9))));
    };
    const TestRanks from = ranks(), to = ranks();
    const wire::KvSchema schema{2, heads, spec.head_dim, std::string(to_string(from.spec().dtype))};
    ASSERT_TRUE(check_region(from.region(), schema).ok()) << check_region(from.region(), schema).to_string();
    const auto blocks_of = [&](const TestRanks& p) {
      return random_blocks(rng, p.spec().blocks, static_cast<std::size_t>((n_tokens + p.spec().block_tokens - 1) / p.spec().block_tokens));
    };
    const auto from_blocks = blocks_of(from), to_blocks = blocks_of(to);
    const std::int32_t begin = static_cast<std::int32_t>(rng.below(n_tokens));
    const Range tokens{begin, begin + 1 + static_cast<std::int32_t>(rng.below(n_tokens - begin))};
    for (int layer = 0; layer < 2; ++layer) write_numbers(from, from_blocks, seed + layer, layer, {0, n_tokens});
    for (const auto part : to.bytes()) std::memset(part.data(), 0x5a, part.size());

    // Placements begin at the first block that holds a token of the range, as they do on the wire.
    const auto place = [&](const TestRanks& p, const std::vector<BlockId>& blocks) {
      const Range b = block_range(tokens, p.spec().block_tokens);
      return Placement{p.parts(), std::span(blocks).subspan(b.begin, b.size()), b.begin * p.spec().block_tokens};
    };
    const auto source = place(from, from_blocks), target = place(to, to_blocks);
    const auto source_bytes = from.const_bytes();
    std::vector<int> announced(heads, 0);
    for (const Range part : announced_heads(from.parts())) {
      for (int h = part.begin; h < part.end; ++h) ++announced[h];
      const auto plan = plan_copy(source, target, 1, part, tokens);
      ASSERT_TRUE(plan.ok()) << plan.status().to_string();
      ASSERT_TRUE(plan_inside(*plan, source_bytes, to.bytes()));
      replicas += !plan->replicas.empty();
      const Digest digest = copy_and_digest(source_bytes, to.bytes(), *plan);
      EXPECT_EQ(digest_runs(from.bytes(), *plan_local(source, 1, part, tokens)), digest);

      Digester reference;
      for (int h = part.begin; h < part.end; ++h) {
        for (auto kind : {KvKind::kKey, KvKind::kValue}) {
          for (std::int32_t t = tokens.begin; t < tokens.end; ++t) {
            each_row(from, from_blocks, 1, {t, t + 1}, [&, seen = false](const std::byte* at, int head, KvKind k, std::int32_t) mutable {
              if (head == h && k == kind && !std::exchange(seen, true)) reference.update(at, from.spec().row_bytes());
            });
          }
        }
      }
      EXPECT_EQ(digest, reference.finish());
    }
    EXPECT_EQ(announced, std::vector<int>(heads, 1));
    conversions += from.spec().dtype != to.spec().dtype;

    std::map<std::tuple<int, KvKind, std::int32_t>, std::vector<std::byte>> logical;
    each_row(from, from_blocks, 1, tokens, [&](const std::byte* at, int head, KvKind kind, std::int32_t token) {
      logical[{head, kind, token}] = converted({at, at + from.spec().row_bytes()}, from.spec().dtype, to.spec().dtype);
    });
    std::size_t rows = 0, different = 0, changed = 0;
    each_row(to, to_blocks, 1, tokens, [&](const std::byte* at, int head, KvKind kind, std::int32_t token) {
      ++rows;
      different += std::memcmp(at, logical.at({head, kind, token}).data(), to.spec().row_bytes()) != 0;
    });
    EXPECT_EQ(different, 0u) << "of " << rows;
    for (const auto part : to.bytes())
      changed += static_cast<std::size_t>(std::ranges::count_if(part, [](auto b) { return b != std::byte{0x5a}; }));
    EXPECT_LE(changed, rows * to.spec().row_bytes());
    if (HasFailure()) return;
  }
  EXPECT_GT(replicas, 300);
  EXPECT_GT(conversions, 200);
  RecordProperty("layout_pairs", pairs);
}

std::vector<RegionPart> one(const device::KvView& view) { return {{3, view.spec.bytes(), view, {0, view.spec.kv_heads}}}; }

TEST(Relayout, DenseRunsAreWholeBlocks) {
  const auto parts = one(device::KvView::dense({4, 3, 64, DType::kBF16, 16, 10}));
  const std::vector<BlockId> a = {BlockId(7), BlockId(2)}, b = {BlockId(1), BlockId(9)};
  const auto plan = plan_copy({parts, a, 0}, {parts, b, 0}, 2, {0, 3}, {0, 32});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->runs.size(), 3u * 2 * 2);
  for (const ByteRun& r : plan->runs) EXPECT_EQ(r.bytes, 16 * 128);
  EXPECT_TRUE(plan->replicas.empty());
}

TEST(Relayout, RefusesWhatLeavesThePlacement) {
  const auto parts = one(device::KvView::dense({4, 3, 64, DType::kBF16, 16, 10}));
  const std::vector<BlockId> blocks = {BlockId(7), BlockId(2)};
  const Placement p{parts, blocks, 16};
  EXPECT_TRUE(plan_copy(p, p, 0, {0, 3}, {16, 48}).ok());
  EXPECT_FALSE(plan_copy(p, p, 4, {0, 3}, {16, 48}).ok());
  EXPECT_FALSE(plan_copy(p, p, 0, {0, 4}, {16, 48}).ok());
  EXPECT_FALSE(plan_copy(p, p, 0, {0, 3}, {15, 48}).ok());
  EXPECT_FALSE(plan_copy(p, p, 0, {0, 3}, {16, 49}).ok());
  EXPECT_FALSE(plan_copy(p, p, 0, {0, 3}, {20, 20}).ok());
}

TEST(Relayout, ViewsThatLeaveTheirRegionAreRefused) {
  auto view = device::KvView::dense({4, 3, 64, DType::kBF16, 16, 10});
  EXPECT_TRUE(check_view(view, view.spec.bytes()).ok());
  EXPECT_FALSE(check_view(view, view.spec.bytes() - 1).ok());
  view.layer_stride = std::int64_t{1} << 62;
  EXPECT_FALSE(check_view(view, ~0ull >> 1).ok());
  view = device::KvView::dense({4, 3, 64, DType::kBF16, 16, 10});
  view.head_stride = -1;
  EXPECT_FALSE(check_view(view, view.spec.bytes()).ok());
}

TEST(Relayout, RanksThatDoNotMakeUpAPoolAreRefused) {
  const wire::KvSchema schema{4, 3, 64, "bf16"};
  const auto part = [](Range heads, int block_tokens = 16, int blocks = 10) {
    const auto view = device::KvView::dense({4, heads.size(), 64, DType::kBF16, block_tokens, blocks});
    return RegionPart{3, view.spec.bytes(), view, heads};
  };
  const auto why = [&](std::vector<RegionPart> parts) { return check_region({1, std::move(parts)}, schema).message(); };
  EXPECT_EQ(why({part({0, 2}), part({2, 3})}), "");
  EXPECT_EQ(why({part({0, 1}), part({0, 1}), part({1, 2}), part({2, 3})}), "") << "a repeated head";
  EXPECT_NE(why({}), "");
  EXPECT_NE(why({part({0, 2})}).find("hold 2"), std::string::npos);
  EXPECT_NE(why({part({0, 1}), part({2, 3})}).find("not in order"), std::string::npos) << "a gap";
  EXPECT_NE(why({part({1, 3}), part({0, 1})}).find("not in order"), std::string::npos);
  EXPECT_NE(why({part({0, 2}), part({2, 4})}).find("shape"), std::string::npos);
  EXPECT_NE(why({part({0, 2}), part({2, 3}, 32)}).find("differ in their blocks"), std::string::npos);
  EXPECT_NE(why({part({0, 2}), part({2, 3}, 16, 11)}).find("differ in their blocks"), std::string::npos);
  auto other_type = part({2, 3});
  other_type.view.spec.dtype = DType::kF16;
  EXPECT_NE(why({part({0, 2}), other_type}).find("shape"), std::string::npos);
  auto beyond = part({2, 3});
  beyond.bytes -= 1;
  EXPECT_NE(why({part({0, 2}), beyond}).find("leaves its region"), std::string::npos);
}

}  // namespace
}  // namespace baton::transfer
