// Paged KV write, block copies and attention: against double precision, and bit for bit whatever the chunks, the batch, the block table and
// the number of threads.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "conformance/rig.h"

namespace baton::device {
namespace {

using Attention = Conformance;
INSTANTIATE_TEST_SUITE_P(Devices, Attention, testing::ValuesIn(targets()), target_name);

struct Shape {
  int heads, kv_heads, dim;
  DType kv = DType::kBF16;
  int block_tokens = 0;
  int group() const { return heads / kv_heads; }
  int width() const { return (heads + 2 * kv_heads) * dim; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(dim)); }
  std::string name() const {
    return std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads of " + std::to_string(dim) + ", kv " +
           std::string(to_string(kv));
  }
};

// The fused QKV row of every token of every sequence, as the activation type holds it.
struct Work {
  Shape shape;
  std::vector<int> lengths;
  std::vector<std::vector<float>> qkv;  // [seq][token * width]

  Work(const Rig& rig, Shape s, std::vector<int> l) : shape(s), lengths(std::move(l)) {
    for (std::size_t i = 0; i < lengths.size(); ++i)
      qkv.push_back(rig.rounded(random_values(100 + i, static_cast<std::size_t>(lengths[i] * shape.width()), 2)));
  }
};

// Sequence `seq` computes its next `tokens` tokens.
struct Piece {
  int seq, tokens;
};
using Step = std::vector<Piece>;

// Runs the steps on layer 1 of a pool of two, whose unwritten bytes are NaNs, and returns the outputs [seq][token * heads * dim].
// `placement` seeds the choice of blocks.
std::vector<std::vector<float>> run(Rig& rig, const Work& work, const std::vector<Step>& steps, std::uint64_t placement) {
  const Shape& shape = work.shape;
  const auto width = static_cast<std::size_t>(shape.width()), out_width = static_cast<std::size_t>(shape.heads * shape.dim);
  KvSpec spec{.layers = 2, .kv_heads = shape.kv_heads, .head_dim = shape.dim, .dtype = shape.kv, .block_tokens = shape.block_tokens};
  if (spec.block_tokens == 0) spec.block_tokens = rig.device().info().kv_block_tokens;
  std::int32_t blocks = 0, max_blocks = 0;
  for (int length : work.lengths) {
    const std::int32_t own = (length + spec.block_tokens - 1) / spec.block_tokens;
    blocks += own;
    max_blocks = std::max(max_blocks, own);
  }
  spec.blocks = blocks + 3;
  auto pool = rig.device().create_kv_pool(spec);
  BATON_CHECK_MSG(pool.ok(), pool.status().to_string());
  if (const SharedRegion* region = (*pool)->shared_region()) std::memset(region->base, 0xff, region->bytes);
  std::vector<std::int32_t> order(static_cast<std::size_t>(spec.blocks));
  std::iota(order.begin(), order.end(), 0);
  Rng rng(placement);
  for (std::size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[rng.below(i + 1)]);

  const std::size_t seqs = work.lengths.size();
  std::vector<std::vector<std::int32_t>> table(seqs);
  std::size_t taken = 0;
  for (std::size_t s = 0; s < seqs; ++s)
    for (int t = 0; t < work.lengths[s]; t += spec.block_tokens) table[s].push_back(order[taken++]);

  std::vector<std::vector<float>> result(seqs);
  std::vector<int> done(seqs, 0);
  for (const Step& step : steps) {
    std::vector<float> rows;
    std::vector<std::int32_t> ids, positions, slots, q_start{0}, kv_len, tables;
    for (const Piece& piece : step) {
      const auto s = static_cast<std::size_t>(piece.seq);
      for (int t = done[s]; t < done[s] + piece.tokens; ++t) {
        const auto from = work.qkv[s].begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(t) * width);
        rows.insert(rows.end(), from, from + static_cast<std::ptrdiff_t>(width));
        ids.push_back(0);
        positions.push_back(t);
        slots.push_back(table[s][static_cast<std::size_t>(t / spec.block_tokens)] * spec.block_tokens + t % spec.block_tokens);
      }
      done[s] += piece.tokens;
      q_start.push_back(static_cast<std::int32_t>(ids.size()));
      kv_len.push_back(done[s]);
      for (std::int32_t b = 0; b < max_blocks; ++b)
        tables.push_back(b < static_cast<std::int32_t>(table[s].size()) ? table[s][static_cast<std::size_t>(b)] : 0);
    }
    StepMeta meta;
    meta.token_ids = ids;
    meta.positions = positions;
    meta.slots = slots;
    meta.q_start = q_start;
    meta.kv_len = kv_len;
    meta.block_tables = tables;
    meta.max_blocks = max_blocks;
    BATON_CHECK(rig.context().upload_step(meta).ok());
    const auto tokens = static_cast<std::int64_t>(ids.size());
    const std::int64_t q_width = shape.heads * shape.dim, k_width = shape.kv_heads * shape.dim;
    const Tensor fused = rig.tensor({tokens, shape.width()}, rows);
    const Tensor q = fused.columns(0, q_width).split_last(shape.heads, shape.dim);
    const Tensor k = fused.columns(q_width, q_width + k_width).split_last(shape.kv_heads, shape.dim);
    const Tensor v = fused.columns(q_width + k_width, q_width + 2 * k_width).split_last(shape.kv_heads, shape.dim);
    const Tensor out = rig.blank({tokens, q_width});
    rig.ops().kv_write(meta, **pool, 1, k, v);
    rig.ops().attention(meta, **pool, 1, q, shape.scale(), out.split_last(shape.heads, shape.dim));
    const std::vector<float> values = rig.read(out);
    for (std::size_t p = 0; p < step.size(); ++p) {
      auto& target = result[static_cast<std::size_t>(step[p].seq)];
      target.insert(target.end(), values.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(q_start[p]) * out_width),
                    values.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(q_start[p + 1]) * out_width));
    }
    rig.release_tensors();
  }
  return result;
}

