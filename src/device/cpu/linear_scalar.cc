// Linear kernels in portable C++. Int8: the same bits as every other instruction set's. Floats: a multiplication, rounded, then an
// addition.

#include "device/cpu/linear_portable.h"

namespace baton::device::cpu {
namespace {

constexpr int kTokens = 4;

// Integers in f32, whose sums below 2^24 are exact: 32 * 255 * 127 is a sixteenth of that.
void int8_tile(PackKind kind, const TileArgs& args) {
  const PackTraits w = traits(kind);
  const int runs = kBlock / w.run, tokens = args.tokens;
  float acc[kTokens][kPanelRows] = {}, code[kBlock * kPanelRows], d[2 * kPanelRows], m[2 * kPanelRows];
  const std::byte *record = args.weights, *super = record, *x = args.x;
  for (std::int64_t b = 0; b < args.k / kBlock; ++b, record += w.record_bytes(), x += kInt8BlockBytes * static_cast<std::size_t>(tokens)) {
    const auto* q = reinterpret_cast<const std::int8_t*>(x);
    const auto* s = reinterpret_cast<const float*>(x + kBlock * tokens);
    if (w.super && b % kSuperBlocks == 0) {
      super = record;
      record += w.super_bytes();
    }
    portable_codes(w, record, code);
    portable_scales(w, super, record, d, m);
    for (int h = 0; h < runs; ++h) {
      for (int t = 0; t < tokens; ++t) {
        float dot[kPanelRows] = {};
        for (int i = h * w.run; i < (h + 1) * w.run; ++i) {
          const auto v = static_cast<float>(q[(i / 4 * tokens + t) * 4 + i % 4]);
          for (int r = 0; r < kPanelRows; ++r) dot[r] += code[i * kPanelRows + r] * v;
        }
        for (int r = 0; r < kPanelRows; ++r) acc[t][r] = std::fma(dot[r], d[h * kPanelRows + r] * s[t], acc[t][r]);
        for (int r = 0; r < kPanelRows && w.minima; ++r) acc[t][r] = std::fma(m[r], s[tokens + t], acc[t][r]);
      }
    }
  }
  for (int t = 0; t < tokens; ++t) {
    for (int r = 0; r < args.rows; ++r) args.out[t * args.out_stride + r] = args.bias ? acc[t][r] + args.bias[r] : acc[t][r];
  }
}

// step(i, sums) adds the products of input i.
template <class Step>
void float_tile(const TileArgs& args, const Step& step) {
  float acc[kTokens][kPanelRows] = {};
  for (int t = 0; t < args.tokens && args.resume; ++t) std::memcpy(acc[t], args.out + t * args.out_stride, sizeof(float) * args.rows);
  for (std::int64_t i = 0; i < args.k; ++i) step(i, acc);
  for (int t = 0; t < args.tokens; ++t) {
    for (int r = 0; r < args.rows; ++r) args.out[t * args.out_stride + r] = args.bias ? acc[t][r] + args.bias[r] : acc[t][r];
  }
}

void f32_tile(const TileArgs& args) {
  const auto* w = reinterpret_cast<const float*>(args.weights);
  const auto* x = reinterpret_cast<const float*>(args.x);
  float_tile(args, [&](std::int64_t i, float(&acc)[kTokens][kPanelRows]) {
    for (int t = 0; t < args.tokens; ++t) {
      const float v = x[i * args.tokens + t];
      for (int r = 0; r < kPanelRows; ++r) acc[t][r] += w[i * kPanelRows + r] * v;
    }
  });
}

void bf16_tile(const TileArgs& args) {
  const auto* w = reinterpret_cast<const std::uint16_t*>(args.weights);
  const auto* x = reinterpret_cast<const std::uint16_t*>(args.x);
  float_tile(args, [&](std::int64_t i, float(&acc)[kTokens][kPanelRows]) {
    for (int t = 0; t < args.tokens; ++t) {
      const float v = portable_f32(x[(i / 2 * args.tokens + t) * 2 + i % 2]);
      for (int r = 0; r < kPanelRows; ++r) acc[t][r] += portable_f32(w[(i / 2 * kPanelRows + r) * 2 + i % 2]) * v;
    }
  });
}

}  // namespace

const LinearKernels& linear_kernels_scalar() {
  static constexpr LinearKernels kernels = {
      kTokens,  kTokens,   portable_int8_activations, portable_f32_activations, portable_bf16_activations, int8_tile,
      f32_tile, bf16_tile, portable_expand_f32,       portable_expand_bf16};
  return kernels;
}

}  // namespace baton::device::cpu
