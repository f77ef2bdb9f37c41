#pragma once
// The vector vocabulary of row_kernels.inc and attention_kernel.h, in portable C++: one lane, products rounded before they are added.
// Same names as simd_avx2.h and simd_avx512.h. In an anonymous namespace, so that what is compiled for one instruction set stays in its
// file.

#include <bit>
#include <cmath>
#include <cstdint>

namespace baton::device::cpu {
namespace {

inline float bf16_to_float(std::uint16_t h) { return std::bit_cast<float>(static_cast<std::uint32_t>(h) << 16); }
inline std::uint16_t float_to_bf16(float x) {  // round to nearest, ties to even; NaN stays NaN
  const auto u = std::bit_cast<std::uint32_t>(x);
  if (x != x) return static_cast<std::uint16_t>((u >> 16) | 0x40u);
  return static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

inline float f16_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // 2^-112 moves the exponent from f16's bias to f32's and makes subnormals exact.
  const float x = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(x));
}
inline std::uint16_t float_to_f16(float x) {  // round to nearest, ties to even
  const auto u = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>((u >> 16) & 0x8000u);
  const std::uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x47800000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 2^16 and more
  if (magnitude < 0x38800000u) {                                                    // below 2^-14: subnormal, one ulp is 2^-24
    const float ulps = std::bit_cast<float>(magnitude) * 0x1p24f;
    return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(ulps)));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

struct Simd {
  static constexpr int kWidth = 1;
  static constexpr int kTileVectors = 16;  // of the matrix micro-kernel's columns
  using V = float;

  static V zero() { return 0; }
  static V set1(float x) { return x; }
  static V load(const float* p) { return *p; }
  static V load(const float* p, long) { return *p; }  // the first n lanes, the others zero; n < kWidth
  static void store(float* p, V v) { *p = v; }
  static void store(float* p, V v, long) { *p = v; }
  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V div(V a, V b) { return a / b; }
  static V fma(V a, V b, V c) { return a * b + c; }
  static V max(V a, V b) { return a > b ? a : b; }  // b if either is NaN
  static V min(V a, V b) { return a < b ? a : b; }
  static V round(V a) { return std::nearbyint(a); }
  // 2^n for whole n in [-127, 128], where the ends are 0 and infinity; NaN for NaN.
  static V pow2(V n) { return n != n ? n : std::bit_cast<float>(static_cast<std::uint32_t>(static_cast<std::int32_t>(n) + 127) << 23); }
  static float sum(V v) { return v; }
  static float max_lane(V v) { return v; }

  static V load_bf16(const std::uint16_t* p) { return bf16_to_float(*p); }
  static V load_f16(const std::uint16_t* p) { return f16_to_float(*p); }
  static void store_bf16(std::uint16_t* p, V v) { *p = float_to_bf16(v); }
  static void store_f16(std::uint16_t* p, V v) { *p = float_to_f16(v); }
};

}  // namespace
}  // namespace baton::device::cpu
