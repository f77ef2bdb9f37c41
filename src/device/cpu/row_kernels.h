#pragma once
// Loops over one row of f32, compiled once for each instruction set. Sums run over kWidth * 4 lanes that are added in a fixed tree, so a
// row's bits depend on its values and the instruction set only.

#include <cstdint>

#include "device/cpu/isa.h"
#include "device/types.h"

namespace baton::device::cpu {

struct RowKernels {
  // out = x / sqrt(mean(x^2) + eps) * weight; out may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, long n, float* out);
  // residual += x; out = rms_norm(residual).
  void (*add_rms_norm)(float* residual, const float* x, const float* weight, float eps, long n, float* out);
  void (*add)(float* x, const float* y, long n);
  // (x[i], x[i + half]) turned by the angle whose cosine and sine are cos[i], sin[i].
  void (*rope)(float* x, const float* cos, const float* sin, long half);
  // out = gate / (1 + e^-gate) * up
  void (*swiglu)(const float* gate, const float* up, long n, float* out);
  // x as f32, bf16 or f16, rounded to nearest even.
  void (*convert)(const float* x, DType dtype, long n, void* out);
  // The first index of the largest value; NaN counts as less than everything.
  std::int32_t (*argmax)(const float* x, long n);
  // The first index at or after `begin` where x > bound, or n.
  long (*find_above)(const float* x, float bound, long begin, long n);
};

const RowKernels& row_kernels(Isa isa);

// One table for each kernel file.
extern const RowKernels kRowKernelsScalar, kRowKernelsAvx2, kRowKernelsAvx512;

}  // namespace baton::device::cpu
