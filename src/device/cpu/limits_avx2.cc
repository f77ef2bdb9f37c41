#include <immintrin.h>

#include "device/cpu/limits_kernels.h"

namespace baton::device::cpu {
namespace {

constexpr int kChains = 12;
constexpr int kUnroll = 8;

template <class V>
void keep(V& v) {
  asm volatile("" : "+x"(v));
}

template <class V, class Step>
void chains(std::int64_t rounds, V zero, const Step& step) {
  V acc[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) acc[i] = zero;
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < kUnroll; ++u) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) acc[i] = step(acc[i]);
    }
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) keep(acc[i]);
  }
}

double f32(std::int64_t rounds) {
  __m256 a = _mm256_set1_ps(0.5F);
  keep(a);
  chains(rounds, _mm256_setzero_ps(), [a](__m256 v) { return _mm256_fmadd_ps(a, a, v); });
  return 2.0 * 8 * kChains * kUnroll;
}

// There is no bf16 arithmetic: what was converted multiplies as f32, and the conversion is not counted.
double bf16(std::int64_t rounds) { return f32(rounds); }

// Products summed in 16 bits, as for 4-bit weights; wider ones cost more.
double int8(std::int64_t rounds) {
  __m256i a = _mm256_set1_epi8(3);
  keep(a);
  chains(rounds, _mm256_setzero_si256(), [a](__m256i v) {
    __m256i b = a;
    keep(b);
    return _mm256_add_epi16(v, _mm256_maddubs_epi16(a, b));
  });
  return 2.0 * 32 * kChains * kUnroll;
}

std::uint64_t read(const std::byte* data, std::size_t bytes) {
  __m256i sum[4] = {};
  for (std::size_t at = 0; at < bytes; at += 1024) {
#pragma GCC unroll 32
    for (std::size_t i = 0; i < 32; ++i) {
      if (i % 2 == 0) _mm_prefetch(data + at + 32 * i + 4096, _MM_HINT_T0);
      sum[i % 4] = _mm256_add_epi64(sum[i % 4], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + at + 32 * i)));
    }
  }
  const __m256i all = _mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]), _mm256_add_epi64(sum[2], sum[3]));
  return static_cast<std::uint64_t>(_mm256_extract_epi64(all, 0)) + static_cast<std::uint64_t>(_mm256_extract_epi64(all, 1)) +
         static_cast<std::uint64_t>(_mm256_extract_epi64(all, 2)) + static_cast<std::uint64_t>(_mm256_extract_epi64(all, 3));
}

}  // namespace

const LimitKernels& limit_kernels_avx2() {
  static constexpr LimitKernels kernels = {f32, bf16, int8, read};
  return kernels;
}

}  // namespace baton::device::cpu
