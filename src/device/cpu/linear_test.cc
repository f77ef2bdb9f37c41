#include "device/cpu/linear.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/rng.h"
#include "device/half.h"
#include "device/quant_blocks.h"

namespace baton::device::cpu {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kF32,  WeightFormat::kF16,  WeightFormat::kBF16, WeightFormat::kQ8_0,
                                     WeightFormat::kQ5_0, WeightFormat::kQ5_1, WeightFormat::kQ4_0, WeightFormat::kQ4_1,
                                     WeightFormat::kQ4_K, WeightFormat::kQ5_K, WeightFormat::kQ6_K};
constexpr ComputeType kComputes[] = {ComputeType::kF32, ComputeType::kBF16, ComputeType::kInt8};

std::vector<Isa> isas() {
  std::vector<Isa> out = {Isa::kScalar};
  if (best_isa() >= Isa::kAvx2) out.push_back(Isa::kAvx2);
  if (best_isa() >= Isa::kAvx512) out.push_back(Isa::kAvx512);
  return out;
}

std::vector<int> two_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  std::vector<int> cores;
  for (int i = 0; i < CPU_SETSIZE && cores.size() < 2; ++i) {
    if (CPU_ISSET(static_cast<unsigned>(i), &set)) cores.push_back(i);
  }
  while (cores.size() < 2) cores.push_back(cores.empty() ? 0 : cores[0]);
  return cores;
}

float uniform(Rng& rng) { return static_cast<float>(static_cast<std::int32_t>(rng.below(2001)) - 1000) / 1000.0F; }

// Random blocks with scales of a few hundredths, random codes.
struct Matrix {
  HostWeight weight;
  std::vector<std::byte> bytes;

  Matrix(WeightFormat format, std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
    Rng rng(seed);
    const std::size_t blocks = static_cast<std::size_t>(rows * cols / block_weights(format)), size = block_bytes(format);
    bytes.resize(blocks * size);
    for (std::byte& b : bytes) b = static_cast<std::byte>(rng.below(256));
    const auto put = [&](std::byte* at, std::uint16_t v) { std::memcpy(at, &v, 2); };
    for (std::size_t i = 0; i < blocks; ++i) {
      std::byte* block = bytes.data() + i * size;
      const float d = 0.05F * uniform(rng), m = 0.2F * uniform(rng);
      switch (format) {
        case WeightFormat::kF32:
          std::memcpy(block, &d, 4);
          break;
        case WeightFormat::kF16:
          put(block, float_to_half(d));
          break;
        case WeightFormat::kBF16:
          put(block, float_to_bf16(d));
          break;
        case WeightFormat::kQ6_K:
          put(block + 208, float_to_half(d / 64));
          break;
        case WeightFormat::kQ4_K:
        case WeightFormat::kQ5_K:
          put(block, float_to_half(d / 32)), put(block + 2, float_to_half(m / 32));
          break;
        case WeightFormat::kQ4_1:
        case WeightFormat::kQ5_1:
          put(block, float_to_half(d)), put(block + 2, float_to_half(m));
          break;
        default:
          put(block, float_to_half(d));
          break;
      }
    }
    weight.format = format;
    weight.rows = rows;
    weight.cols = cols;
    weight.data = bytes.data();
  }
  std::vector<float> dequantized() const {
    std::vector<float> out(static_cast<std::size_t>(weight.rows * weight.cols));
    dequantize(weight.format, bytes.data(), weight.rows * weight.cols, out.data());
    return out;
  }
};

std::vector<float> activations(std::int64_t tokens, std::int64_t k, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> x(static_cast<std::size_t>(tokens * k));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = uniform(rng) * (rng.below(50) == 0 ? 8.0F : 1.0F);
  return x;
}

