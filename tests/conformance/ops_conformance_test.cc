// Every simple op of ops.h on every device, against the same formula in double precision. Attention and linear layers have files of their
// own.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "conformance/rig.h"

namespace baton::device {
namespace {

using Ops_ = Conformance;
INSTANTIATE_TEST_SUITE_P(Devices, Ops_, testing::ValuesIn(targets()), target_name);

// Row lengths around every vector width, and real ones.
const std::vector<std::int64_t> kLengths = {1, 3, 7, 8, 15, 16, 17, 31, 33, 48, 63, 64, 65, 127, 129, 576, 1536};

std::vector<double> reference_rms_norm(const std::vector<float>& x, const std::vector<float>& weight, double eps) {
  const std::size_t n = weight.size();
  std::vector<double> out(x.size());
  for (std::size_t r = 0; r < x.size() / n; ++r) {
    double squares = 0;
    for (std::size_t i = 0; i < n; ++i) squares += static_cast<double>(x[r * n + i]) * x[r * n + i];
    for (std::size_t i = 0; i < n; ++i) out[r * n + i] = x[r * n + i] / std::sqrt(squares / static_cast<double>(n) + eps) * weight[i];
  }
  return out;
}

// A sum of n squares is off by at most n units whatever its order, its root by half of that; then five more operations.
double rms_units(std::size_t n) { return static_cast<double>(n) / 2 + 6; }

TEST_P(Ops_, RmsNorm) {
  for (std::int64_t n : kLengths) {
    const auto size = static_cast<std::size_t>(n);
    const auto x = rig().rounded(random_values(1, 5 * size, 4));
    const auto weight = random_values(2, size);
    const Tensor in = rig().tensor({5, n}, x), out = rig().blank({5, n});
    ops().rms_norm(in, rig().f32({n}, weight), 1e-5f, out);
    const auto expected = reference_rms_norm(x, weight, 1e-5f);
    expect_near(
        rig().read(out), expected, [&](std::size_t i) { return rms_units(size) * rig().unit() * std::abs(expected[i]) + 1e-37; },
        "rms_norm " + std::to_string(n));
    ops().rms_norm(in, rig().f32({n}, weight), 1e-5f, in);  // in place
    expect_same_bits(rig().read(in), rig().read(out), "rms_norm in place");
  }
}

// Qwen3's norm of queries and keys: per head, on views of the fused QKV rows.
TEST_P(Ops_, RmsNormPerHeadOnStridedViews) {
  const std::int64_t tokens = 3, heads = 5, dim = 80, width = 1000;
  const auto x = rig().rounded(random_values(3, static_cast<std::size_t>(tokens * width)));
  const auto weight = random_values(4, static_cast<std::size_t>(dim));
  const Tensor fused = rig().tensor({tokens, width}, x);
  const Tensor view = fused.columns(160, 160 + heads * dim).split_last(heads, dim);
  const auto before = rig().read(view);
  ops().rms_norm(view, rig().f32({dim}, weight), 1e-6f, view);
  const auto expected = reference_rms_norm(before, weight, 1e-6f);
  expect_near(
      rig().read(view), expected, [&](std::size_t i) { return rms_units(80) * rig().unit() * std::abs(expected[i]) + 1e-37; },
      "rms_norm per head");
  const auto after = rig().read(fused);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t c = 0; c < width; ++c) {
      if (c >= 160 && c < 160 + heads * dim) continue;
      const auto i = static_cast<std::size_t>(t * width + c);
      ASSERT_EQ(after[i], x[i]) << "outside the view, token " << t << " column " << c;
    }
}

TEST_P(Ops_, AddRmsNormIsAddThenRmsNorm) {
  for (std::int64_t n : kLengths) {
    const auto size = static_cast<std::size_t>(n);
    const auto residual = random_values(5, 4 * size), x = random_values(6, 4 * size), weight = random_values(7, size);
    const Tensor r1 = rig().tensor({4, n}, residual), r2 = rig().tensor({4, n}, residual), in = rig().tensor({4, n}, x);
    const Tensor out1 = rig().blank({4, n}), out2 = rig().blank({4, n}), w = rig().f32({n}, weight);
    ops().add_rms_norm(r1, in, w, 1e-5f, out1);
    ops().Ops::add_rms_norm(r2, in, w, 1e-5f, out2);  // the default
    expect_same_bits(rig().read(r1), rig().read(r2), "residual");
    expect_same_bits(rig().read(out1), rig().read(out2), "norm");
    const auto sum = rig().read(r1);
    const auto a = rig().rounded(residual), b = rig().rounded(x);
    std::vector<double> expected(sum.size());
    for (std::size_t i = 0; i < sum.size(); ++i) expected[i] = static_cast<double>(a[i]) + b[i];
    expect_near(sum, expected, [&](std::size_t i) { return rig().unit() * std::abs(expected[i]) + 1e-37; }, "add " + std::to_string(n));
  }
}

TEST_P(Ops_, Rope) {
  for (std::int64_t dim : {16, 64, 80, 96, 128, 256}) {
    const std::int64_t tokens = 4, heads = 3, positions = 5000;
    std::vector<double> inverse;
    for (std::int64_t i = 0; i < dim / 2; ++i)
      inverse.push_back(std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(dim)));
    auto table = rig().device().prepare_rope(inverse, positions, 1.25);
    ASSERT_TRUE(table.ok()) << table.status().to_string();
    const std::vector<std::int32_t> at = {0, 1, 777, 4999};
    const std::int64_t width = (heads + 2) * dim;
    const auto x = rig().rounded(random_values(8, static_cast<std::size_t>(tokens * width)));
    const Tensor fused = rig().tensor({tokens, width}, x);
    const Tensor view = fused.columns(dim, (heads + 1) * dim).split_last(heads, dim);
    const auto in = rig().read(view);
    ops().rope(**table, rig().ints({tokens}, at), view);
    std::vector<double> expected(in.size()), size(in.size());
    for (std::size_t i = 0; i < in.size(); ++i) {
      const auto d = static_cast<std::int64_t>(i) % dim, half = dim / 2;
      const auto token = static_cast<std::int64_t>(i) / (heads * dim);
      const double angle = at[static_cast<std::size_t>(token)] * inverse[static_cast<std::size_t>(d % half)];
      const double self = in[i], other = d < half ? -in[i + static_cast<std::size_t>(half)] : in[i - static_cast<std::size_t>(half)];
      expected[i] = 1.25 * (self * std::cos(angle) + other * std::sin(angle));
      size[i] = 1.25 * (std::abs(self) + std::abs(other));
    }
    expect_near(
        rig().read(view), expected, [&](std::size_t i) { return 3 * rig().unit() * size[i] + 1e-37; }, "rope " + std::to_string(dim));
    const auto after = rig().read(fused);
    for (std::size_t i = 0; i < after.size(); ++i) {
      const auto column = static_cast<std::int64_t>(i) % width;
      if (column < dim || column >= (heads + 1) * dim) {
        ASSERT_EQ(after[i], x[i]) << "outside the view";
      }
    }
  }
}

