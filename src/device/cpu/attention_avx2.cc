#include "device/cpu/simd_avx2.h"
//
#include "device/cpu/attention_kernel.h"

namespace baton::device::cpu {
namespace {

// r[i] lane j <-> r[j] lane i.
[[gnu::always_inline]] inline void transpose(__m256 (&r)[8]) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

__m256 load8(const std::byte* row, DType dtype, int d) {
  if (dtype == DType::kF32) return Simd::load(reinterpret_cast<const float*>(row) + d);
  const auto* half = reinterpret_cast<const std::uint16_t*>(row) + d;
  return dtype == DType::kBF16 ? Simd::load_bf16(half) : Simd::load_f16(half);
}

void transpose16(const std::byte* keys, DType dtype, long token_bytes, int head_dim, float* out) {
  for (int d = 0; d < head_dim; d += 8)
    for (int t = 0; t < 16; t += 8) {
      __m256 r[8];
      for (int i = 0; i < 8; ++i) r[i] = load8(keys + (t + i) * token_bytes, dtype, d);
      transpose(r);
      for (int i = 0; i < 8; ++i) Simd::store(out + (d + i) * kPackTokens + t, r[i]);
    }
}

}  // namespace
}  // namespace baton::device::cpu

#include "device/cpu/attention_kernel.inc"

namespace baton::device::cpu {

const AttentionKernels kAttentionAvx2 = kTable;

}  // namespace baton::device::cpu