// Runs with padded rows, misaligned scratch and guards around both; returns [tokens, out].
std::vector<float> run(const CpuLinear& linear, Team& team, const float* x, std::int64_t stride, std::int64_t tokens) {
  const std::int64_t n = linear.out_features(), out_stride = n + 5;
  constexpr float kGuard = 12345.0F;
  std::vector<float> padded(static_cast<std::size_t>(tokens * out_stride), kGuard);
  const std::size_t bytes = linear.scratch_bytes(tokens);
  std::vector<std::byte> scratch(bytes + 12 + 256, std::byte{0xa5});
  linear.run(team, x, stride, tokens, padded.data(), out_stride, scratch.data() + 12);
  for (std::size_t i = 0; i < scratch.size(); ++i) {
    if (i == 12) i += bytes;
    EXPECT_EQ(scratch[i], std::byte{0xa5}) << "work space overrun at byte " << i << " of " << bytes;
    if (scratch[i] != std::byte{0xa5}) break;
  }
  std::vector<float> out;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const float* row = padded.data() + t * out_stride;
    out.insert(out.end(), row, row + n);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(row[n + i], kGuard) << "wrote past the end of token " << t;
  }
  return out;
}

std::unique_ptr<CpuLinear> make(Isa isa, std::vector<HostWeight> parts, ComputeType compute, std::vector<float> bias = {}) {
  auto linear = make_linear(isa, parts, bias, compute);
  EXPECT_TRUE(linear.ok()) << linear.status().to_string();
  return std::move(linear).value();
}

std::string name(Isa isa, WeightFormat format, ComputeType compute) {
  return std::string(to_string(isa)) + " " + std::string(to_string(format)) + " as " + std::string(to_string(compute));
}

// The arithmetic that make_linear documents.
ComputeType effective(Isa isa, WeightFormat format, ComputeType compute) {
  if (compute != ComputeType::kInt8 || is_block_format(format)) return compute;
  return isa == Isa::kAvx512 ? ComputeType::kBF16 : ComputeType::kF32;
}

double bf16(float v) { return bf16_to_float(float_to_bf16(v)); }

struct Expected {
  double value, tolerance;
  double true_value, quantization;  // without quantised activations, and how far these may be off
};

// One output in double precision, from the definitions. The tolerance is that of f32 sums: (terms + 3) * 2^-24 * the sum of magnitudes.
Expected expect(const Matrix& m, const std::vector<float>& w, const float* x, std::int64_t row, ComputeType compute) {
  const std::int64_t k = m.weight.cols;
  const float* wr = w.data() + row * k;
  double sum = 0, magnitude = 0, exact = 0, off = 0, terms = static_cast<double>(k);
  if (compute != ComputeType::kInt8) {
    for (std::int64_t i = 0; i < k; ++i) {
      const bool half = compute == ComputeType::kBF16;
      const double product = half ? bf16(wr[i]) * bf16(x[i]) : static_cast<double>(wr[i]) * x[i];
      sum += product;
      magnitude += std::abs(product);
      exact += static_cast<double>(wr[i]) * x[i];
      off += half ? std::abs(static_cast<double>(wr[i]) * x[i]) * 0x1.02p-7 : 0.0;
    }
  } else {
    const CodeTraits traits = code_traits(m.weight.format);
    terms = static_cast<double>(k / traits.run) * (traits.minima ? 2 : 1);
    BlockCodes codes;
    const int weights = block_weights(m.weight.format);
    for (std::int64_t b = 0; b < k; b += 32) {
      float amax = 0;
      for (int i = 0; i < 32; ++i) amax = std::max(amax, std::abs(x[b + i]));
      const float s = amax / 127.0F, inverse = amax > 0 ? 127.0F / amax : 0.0F;
      if (b % weights == 0) {
        decode_block(m.weight.format, m.bytes.data() + (row * k + b) / weights * static_cast<std::int64_t>(block_bytes(m.weight.format)),
                     codes);
      }
      for (int i = 0; i < 32; ++i) {
        const int at = static_cast<int>(b % weights) + i;
        const double q = static_cast<double>(s) * std::nearbyint(x[b + i] * inverse);
        const double d = codes.d[at / traits.run], low = traits.minima ? codes.m[at / traits.run] : 0.0F;
        const double code = codes.q[at] - traits.shift;
        sum += (d * code + low) * q;
        magnitude += (std::abs(d * code) + std::abs(low)) * std::abs(q);
        exact += static_cast<double>(wr[b + i]) * x[b + i];
        off += std::abs(wr[b + i]) * 0.50001 * s;
      }
    }
  }
  const double tolerance = (terms + 3) * 0x1p-24 * magnitude + 1e-30;
  return {sum, tolerance, exact, off + tolerance};
}

