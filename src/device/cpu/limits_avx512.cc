#include <immintrin.h>

#include "device/cpu/limits_kernels.h"

namespace baton::device::cpu {
namespace {

// So many independent chains hide the latency of two units.
constexpr int kChains = 20;
constexpr int kUnroll = 8;

template <class V>
void keep(V& v) {
  asm volatile("" : "+v"(v));
}

template <class V, class Step>
void chains(std::int64_t rounds, V zero, const Step& step) {
  V acc[kChains];
#pragma GCC unroll 20
  for (int i = 0; i < kChains; ++i) acc[i] = zero;
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < kUnroll; ++u) {
#pragma GCC unroll 20
      for (int i = 0; i < kChains; ++i) acc[i] = step(acc[i]);
    }
#pragma GCC unroll 20
    for (int i = 0; i < kChains; ++i) keep(acc[i]);
  }
}

double f32(std::int64_t rounds) {
  __m512 a = _mm512_set1_ps(0.5F);
  keep(a);
  chains(rounds, _mm512_setzero_ps(), [a](__m512 v) { return _mm512_fmadd_ps(a, a, v); });
  return 2.0 * 16 * kChains * kUnroll;
}

double bf16(std::int64_t rounds) {
  __m512i a = _mm512_set1_epi32(0x3f003f00);  // halves
  keep(a);
  chains(rounds, _mm512_setzero_ps(), [a](__m512 v) { return _mm512_dpbf16_ps(v, (__m512bh)a, (__m512bh)a); });
  return 2.0 * 32 * kChains * kUnroll;
}

double int8(std::int64_t rounds) {
  __m512i a = _mm512_set1_epi8(3);
  keep(a);
  chains(rounds, _mm512_setzero_si512(), [a](__m512i v) { return _mm512_dpbusd_epi32(v, a, a); });
  return 2.0 * 64 * kChains * kUnroll;
}

std::uint64_t read(const std::byte* data, std::size_t bytes) {
  __m512i sum[4] = {};
  for (std::size_t at = 0; at < bytes; at += 1024) {
#pragma GCC unroll 16
    for (std::size_t i = 0; i < 16; ++i) {
      _mm_prefetch(data + at + 64 * i + 4096, _MM_HINT_T0);
      sum[i % 4] = _mm512_add_epi64(sum[i % 4], _mm512_loadu_si512(data + at + 64 * i));
    }
  }
  return static_cast<std::uint64_t>(
      _mm512_reduce_add_epi64(_mm512_add_epi64(_mm512_add_epi64(sum[0], sum[1]), _mm512_add_epi64(sum[2], sum[3]))));
}

}  // namespace

const LimitKernels& limit_kernels_avx512() {
  static constexpr LimitKernels kernels = {f32, bf16, int8, read};
  return kernels;
}

}  // namespace baton::device::cpu
