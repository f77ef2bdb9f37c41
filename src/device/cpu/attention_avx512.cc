#include "device/cpu/simd_avx512.h"
//
#include "device/cpu/attention_kernel.h"

namespace baton::device::cpu {
namespace {

// r[i] lane j <-> r[j] lane i, for 32-bit lanes: four rounds of interleaving, at distances of 1, 2 (lanes), 4 and 8 (quarters).
[[gnu::always_inline]] inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int h = 0; h < 16; h += 8)
    for (int i = 0; i < 4; ++i) {
      t[h + i] = _mm512_shuffle_i32x4(r[h + i], r[h + 4 + i], 0x88);
      t[h + 4 + i] = _mm512_shuffle_i32x4(r[h + i], r[h + 4 + i], 0xdd);
    }
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
  }
}

void transpose16(const std::byte* keys, DType dtype, long token_bytes, int head_dim, float* out) {
  __m512i r[16];
  if (dtype == DType::kBF16) {
    // Pairs of dimensions move as one 32-bit lane and part afterwards: half the shuffles.
    int d = 0;
    for (; d + 32 <= head_dim; d += 32) {
      for (int t = 0; t < 16; ++t) r[t] = _mm512_loadu_si512(keys + t * token_bytes + d * 2);
      transpose(r);
      for (int i = 0; i < 16; ++i) {
        float* even = out + (d + 2 * i) * kPackTokens;
        _mm512_storeu_si512(even, _mm512_slli_epi32(r[i], 16));
        _mm512_storeu_si512(even + kPackTokens, _mm512_and_si512(r[i], _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
      }
    }
    if (d == head_dim) return;
    for (int t = 0; t < 16; ++t)
      r[t] = _mm512_castps_si512(Simd::load_bf16(reinterpret_cast<const std::uint16_t*>(keys + t * token_bytes) + d));
    transpose(r);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + (d + i) * kPackTokens, r[i]);
    return;
  }
  for (int d = 0; d < head_dim; d += 16) {
    for (int t = 0; t < 16; ++t) {
      const std::byte* row = keys + t * token_bytes;
      r[t] = dtype == DType::kF32 ? _mm512_loadu_si512(row + d * 4)
                                  : _mm512_castps_si512(Simd::load_f16(reinterpret_cast<const std::uint16_t*>(row) + d));
    }
    transpose(r);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + (d + i) * kPackTokens, r[i]);
  }
}

}  // namespace
}  // namespace baton::device::cpu

#include "device/cpu/attention_kernel.inc"

namespace baton::device::cpu {

const AttentionKernels kAttentionAvx512 = kTable;

}  // namespace baton::device::cpu