TEST(Linear, AgreesWithDoublePrecision) {
  Team team({});
  for (const WeightFormat format : kFormats) {
    // Ragged rows and, for plain formats, ragged and odd inputs.
    const std::int64_t n = 75, tokens = 7;
    const std::int64_t k = block_weights(format) == 1 ? 301 : block_weights(format) == 32 ? 352 : 768;
    const Matrix m(format, n, k, 11);
    const std::vector<float> w = m.dequantized(), x = activations(tokens, k, 12);
    for (const ComputeType compute : kComputes) {
      for (const Isa isa : isas()) {
        const auto linear = make(isa, {m.weight}, compute);
        EXPECT_EQ(linear->in_features(), k);
        EXPECT_EQ(linear->out_features(), n);
        const std::vector<float> out = run(*linear, team, x.data(), k, tokens);
        double worst = -1, worst_quantization = -1;
        std::string where;
        for (std::int64_t t = 0; t < tokens; ++t) {
          for (std::int64_t r = 0; r < n; ++r) {
            const Expected e = expect(m, w, x.data() + t * k, r, effective(isa, format, compute));
            const double got = out[static_cast<std::size_t>(t * n + r)], ratio = std::abs(got - e.value) / e.tolerance;
            worst_quantization = std::max(worst_quantization, std::abs(got - e.true_value) / e.quantization);
            if (ratio > worst || std::isnan(ratio)) {
              worst = std::isnan(ratio) ? std::numeric_limits<double>::infinity() : ratio;
              where = "token " + std::to_string(t) + " row " + std::to_string(r) + ": " + std::to_string(got) + ", expected " +
                      std::to_string(e.value) + ", tolerance " + std::to_string(e.tolerance);
            }
          }
        }
        EXPECT_LE(worst, 1.0) << name(isa, format, compute) << ": " << where;
        EXPECT_LE(worst_quantization, 1.0) << name(isa, format, compute) << ": rounding of operands costs more than its bound";
      }
    }
  }
}

TEST(Linear, Int8HasTheSameBitsOnEveryInstructionSet) {
  Team team({});
  for (const WeightFormat format : kFormats) {
    if (!is_block_format(format)) continue;
    const Matrix m(format, 48, 512, 21);
    const std::vector<float> x = activations(13, 512, 22);
    const std::vector<float> scalar = run(*make(Isa::kScalar, {m.weight}, ComputeType::kInt8), team, x.data(), 512, 13);
    for (const Isa isa : isas()) {
      const std::vector<float> out = run(*make(isa, {m.weight}, ComputeType::kInt8), team, x.data(), 512, 13);
      EXPECT_EQ(0, std::memcmp(out.data(), scalar.data(), out.size() * sizeof(float))) << name(isa, format, ComputeType::kInt8);
    }
  }
}

// A row's bits do not depend on the batch, on its place in the batch, or on the team.
class LinearBits : public testing::TestWithParam<ComputeType> {};
INSTANTIATE_TEST_SUITE_P(ComputeTypes, LinearBits, testing::ValuesIn(kComputes),
                         [](const auto& info) { return std::string(to_string(info.param)); });
TEST_P(LinearBits, RowsKeepTheirs) {
  const ComputeType compute = GetParam();
  Team alone({}), pair(two_cores());
  std::vector<std::int64_t> sizes;
  for (std::int64_t m = 1; m <= 40; ++m) sizes.push_back(m);
  for (const std::int64_t m : {48, 64, 95, 96, 97, 191, 192, 200, 512, 600}) sizes.push_back(m);
  constexpr std::int64_t kTokens = 640;
  for (const WeightFormat format : kFormats) {
    const std::int64_t n = 41, k = block_weights(format) == 1 ? 275 : block_weights(format) == 32 ? 320 : 512;
    const Matrix m(format, n, k, 31);
    const std::vector<float> x = activations(kTokens, k, 32);
    for (const Isa isa : isas()) {
      if (isa == Isa::kScalar && format != WeightFormat::kBF16 && format != WeightFormat::kQ4_1) continue;  // slow; one code for all
      const auto linear = make(isa, {m.weight}, compute);
      std::vector<float> golden;
      for (std::int64_t t = 0; t < kTokens; ++t) {
        const std::vector<float> row = run(*linear, alone, x.data() + t * k, k, 1);
        golden.insert(golden.end(), row.begin(), row.end());
      }
      for (const std::int64_t size : sizes) {
        for (Team* team : {&alone, &pair}) {
          const std::int64_t first = size * 7 % (kTokens - size + 1);
          const std::vector<float> out = run(*linear, *team, x.data() + first * k, k, size);
          for (std::int64_t t = 0; t < size; ++t) {
            ASSERT_EQ(0, std::memcmp(out.data() + t * n, golden.data() + (first + t) * n, static_cast<std::size_t>(n) * sizeof(float)))
                << name(isa, format, compute) << ": token " << t << " of a batch of " << size << ", team of " << team->size();
          }
        }
      }
    }
  }
}

