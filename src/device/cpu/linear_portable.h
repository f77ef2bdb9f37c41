#pragma once
// Portable kernels of the linear layers: the scalar instruction set's, and those parts of the others' that need no intrinsics (the
// including file's flags let the compiler vectorise them). Internal linkage throughout: each file has its own copy, compiled for its
// instruction set.

#include <cmath>
#include <cstring>

#include "device/cpu/linear_kernels.h"

namespace baton::device::cpu {
namespace {

[[maybe_unused]] inline float portable_half(std::uint16_t h) {
  const std::uint32_t magnitude = (static_cast<std::uint32_t>(h) & 0x7fff) << 13;
  std::uint32_t bits;
  // Rebias the exponent by a multiplication, which handles subnormals too; exact.
  float f;
  std::memcpy(&f, &magnitude, 4);
  f *= 0x1p112F;
  std::memcpy(&bits, &f, 4);
  bits = magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : bits;  // infinity or NaN
  bits |= (static_cast<std::uint32_t>(h) & 0x8000) << 16;
  std::memcpy(&f, &bits, 4);
  return f;
}

[[maybe_unused]] inline std::uint16_t portable_bf16(float f) {
  std::uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const std::uint32_t nan = bits >> 16 | 0x40, number = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<std::uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? nan : number);
}

[[maybe_unused]] inline float portable_f32(std::uint32_t bf16) {
  const std::uint32_t bits = bf16 << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// Magnitudes are compared as integers, so that a NaN is the largest and reaches the output. Below kTiny a block counts as zeros: 127 / amax
// would overflow.
inline constexpr float kTiny = 1e-36F;

[[maybe_unused]] void portable_int8_activations(const float* x, std::int64_t stride, int tokens, std::int64_t k, int shift, int run,
                                                std::byte* tile) {
  for (std::int64_t b = 0; b < k / kBlock; ++b, tile += kInt8BlockBytes * static_cast<std::size_t>(tokens)) {
    auto* q = reinterpret_cast<std::int8_t*>(tile);
    auto* s = reinterpret_cast<float*>(tile + kBlock * tokens);
    auto* c = reinterpret_cast<std::int32_t*>(s + 2 * tokens);
    for (int t = 0; t < tokens; ++t) {
      const float* row = x + t * stride + b * kBlock;
      std::uint32_t largest = 0;
      for (int i = 0; i < kBlock; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, row + i, 4);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
      }
      float amax;
      std::memcpy(&amax, &largest, 4);
      const bool tiny = amax < kTiny;
      const float inverse = tiny ? 0.0F : 127.0F / amax;
      s[t] = tiny ? 0.0F : amax / 127.0F;
      int sum[2] = {0, 0};
      std::int8_t v[kBlock];
      for (int i = 0; i < kBlock; ++i) {
        // Adding 1.5 * 2^23 rounds to the nearest even integer and leaves it in the low bits. A NaN gives some number: the scale carries it
        // on.
        const float r = row[i] * inverse + 12582912.0F;
        std::int32_t bits;
        std::memcpy(&bits, &r, 4);
        v[i] = static_cast<std::int8_t>(bits & 0xff);
      }
      for (int i = 0; i < kBlock / 2; ++i) sum[0] += v[i];
      for (int i = kBlock / 2; i < kBlock; ++i) sum[1] += v[i];
      for (int i = 0; i < kBlock / 4; ++i) std::memcpy(q + (i * tokens + t) * 4, v + 4 * i, 4);
      s[tokens + t] = s[t] * static_cast<float>(sum[0] + sum[1]);
      c[t] = -shift * (run == 16 ? sum[0] : sum[0] + sum[1]);
      c[tokens + t] = -shift * sum[1];
    }
  }
}

[[maybe_unused]] void portable_f32_activations(const float* x, std::int64_t stride, int tokens, std::int64_t k, std::byte* tile) {
  auto* out = reinterpret_cast<float*>(tile);
  if (tokens == 1) {
    std::memcpy(out, x, static_cast<std::size_t>(k) * 4);
    return;
  }
  for (int t = 0; t < tokens; ++t) {
    for (std::int64_t i = 0; i < k; ++i) out[i * tokens + t] = x[t * stride + i];
  }
}

[[maybe_unused]] void portable_bf16_activations(const float* x, std::int64_t stride, int tokens, std::int64_t k, std::byte* tile) {
  auto* out = reinterpret_cast<std::uint16_t*>(tile);
  for (int t = 0; t < tokens; ++t) {
    for (std::int64_t i = 0; i < k; ++i) out[(i / 2 * tokens + t) * 2 + i % 2] = portable_bf16(x[t * stride + i]);
    if (k % 2 != 0) out[(k / 2 * tokens + t) * 2 + 1] = 0;
  }
}

// The codes of a record less the shift, [32 inputs][32 rows].
template <int Bits>
[[maybe_unused]] inline void portable_codes(const std::byte* record, int shift, float* out) {
  for (int i = 0; i < kBlock / 4; ++i) {
    const int bit = Bits != 8 && i >= 4 ? 4 : 0;
    std::uint32_t words[kPanelRows], fifth[kPanelRows] = {}, sixth[kPanelRows] = {};  // four inputs of each row
    std::memcpy(words, record + (Bits == 8 ? i : i % 4) * 128, sizeof words);
    const std::byte* plane = record + kPlanes + static_cast<std::size_t>(i) * 16;
    for (int r = 0; r < kPanelRows && (Bits == 5 || Bits == 6); ++r) {
      fifth[r] = static_cast<std::uint32_t>(plane[r / 2]) >> r % 2 * 4;
      if (Bits == 6) sixth[r] = static_cast<std::uint32_t>(plane[kPlaneBytes + static_cast<std::size_t>(r / 2)]) >> r % 2 * 4;
    }
    for (int j = 0; j < 4; ++j, out += kPanelRows) {
      for (int r = 0; r < kPanelRows; ++r) {
        const std::uint32_t low = (words[r] >> (8 * j + bit)) & (Bits == 8 ? 255 : 15);
        out[r] = static_cast<float>(static_cast<std::int32_t>(low | (fifth[r] >> j & 1) << 4 | (sixth[r] >> j & 1) << 5) - shift);
      }
    }
  }
}

[[maybe_unused]] inline void portable_codes(const PackTraits& t, const std::byte* record, float* out) {
  if (t.bits == 4) portable_codes<4>(record, t.shift, out);
  if (t.bits == 5) portable_codes<5>(record, t.shift, out);
  if (t.bits == 6) portable_codes<6>(record, t.shift, out);
  if (t.bits == 8) portable_codes<8>(record, t.shift, out);
}

[[maybe_unused]] inline float portable_half_at(const std::byte* p, int i) {
  std::uint16_t h;
  std::memcpy(&h, p + 2 * i, 2);
  return portable_half(h);
}

// d and m of a record, [32 / run][32 rows]; `super`: the factors before the eight records that it is one of.
[[maybe_unused]] inline void portable_scales(const PackTraits& t, const std::byte* super, const std::byte* record, float* d, float* m) {
  const std::byte *scales = record + t.code_bytes(), *minima = scales + t.scale_bytes();
  for (int i = 0; i < kBlock / t.run * kPanelRows; ++i) {
    if (!t.super) {
      d[i] = portable_half_at(scales, i);
      if (t.minima) m[i] = portable_half_at(minima, i);
    } else if (t.minima) {
      d[i] = portable_half_at(super, i % kPanelRows) * static_cast<float>(static_cast<std::uint8_t>(scales[i]));
      m[i] = portable_half_at(super, kPanelRows + i % kPanelRows) * static_cast<float>(static_cast<std::uint8_t>(minima[i]));
    } else {
      d[i] = portable_half_at(super, i % kPanelRows) * static_cast<float>(static_cast<std::int8_t>(scales[i]));
    }
  }
}

// The weights of each record, [32 inputs][32 rows], to write(first input, weights).
template <class Writer>
void portable_expand(PackKind kind, const std::byte* records, std::int64_t blocks, const Writer& write) {
  const PackTraits t = traits(kind);
  float w[kBlock * kPanelRows], d[2 * kPanelRows], m[2 * kPanelRows] = {};
  const std::byte* super = records;
  for (std::int64_t b = 0; b < blocks; ++b, records += t.record_bytes()) {
    if (t.super && b % kSuperBlocks == 0) {
      super = records;
      records += t.super_bytes();
    }
    portable_codes(t, records, w);
    portable_scales(t, super, records, d, m);
    for (int i = 0; i < kBlock; ++i) {
      const float *di = d + i / t.run * kPanelRows, *mi = m + i / t.run * kPanelRows;
      float* wi = w + i * kPanelRows;
      for (int r = 0; r < kPanelRows; ++r) wi[r] = di[r] * wi[r];
      for (int r = 0; r < kPanelRows && t.minima; ++r) wi[r] += mi[r];
    }
    write(b * kBlock, w);
  }
}

[[maybe_unused]] void portable_expand_f32(PackKind kind, const std::byte* records, std::int64_t blocks, float* out) {
  portable_expand(kind, records, blocks,
                  [out](std::int64_t i, const float* w) { std::memcpy(out + i * kPanelRows, w, sizeof(float) * kBlock * kPanelRows); });
}

[[maybe_unused]] void portable_expand_bf16(PackKind kind, const std::byte* records, std::int64_t blocks, std::uint16_t* out) {
  portable_expand(kind, records, blocks, [out](std::int64_t i, const float* w) {
    for (int pair = 0; pair < kBlock / 2; ++pair, w += 2 * kPanelRows) {
      std::uint32_t both[kPanelRows];
      for (int r = 0; r < kPanelRows; ++r) {
        both[r] = portable_bf16(w[r]) | static_cast<std::uint32_t>(portable_bf16(w[kPanelRows + r])) << 16;
      }
      std::memcpy(out + (i + 2 * pair) * kPanelRows, both, sizeof both);
    }
  });
}

}  // namespace
}  // namespace baton::device::cpu