Step all_of(const Work& work) {
  Step step;
  for (std::size_t s = 0; s < work.lengths.size(); ++s) step.push_back({static_cast<int>(s), work.lengths[s]});
  return step;
}

// All sequences side by side, each by `chunk` tokens at a time; sequence s starts s steps late, so that decode and prefill mix.
std::vector<Step> chunked(const Work& work, int chunk) {
  std::vector<Step> steps;
  std::vector<int> left = work.lengths;
  for (std::size_t round = 0; std::any_of(left.begin(), left.end(), [](int n) { return n > 0; }); ++round) {
    Step step;
    for (std::size_t s = 0; s < left.size() && s <= round; ++s)
      if (const int n = std::min(chunk, left[s]); n > 0) {
        step.push_back({static_cast<int>(s), n});
        left[s] -= n;
      }
    if (!step.empty()) steps.push_back(step);
  }
  return steps;
}

void check_against_reference(Rig& rig, const Work& work, const std::vector<std::vector<float>>& got) {
  const Shape& shape = work.shape;
  const auto dim = static_cast<std::size_t>(shape.dim), width = static_cast<std::size_t>(shape.width());
  const auto heads = static_cast<std::size_t>(shape.heads), group = static_cast<std::size_t>(shape.group());
  const double unit = rig.unit();
  for (std::size_t s = 0; s < work.lengths.size(); ++s) {
    const auto length = static_cast<std::size_t>(work.lengths[s]);
    const std::vector<float> stored = round_to(shape.kv, work.qkv[s]);  // K and V as the pool holds them
    std::vector<double> expected(length * heads * dim), bound(expected.size());
    std::vector<double> p(length);
    for (std::size_t t = 0; t < length; ++t)
      for (std::size_t h = 0; h < heads; ++h) {
        const float* q = &work.qkv[s][t * width + h * dim];
        const std::size_t k_at = (heads + h / group) * dim, v_at = k_at + static_cast<std::size_t>(shape.kv_heads) * dim;
        double largest = -1e300, worst = 0, sum = 0;
        for (std::size_t j = 0; j <= t; ++j) {
          double dot = 0, size = 0;
          for (std::size_t d = 0; d < dim; ++d) {
            const double term = static_cast<double>(q[d]) * stored[j * width + k_at + d];
            dot += term;
            size += std::abs(term);
          }
          p[j] = dot * shape.scale();
          largest = std::max(largest, p[j]);
          worst = std::max(worst, size * shape.scale());
        }
        for (std::size_t j = 0; j <= t; ++j) sum += p[j] = std::exp(p[j] - largest);
        // A chain of `dim` terms, its scaling, and the difference to the maximum, all in units of the largest sum of magnitudes, move an
        // exponent by so much; a weight by that, relatively, and by the error of 2^x (at most 2^-21, once a tile); both sums by a unit a
        // term.
        const double weight =
            (static_cast<double>(dim) + 6) * unit * worst + (static_cast<double>(t) / 256 + 2) * std::max(unit, std::ldexp(1.0, -21));
        const double relative = 2 * weight + (static_cast<double>(t) + 20) * unit;
        for (std::size_t d = 0; d < dim; ++d) {
          double o = 0, size = 0;
          for (std::size_t j = 0; j <= t; ++j) {
            const double term = p[j] / sum * stored[j * width + v_at + d];
            o += term;
            size += std::abs(term);
          }
          expected[(t * heads + h) * dim + d] = o;
          bound[(t * heads + h) * dim + d] = relative * size + 1e-37;
        }
      }
    expect_near(got[s], expected, [&](std::size_t i) { return bound[i]; }, shape.name() + ", " + std::to_string(length) + " tokens");
  }
}