// ---- which weights ----

void expect_same(const CpuLinear& a, const CpuLinear& b, const std::string& what) {
  Team alone({}), pair(two_cores());
  ASSERT_EQ(a.in_features(), b.in_features());
  ASSERT_EQ(a.out_features(), b.out_features());
  const std::int64_t k = a.in_features();
  for (const std::int64_t tokens : {1, 5, 20, 100}) {
    const std::vector<float> x = activations(tokens, k, 41);
    const std::vector<float> left = run(a, alone, x.data(), k, tokens), right = run(b, pair, x.data(), k, tokens);
    EXPECT_EQ(0, std::memcmp(left.data(), right.data(), left.size() * sizeof(float))) << what << ", " << tokens << " tokens";
  }
}

TEST(Linear, RowMapAndColumnsTakeThoseWeights) {
  for (const WeightFormat format : kFormats) {
    const int block = std::max(32, block_weights(format));
    const Matrix whole(format, 90, 4 * block, 51);
    HostWeight chosen = whole.weight;
    chosen.col_begin = block;
    chosen.col_end = 3 * block;
    for (std::int32_t r = 0; r < 70; ++r) chosen.row_map.push_back((r * 37 + 5) % 90);
    // The same weights copied out.
    HostWeight copied;
    copied.format = format;
    copied.rows = 70;
    copied.cols = 2 * block;
    std::vector<std::byte> bytes;
    const std::size_t unit = static_cast<std::size_t>(block / block_weights(format)) * block_bytes(format);
    for (const std::int32_t r : chosen.row_map) {
      const std::byte* row = whole.bytes.data() + static_cast<std::size_t>(r) * 4 * unit;
      bytes.insert(bytes.end(), row + unit, row + 3 * unit);
    }
    copied.data = bytes.data();
    for (const ComputeType compute : kComputes) {
      const Isa isa = best_isa();
      expect_same(*make(isa, {chosen}, compute), *make(isa, {copied}, compute), name(isa, format, compute));
    }
  }
}

TEST(Linear, StackedPartsOfMixedFormatsAndBias) {
  Team pair(two_cores());
  const std::int64_t k = 512, tokens = 11;
  const Matrix parts[] = {Matrix(WeightFormat::kQ4_1, 40, k, 61), Matrix(WeightFormat::kQ4_1, 9, k, 62),
                          Matrix(WeightFormat::kQ8_0, 33, k, 63), Matrix(WeightFormat::kQ6_K, 7, k, 64),
                          Matrix(WeightFormat::kBF16, 20, k, 65), Matrix(WeightFormat::kQ4_0, 64, k, 66),
                          Matrix(WeightFormat::kQ5_0, 3, k, 67)};
  const std::vector<float> x = activations(tokens, k, 68);
  for (const ComputeType compute : kComputes) {
    for (const Isa isa : isas()) {
      std::vector<HostWeight> stack;
      std::vector<float> bias;
      for (const Matrix& m : parts) {
        stack.push_back(m.weight);
        for (std::int64_t r = 0; r < m.weight.rows; ++r) bias.push_back(static_cast<float>(bias.size()) * 0.25F - 7.0F);
      }
      const auto all = make(isa, stack, compute, bias);
      const std::vector<float> out = run(*all, pair, x.data(), k, tokens);
      std::int64_t begin = 0;
      for (const Matrix& m : parts) {
        const std::vector<float> one = run(*make(isa, {m.weight}, compute), pair, x.data(), k, tokens);
        for (std::int64_t t = 0; t < tokens; ++t) {
          for (std::int64_t r = 0; r < m.weight.rows; ++r) {
            ASSERT_EQ(out[static_cast<std::size_t>(t * all->out_features() + begin + r)],
                      one[static_cast<std::size_t>(t * m.weight.rows + r)] + bias[static_cast<std::size_t>(begin + r)])
                << name(isa, m.weight.format, compute) << " token " << t << " row " << r;
          }
        }
        begin += m.weight.rows;
      }
    }
  }
}

