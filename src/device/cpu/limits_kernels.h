#pragma once
// The loops whose speed is called the machine's limit: nothing but the arithmetic, in registers, and nothing but loads. One table per
// instruction set.

#include <cstddef>
#include <cstdint>

#include "device/cpu/isa.h"

namespace baton::device::cpu {

struct LimitKernels {
  // Each does `rounds` rounds and returns the operations in one (a multiply-add counts two).
  double (*f32)(std::int64_t rounds);
  double (*bf16)(std::int64_t rounds);
  double (*int8)(std::int64_t rounds);
  // Reads `bytes` (a multiple of 1,024) and returns something that depends on all of them.
  std::uint64_t (*read)(const std::byte* data, std::size_t bytes);
};

const LimitKernels& limit_kernels_scalar();
const LimitKernels& limit_kernels_avx2();
const LimitKernels& limit_kernels_avx512();

}  // namespace baton::device::cpu
