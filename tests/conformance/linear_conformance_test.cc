// Linear layers in every weight format and compute type: against double precision, and bit for bit whatever the batch, the row's place in
// it and the number of threads.

#include <algorithm>
#include <cmath>

#include "conformance/rig.h"

namespace baton::device {
namespace {

using LinearOp = Conformance;
INSTANTIATE_TEST_SUITE_P(Devices, LinearOp, testing::ValuesIn(targets()), target_name);

constexpr WeightFormat kFormats[] = {WeightFormat::kF32,  WeightFormat::kF16,  WeightFormat::kBF16, WeightFormat::kQ8_0,
                                     WeightFormat::kQ5_0, WeightFormat::kQ5_1, WeightFormat::kQ4_0, WeightFormat::kQ4_1,
                                     WeightFormat::kQ4_K, WeightFormat::kQ5_K, WeightFormat::kQ6_K};
constexpr ComputeType kTypes[] = {ComputeType::kF32, ComputeType::kBF16, ComputeType::kInt8};

std::string label(WeightFormat format, ComputeType type, std::int64_t rows, std::int64_t cols) {
  return std::string(to_string(format)) + " " + std::string(to_string(type)) + " " + std::to_string(rows) + "x" + std::to_string(cols);
}

// The rows and columns of `weight` that take part, as numbers.
std::vector<float> dense(const HostWeight& weight) {
  std::vector<float> all;
  for (std::int64_t r = 0; r < weight.out_rows(); ++r) {
    const auto stored = static_cast<std::size_t>(weight.row_map.empty() ? r : weight.row_map[static_cast<std::size_t>(r)]);
    std::vector<float> row(static_cast<std::size_t>(weight.cols));
    dequantize(weight.format, weight.data + stored * weight.row_bytes(), weight.cols, row.data());
    all.insert(all.end(), row.begin() + weight.col_begin, row.begin() + weight.col_begin + weight.out_cols());
  }
  return all;
}

// Exact products and how far off each type's arithmetic may be. u: 2^-24.
//   kF32:  a chain of n terms: n * u * sum |x w|
//   kBF16: besides, x and w are rounded to 8 bits: 2 * 2^-9 * sum |x w|
//   kInt8: besides the sums, x is rounded to a 254th of its block's largest: sum over blocks of max |x| / 254 * sum |w|. Weights may be
//   shifted to
//          unsigned or split into scale and minimum, terms of up to four times the block's largest weight.
struct Expected {
  std::vector<double> value, bound;
};
Expected reference(const std::vector<float>& x, std::int64_t tokens, std::int64_t in, const std::vector<float>& w, std::int64_t out,
                   const std::vector<float>& bias, ComputeType type, double activation_unit) {
  Expected e;
  const double u = std::ldexp(1.0, -24), bf16 = std::ldexp(1.0, -9);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t o = 0; o < out; ++o) {
      double sum = bias.empty() ? 0 : bias[static_cast<std::size_t>(o)], size = std::abs(sum), error = 0;
      for (std::int64_t begin = 0; begin < in; begin += 32) {
        double x_max = 0, w_max = 0, x_sum = 0, w_sum = 0;
        for (std::int64_t i = begin; i < std::min(begin + 32, in); ++i) {
          const double a = x[static_cast<std::size_t>(t * in + i)], b = w[static_cast<std::size_t>(o * in + i)];
          sum += a * b;
          size += std::abs(a * b);
          x_max = std::max(x_max, std::abs(a)), w_max = std::max(w_max, std::abs(b));
          x_sum += std::abs(a), w_sum += std::abs(b);
        }
        if (type == ComputeType::kInt8) error += x_max / 254 * 1.001 * w_sum + 4 * w_max * x_sum * u * static_cast<double>(in / 8 + 16);
      }
      error += size * u * static_cast<double>(in + 4);
      if (type != ComputeType::kF32) error += size * (2 * bf16 + bf16 * bf16) + 1e-30;  // kInt8 may fall back to kBF16 for plain formats
      e.value.push_back(sum);
      e.bound.push_back(error + activation_unit * std::abs(sum) + 1e-37);
    }
  return e;
}

TEST_P(LinearOp, MatchesDoublePrecision) {
  for (WeightFormat format : kFormats)
    for (ComputeType type : kTypes)
      for (auto [out, in] : {std::pair<std::int64_t, std::int64_t>{70, 256}, {33, 1536}}) {
        const std::int64_t tokens = 9;
        const HostWeight weight = random_weight(21, format, out, in);
        const auto bias = random_values(22, static_cast<std::size_t>(out));
        auto layer = rig().device().prepare_linear(std::span(&weight, 1), bias, type);
        if (!layer.ok() && layer.status().code() == Code::kUnimplemented) continue;  // the device says what it has not
        ASSERT_TRUE(layer.ok()) << layer.status().to_string();
        ASSERT_EQ((*layer)->in_features(), in);
        ASSERT_EQ((*layer)->out_features(), out);
        const auto x = rig().rounded(random_values(23, static_cast<std::size_t>(tokens * in)));
        const Tensor result = rig().blank({tokens, out});
        ops().linear(**layer, rig().tensor({tokens, in}, x), result);
        const Expected e = reference(x, tokens, in, dense(weight), out, bias, type, rig().unit());
        expect_near(rig().read(result), e.value, [&](std::size_t i) { return e.bound[i]; }, label(format, type, out, in));
        rig().release_tensors();
      }
}

TEST_P(LinearOp, StackedPartsShardsAndViews) {
  for (ComputeType type : kTypes) {
    const std::int64_t tokens = 5, in = 192;
    HostWeight q = random_weight(31, WeightFormat::kQ4_1, 48, 320), k = random_weight(32, WeightFormat::kQ8_0, 40, in);
    q.row_map = {47, 0, 5, 5, 31};  // a shard, in another order
    q.col_begin = 96;
    q.col_end = 288;
    const std::vector<HostWeight> parts = {q, k};
    const std::int64_t out = 45;
    auto layer = rig().device().prepare_linear(parts, {}, type);
    if (!layer.ok() && layer.status().code() == Code::kUnimplemented) continue;
    ASSERT_TRUE(layer.ok()) << layer.status().to_string();
    ASSERT_EQ((*layer)->in_features(), in);
    ASSERT_EQ((*layer)->out_features(), out);
    auto w = dense(q);
    const auto w2 = dense(k);
    w.insert(w.end(), w2.begin(), w2.end());
    const auto wide = rig().rounded(random_values(33, static_cast<std::size_t>(tokens * 300)));
    std::vector<float> x;
    for (std::int64_t t = 0; t < tokens; ++t) x.insert(x.end(), wide.begin() + t * 300 + 60, wide.begin() + t * 300 + 60 + in);
    const Tensor result = rig().tensor({tokens, 100}, std::vector<float>(static_cast<std::size_t>(tokens * 100), 7.0f));
    ops().linear(**layer, rig().tensor({tokens, 300}, wide).columns(60, 60 + in), result.columns(10, 10 + out));
    const Expected e = reference(x, tokens, in, w, out, {}, type, rig().unit());
    expect_near(
        rig().read(result.columns(10, 10 + out)), e.value, [&](std::size_t i) { return e.bound[i]; },
        "stacked " + std::string(to_string(type)));
    for (float outside : rig().read(result.columns(0, 10))) ASSERT_EQ(outside, 7.0f);
    for (float outside : rig().read(result.columns(10 + out, 100))) ASSERT_EQ(outside, 7.0f);
  }
}

// The contract of DESIGN.md section 4, at the batch sizes around which kernels switch. The reference is all tokens at once on one thread.
TEST_P(LinearOp, BitsDoNotDependOnBatchPlaceOrThreads) {
  Target plain = GetParam();
  plain.options.threads = 1;
  Rig one(plain);
  const std::int64_t tokens = 200, in = 512, out = 100;
  const auto x = random_values(41, static_cast<std::size_t>(tokens * in));
  for (WeightFormat format : kFormats)
    for (ComputeType type : kTypes) {
      const HostWeight weight = random_weight(42, format, out, in);
      auto layer = rig().device().prepare_linear(std::span(&weight, 1), {}, type),
           alone = one.device().prepare_linear(std::span(&weight, 1), {}, type);
      if (!layer.ok() && layer.status().code() == Code::kUnimplemented) continue;
      ASSERT_TRUE(layer.ok() && alone.ok());
      const Tensor all = one.blank({tokens, out});
      one.ops().linear(**alone, one.tensor({tokens, in}, x), all);
      const auto expected = one.read(all);
      const Tensor rows = rig().tensor({tokens, in}, x);
      for (std::int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 128, 192, 200}) {
        const std::int64_t begin = m * 7 % (tokens - m + 1);
        const Tensor result = rig().blank({m, out});
        ops().linear(**layer, rows.rows(begin, begin + m), result);
        expect_same_bits(rig().read(result), {expected.begin() + begin * out, expected.begin() + (begin + m) * out},
                         label(format, type, out, in) + ", " + std::to_string(m) + " tokens");
      }
      rig().release_tensors();
      one.release_tensors();
    }
}

}  // namespace
}  // namespace baton::device