TEST(Linear, LayersOfAnArenaDoNotDisturbEachOther) {
  Team team({});
  const auto arena = std::make_shared<WeightArena>(std::size_t{1} << 20);
  std::vector<std::unique_ptr<CpuLinear>> layers;
  std::vector<Matrix> weights;
  for (int i = 0; i < 12; ++i) weights.emplace_back(i % 2 ? WeightFormat::kQ4_1 : WeightFormat::kBF16, 100 + i, 512, 70 + i);
  for (const Matrix& m : weights) {
    auto layer = make_linear(best_isa(), std::span(&m.weight, 1), {}, ComputeType::kInt8, arena);
    ASSERT_TRUE(layer.ok());
    layers.push_back(std::move(layer).value());
  }
  const std::vector<float> x = activations(3, 512, 99);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    EXPECT_EQ(run(*layers[i], team, x.data(), 512, 3),
              run(*make(best_isa(), {weights[i].weight}, ComputeType::kInt8), team, x.data(), 512, 3));
  }
}

// ---- odd inputs ----

TEST(Linear, ZerosTinyAndBigActivations) {
  Team team({});
  const Matrix m(WeightFormat::kQ4_1, 32, 128, 81);
  for (const Isa isa : isas()) {
    const auto linear = make(isa, {m.weight}, ComputeType::kInt8);
    std::vector<float> x(128, 0.0F);
    for (const float v : run(*linear, team, x.data(), 128, 1)) EXPECT_EQ(v, 0.0F);
    x[3] = 1e-40F;
    x[40] = -1e-37F;
    for (const float v : run(*linear, team, x.data(), 128, 1)) EXPECT_EQ(v, 0.0F);  // below what a scale can hold
    x[3] = 1e30F;
    for (const float v : run(*linear, team, x.data(), 128, 1)) EXPECT_TRUE(std::isfinite(v));
  }
}

TEST(Linear, NotANumberReachesItsRowOnly) {
  Team team({});
  const Matrix m(WeightFormat::kQ8_0, 32, 128, 82);
  for (const ComputeType compute : kComputes) {
    for (const Isa isa : isas()) {
      const auto linear = make(isa, {m.weight}, compute);
      std::vector<float> x = activations(3, 128, 83);
      x[128 + 77] = std::numeric_limits<float>::quiet_NaN();
      const std::vector<float> out = run(*linear, team, x.data(), 128, 3);
      for (std::size_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i / 32 == 1) << name(isa, m.weight.format, compute);
    }
  }
}

TEST(Linear, RefusesWhatDoesNotFit) {
  const Matrix a(WeightFormat::kQ4_1, 8, 64, 91), b(WeightFormat::kQ4_1, 8, 96, 92);
  const auto refused = [](std::vector<HostWeight> parts, std::vector<float> bias, const std::string& text) {
    const auto linear = make_linear(Isa::kScalar, parts, bias, ComputeType::kInt8);
    ASSERT_FALSE(linear.ok()) << text;
    EXPECT_EQ(linear.status().code(), Code::kInvalidArgument);
    EXPECT_NE(linear.status().message().find(text), std::string::npos) << linear.status().message();
  };
  refused({}, {}, "no parts");
  refused({a.weight, b.weight}, {}, "part 1");
  refused({a.weight}, std::vector<float>(7), "bias of 7 for 8");
  HostWeight w = a.weight;
  w.row_map = {0, 8};
  refused({w}, {}, "row 8");
  w = a.weight;
  w.col_begin = 16;
  w.col_end = 48;
  refused({w}, {}, "whole blocks");
  w = a.weight;
  w.cols = 40;
  refused({w}, {}, "blocks of 32");
  w = a.weight;
  w.data = nullptr;
  refused({w}, {}, "no weights");
}

}  // namespace
}  // namespace baton::device::cpu
