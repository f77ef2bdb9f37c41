#include "device/cpu/simd_scalar.h"
//
#include "device/cpu/attention_kernel.h"

namespace baton::device::cpu {
namespace {

float element(const std::byte* row, DType dtype, int i) {
  if (dtype == DType::kF32) return reinterpret_cast<const float*>(row)[i];
  const std::uint16_t half = reinterpret_cast<const std::uint16_t*>(row)[i];
  return dtype == DType::kBF16 ? bf16_to_float(half) : half_to_float(half);
}

void transpose16(const std::byte* keys, DType dtype, long token_bytes, int head_dim, float* out) {
  for (int d = 0; d < head_dim; ++d)
    for (int t = 0; t < 16; ++t) out[d * kPackTokens + t] = element(keys + t * token_bytes, dtype, d);
}

}  // namespace
}  // namespace baton::device::cpu

#include "device/cpu/attention_kernel.inc"

namespace baton::device::cpu {

const AttentionKernels kAttentionScalar = kTable;

}  // namespace baton::device::cpu