TEST_P(Ops_, SwiGlu) {
  for (std::int64_t n : kLengths) {
    const auto size = static_cast<std::size_t>(n);
    auto x = rig().rounded(random_values(9, 3 * 2 * size, 12));
    const std::vector<float> extremes = {0.0f, -0.0f, 88.0f, -88.0f, 300.0f, -300.0f, 1e30f, -1e30f, 1e-30f};
    for (std::size_t i = 0; i < std::min(size, extremes.size()); ++i) x[i] = rig().rounded({extremes[i]})[0];  // gates of row 0
    const Tensor out = rig().blank({3, n});
    ops().swiglu(rig().tensor({3, 2 * n}, x), out);
    std::vector<double> expected(3 * size), slack(3 * size);
    for (std::size_t r = 0; r < 3; ++r)
      for (std::size_t i = 0; i < size; ++i) {
        const double gate = x[r * 2 * size + i], up = x[r * 2 * size + size + i];
        expected[r * size + i] = gate / (1 + std::exp(-gate)) * up;
        // e^-gate through 2^y: rounding y = -gate * log2(e) moves the result by |y| * ln 2 units, up to where it vanishes.
        slack[r * size + i] = (std::min(std::abs(gate), 128.0) * 2 + 10) * rig().unit() * std::abs(expected[r * size + i]);
      }
    // Gates below -87 yield less than the smallest normal number times |gate * up|: any value down to zero will do.
    expect_near(rig().read(out), expected, [&](std::size_t i) { return slack[i] + 1e-34; }, "swiglu " + std::to_string(n));
  }
}