TEST_P(Attention, MatchesDoublePrecision) {
  for (const Shape& shape : {Shape{9, 3, 64}, Shape{4, 4, 16}, Shape{2, 1, 80}, Shape{3, 3, 96}, Shape{10, 2, 128}, Shape{2, 1, 256},
                             Shape{7, 1, 48, DType::kF16}, Shape{4, 2, 64, DType::kF32}, Shape{4, 2, 32, DType::kBF16, 16},
                             Shape{4, 2, 32, DType::kBF16, 128}}) {
    const Work work(rig(), shape, {1, 17, 64, 65, 300});
    check_against_reference(rig(), work, run(rig(), work, {all_of(work)}, 1));
  }
}

// The contract of DESIGN.md section 4. The reference run is the plainest: one sequence at a time, whole, on one thread.
TEST_P(Attention, BitsDoNotDependOnChunksBatchPlacementOrThreads) {
  Target plain = GetParam();
  plain.options.threads = 1;
  Rig one(plain);
  const std::vector<int> lengths = {1, 16, 33, 255, 256, 257, 530};
  for (const Shape& shape : {Shape{9, 3, 64}, Shape{5, 1, 80, DType::kF16}, Shape{2, 2, 128, DType::kF32, 16}}) {
    const Work work(rig(), shape, lengths);
    std::vector<Step> alone;
    for (const Piece& piece : all_of(work)) alone.push_back({piece});
    const auto expected = run(one, work, alone, 1);
    auto check = [&](const std::vector<Step>& steps, std::uint64_t placement, const std::string& what) {
      const auto got = run(rig(), work, steps, placement);
      for (std::size_t s = 0; s < got.size(); ++s)
        expect_same_bits(got[s], expected[s], shape.name() + ", " + what + ", sequence of " + std::to_string(lengths[s]));
    };
    check(alone, 1, "alone");
    check({all_of(work)}, 2, "all in one step");
    for (int chunk : {1, 7, 64, 512}) {
      if (chunk == 1 && shape.heads != 9) continue;  // hundreds of steps; once will do
      check(chunked(work, chunk), 3, "chunks of " + std::to_string(chunk));
    }
  }
}

// One long sequence on several threads is where a device may split the context.
TEST_P(Attention, LongContextHasTheBitsOfOneThread) {
  Target plain = GetParam();
  plain.options.threads = 1;
  Rig one(plain);
  const Work work(rig(), {3, 1, 64}, {2100});
  const std::vector<Step> steps = {{{0, 2080}}, {{0, 1}}, {{0, 1}}, {{0, 18}}};
  expect_same_bits(run(rig(), work, steps, 1)[0], run(one, work, {all_of(work)}, 2)[0], "2,100 tokens");
}

