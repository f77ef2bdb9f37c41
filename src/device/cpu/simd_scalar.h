#pragma once
// The vector vocabulary of row_kernels.inc and attention_kernel.h, in portable C++: one lane, products rounded before they are added.
// Same names as simd_avx2.h and simd_avx512.h. In an anonymous namespace, so that what is compiled for one instruction set stays in its
// file.

#include <bit>
#include <cmath>
#include <cstdint>

#include "device/half.h"

namespace baton::device::cpu {
namespace {

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
  static V load_f16(const std::uint16_t* p) { return half_to_float(*p); }
  static void store_bf16(std::uint16_t* p, V v) { *p = float_to_bf16(v); }
  static void store_f16(std::uint16_t* p, V v) { *p = float_to_half(v); }
};

}  // namespace
}  // namespace baton::device::cpu