TEST_P(Ops_, Embedding) {
  const std::vector<std::int32_t> ids = {0, 6, 6, 2};
  for (WeightFormat format :
       {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16, WeightFormat::kQ8_0, WeightFormat::kQ5_0, WeightFormat::kQ5_1,
        WeightFormat::kQ4_0, WeightFormat::kQ4_1, WeightFormat::kQ4_K, WeightFormat::kQ5_K, WeightFormat::kQ6_K}) {
    const HostWeight table = random_weight(11, format, 7, 512);
    auto handle = rig().device().prepare_embedding(table);
    ASSERT_TRUE(handle.ok()) << handle.status().to_string();
    const Tensor out = rig().blank({4, 512});
    ops().embedding(**handle, rig().ints({4}, ids), out);
    std::vector<float> expected;
    for (std::int32_t id : ids) {
      std::vector<float> row(512);
      dequantize(format, table.data + static_cast<std::size_t>(id) * table.row_bytes(), 512, row.data());
      expected.insert(expected.end(), row.begin(), row.end());
    }
    expect_same_bits(rig().read(out), rig().rounded(expected), "embedding " + std::string(to_string(format)));
  }
}

TEST_P(Ops_, EmbeddingOfMappedRowsAndColumns) {
  HostWeight table = random_weight(12, WeightFormat::kQ4_1, 7, 512);
  table.row_map = {5, 1, 3};
  table.col_begin = 128;
  table.col_end = 320;
  auto handle = rig().device().prepare_embedding(table);
  ASSERT_TRUE(handle.ok()) << handle.status().to_string();
  const Tensor out = rig().blank({2, 192});
  ops().embedding(**handle, rig().ints({2}, {2, 0}), out);
  std::vector<float> expected;
  for (std::size_t row : {3u, 5u}) {
    std::vector<float> values(512);
    dequantize(table.format, table.data + row * table.row_bytes(), 512, values.data());
    expected.insert(expected.end(), values.begin() + 128, values.begin() + 320);
  }
  expect_same_bits(rig().read(out), rig().rounded(expected), "embedding shard");
}

TEST_P(Ops_, AddOnViews) {
  const auto x = rig().rounded(random_values(13, 6 * 100)), y = rig().rounded(random_values(14, 6 * 40));
  const Tensor wide = rig().tensor({6, 100}, x);
  ops().add(wide.columns(10, 50), rig().tensor({6, 40}, y));
  std::vector<double> expected(x.begin(), x.end());
  for (std::size_t r = 0; r < 6; ++r)
    for (std::size_t c = 0; c < 40; ++c) expected[r * 100 + 10 + c] += y[r * 40 + c];
  expect_near(rig().read(wide), expected, [&](std::size_t i) { return rig().unit() * std::abs(expected[i]) + 1e-37; }, "add on views");
}

TEST_P(Ops_, GatherRows) {
  const auto x = rig().rounded(random_values(15, 9 * 33));
  const Tensor in = rig().tensor({9, 33}, x), out = rig().blank({4, 33});
  const std::vector<std::int32_t> rows = {8, 0, 3, 3};
  ops().gather_rows(in, rig().ints({4}, rows), out);
  std::vector<float> expected;
  for (std::int32_t r : rows) expected.insert(expected.end(), x.begin() + r * 33, x.begin() + (r + 1) * 33);
  expect_same_bits(rig().read(out), expected, "gather_rows");
}

TEST_P(Ops_, PatchTokensTakesWhatTheLastStepSampled) {
  const Tensor ids = rig().ints({5}, {10, 11, 12, 13, 14});
  ops().patch_tokens(ids, rig().ints({5}, {-1, 2, -1, 0, 2}), rig().ints({3}, {100, 101, 102}));
  EXPECT_EQ(rig().read_ints(ids), (std::vector<std::int32_t>{10, 102, 12, 100, 102}));
}