TEST_P(Attention, EmptyAndMissingSequencesAreNoTrouble) {
  const Work work(rig(), {4, 2, 64}, {40, 20});
  const auto got = run(rig(), work, {{{0, 40}}, {{1, 3}, {0, 0}, {1, 0}}, {{1, 17}}}, 1);
  check_against_reference(rig(), work, got);
}

// Pool bytes, by the addressing that everyone else uses.
TEST_P(Attention, KvWriteAndCopyBlocksPutRowsWhereTheViewSays) {
  for (DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    const KvSpec spec{.layers = 2, .kv_heads = 3, .head_dim = 48, .dtype = dtype, .blocks = 4};
    auto pool = rig().device().create_kv_pool(spec);
    ASSERT_TRUE(pool.ok()) << pool.status().to_string();
    const SharedRegion* region = (*pool)->shared_region();
    if (region == nullptr) GTEST_SKIP() << "the pool is not host memory";
    const KvView& view = (*pool)->view();
    ASSERT_EQ(view.spec.block_tokens, rig().device().info().kv_block_tokens);
    ASSERT_EQ(region->bytes, view.spec.bytes());
    std::memset(region->base, 0, region->bytes);

    auto k = rig().rounded(random_values(5, 4 * 144)), v = rig().rounded(random_values(6, 4 * 144));
    k[1] = 1e-40f, k[2] = -0.0f, k[3] = 1.0f + 0x1p-8f, k[4] = 1.0f + 3 * 0x1p-8f;  // subnormal, sign, ties
    k = rig().rounded(k);
    const std::int32_t block_tokens = view.spec.block_tokens;
    const std::vector<std::int32_t> slots = {2 * block_tokens + 5, 0, 3 * block_tokens + block_tokens - 1, 1}, zeros(4, 0), start = {0, 4},
                                    len = {4};
    StepMeta meta;
    meta.token_ids = zeros;
    meta.positions = zeros;
    meta.slots = slots;
    meta.q_start = start;
    meta.kv_len = len;
    meta.block_tables = std::span(zeros).first(1);
    meta.max_blocks = 1;
    ASSERT_TRUE(rig().context().upload_step(meta).ok());
    ops().kv_write(meta, **pool, 1, rig().tensor({4, 3, 48}, k), rig().tensor({4, 3, 48}, v));
    const std::vector<Ops::BlockCopy> copies = {{BlockId(2), BlockId(1)}};
    ops().copy_blocks(**pool, copies);
    ASSERT_TRUE(rig().context().synchronize(std::chrono::seconds(10)).ok());

    auto row = [&](int layer, std::int32_t slot, int head, KvKind kind) {
      std::vector<std::byte> bytes(view.spec.row_bytes());
      std::memcpy(bytes.data(), region->base + view.offset(layer, BlockId(slot / block_tokens), head, kind, slot % block_tokens),
                  bytes.size());
      return bytes;
    };
    auto expected = [&](const std::vector<float>& values, std::size_t token, std::size_t head) {
      return encode(dtype, {values.begin() + static_cast<std::ptrdiff_t>((token * 3 + head) * 48),
                            values.begin() + static_cast<std::ptrdiff_t>((token * 3 + head + 1) * 48)});
    };
    for (std::size_t t = 0; t < 4; ++t)
      for (std::size_t h = 0; h < 3; ++h) {
        EXPECT_EQ(row(1, slots[t], static_cast<int>(h), KvKind::kKey), expected(k, t, h)) << to_string(dtype) << " token " << t;
        EXPECT_EQ(row(1, slots[t], static_cast<int>(h), KvKind::kValue), expected(v, t, h)) << to_string(dtype) << " token " << t;
        EXPECT_EQ(row(0, slots[t], static_cast<int>(h), KvKind::kKey), std::vector<std::byte>(view.spec.row_bytes())) << "another layer";
      }
    EXPECT_EQ(row(1, block_tokens + 5, 2, KvKind::kValue), expected(v, 0, 2)) << "copied block";
  }
}

}  // namespace
}  // namespace baton::device