// Logits with many equal values, so that the order among equals is seen.
std::vector<float> logits(std::uint64_t seed, std::size_t count) {
  auto values = random_values(seed, count, 20);
  for (float& value : values) value = std::round(value * 4) / 4;
  return values;
}

std::vector<std::int32_t> ranking(const float* x, std::size_t n) {
  std::vector<std::int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return x[a] > x[b]; });
  return order;
}

TEST_P(Ops_, ArgmaxAndTopK) {
  for (std::size_t n : {1u, 2u, 15u, 16u, 17u, 63u, 64u, 65u, 1000u, 49152u})
    for (std::size_t rows : {1u, 3u}) {
      const auto x = logits(16 + n, rows * n);
      const auto height = static_cast<std::int64_t>(rows), width = static_cast<std::int64_t>(n);
      const Tensor in = rig().f32({height, width}, x);
      const Tensor best = rig().ints({height}, std::vector<std::int32_t>(rows, -1));
      ops().argmax(in, best);
      for (std::size_t k : {std::size_t{1}, std::min<std::size_t>(n, 20), std::min<std::size_t>(n, 256)}) {
        const auto columns = static_cast<std::int64_t>(k);
        const Tensor values = rig().blank_f32({height, columns});
        const Tensor indices = rig().ints({height, columns}, std::vector<std::int32_t>(rows * k, -1));
        ops().top_k(in, static_cast<int>(k), values, indices);
        const auto got = rig().read_ints(indices), first = rig().read_ints(best);
        const auto got_values = rig().read(values);
        for (std::size_t r = 0; r < rows; ++r) {
          const auto order = ranking(&x[r * n], n);
          ASSERT_EQ(first[r], order[0]) << "argmax of " << n;
          for (std::size_t i = 0; i < k; ++i) {
            ASSERT_EQ(got[r * k + i], order[i]) << "rank " << i << " of " << k << " among " << n;
            ASSERT_EQ(got_values[r * k + i], x[r * n + static_cast<std::size_t>(order[i])]);
          }
        }
      }
    }
}

TEST_P(Ops_, SelectionRanksNanBelowEverything) {
  std::vector<float> x(300, -5.0f);
  x[0] = x[7] = x[150] = x[299] = std::numeric_limits<float>::quiet_NaN();
  x[200] = 3.0f;
  x[201] = -std::numeric_limits<float>::infinity();
  const Tensor in = rig().f32({1, 300}, x), best = rig().ints({1}, {-1});
  ops().argmax(in, best);
  EXPECT_EQ(rig().read_ints(best)[0], 200);
  const Tensor values = rig().blank_f32({1, 3}), indices = rig().ints({1, 3}, {-1, -1, -1});
  ops().top_k(in, 3, values, indices);
  EXPECT_EQ(rig().read_ints(indices), (std::vector<std::int32_t>{200, 1, 2}));
}

// Row ops on T rows give each row the bits that it gets alone, on one thread or many.
TEST_P(Ops_, RowsDoNotDependOnTheBatch) {
  const std::int64_t n = 1536, tokens = 64;
  const auto x = random_values(17, static_cast<std::size_t>(tokens * 2 * n), 3), weight = random_values(18, static_cast<std::size_t>(n));
  const Tensor in = rig().tensor({tokens, 2 * n}, x), w = rig().f32({n}, weight);
  const Tensor norm = rig().blank({tokens, n}), glu = rig().blank({tokens, n}), norm1 = rig().blank({tokens, n}),
               glu1 = rig().blank({tokens, n});
  ops().rms_norm(in.columns(0, n), w, 1e-5f, norm);
  ops().swiglu(in, glu);
  for (std::int64_t t = 0; t < tokens; ++t) {
    ops().rms_norm(in.columns(0, n).rows(t, t + 1), w, 1e-5f, norm1.rows(t, t + 1));
    ops().swiglu(in.rows(t, t + 1), glu1.rows(t, t + 1));
  }
  expect_same_bits(rig().read(norm), rig().read(norm1), "rms_norm");
  expect_same_bits(rig().read(glu), rig().read(glu1), "swiglu");
}

}  // namespace
}  // namespace baton::device
