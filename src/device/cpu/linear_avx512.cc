// Linear kernels for AVX-512 with VNNI and BF16. 16 output rows lie in the lanes of a register, a tile is 32 rows (two registers) by up to
// 6 tokens (int8: an integer and a float accumulator each) or 12 (floats), and each activation is broadcast once for both registers.

#include <immintrin.h>

#include <utility>

#include "device/cpu/linear_portable.h"

namespace baton::device::cpu {
namespace {

constexpr int kInt8Tokens = 6, kFloatTokens = 12;
constexpr int kPrefetchBytes = 4096;  // ahead of the weights being read, where a pass is bound by memory

// ---- activations ----

void int8_activations(const float* x, std::int64_t stride, int tokens, std::int64_t k, int shift, int run, std::byte* tile) {
  const std::int64_t blocks = k / kBlock;
  const std::size_t record = kInt8BlockBytes * static_cast<std::size_t>(tokens);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m256i ones = _mm256_set1_epi8(1);
  const __m256i places = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(4 * tokens));
  for (int t = 0; t < tokens; ++t) {
    const float* row = x + t * stride;
    std::byte* out = tile;
    for (std::int64_t b = 0; b < blocks; ++b, row += kBlock, out += record) {
      const __m512 x0 = _mm512_loadu_ps(row), x1 = _mm512_loadu_ps(row + 16);
      const __m512i m0 = _mm512_and_si512(_mm512_castps_si512(x0), magnitude), m1 = _mm512_and_si512(_mm512_castps_si512(x1), magnitude);
      const float amax = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(_mm512_max_epi32(m0, m1)))));
      const bool tiny = amax < kTiny;
      const __m512 inverse = _mm512_set1_ps(tiny ? 0.0F : 127.0F / amax);
      const float s = tiny ? 0.0F : amax / 127.0F;
      const __m128i q0 = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x0, inverse)));
      const __m128i q1 = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x1, inverse)));
      const __m256i q = _mm256_set_m128i(q1, q0);
      const __m256i quads = _mm256_dpbusd_epi32(_mm256_setzero_si256(), ones, q);
      __m128i low = _mm256_castsi256_si128(quads), high = _mm256_extracti128_si256(quads, 1);
      __m128i sums = _mm_hadd_epi32(low, high);
      sums = _mm_hadd_epi32(sums, sums);
      const int sum0 = _mm_cvtsi128_si32(sums), sum1 = _mm_extract_epi32(sums, 1);
      if (tokens == 1) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), q);
      } else {
        _mm256_i32scatter_epi32(out + 4 * t, places, q, 1);
      }
      auto* f = reinterpret_cast<float*>(out + kBlock * tokens) + t;
      auto* c = reinterpret_cast<std::int32_t*>(f) + 2 * tokens;
      f[0] = s;
      f[tokens] = s * static_cast<float>(sum0 + sum1);
      c[0] = -shift * (run == 16 ? sum0 : sum0 + sum1);
      c[tokens] = -shift * sum1;
    }
  }
}

void bf16_activations(const float* x, std::int64_t stride, int tokens, std::int64_t k, std::byte* tile) {
  for (int t = 0; t < tokens; ++t) {
    const float* row = x + t * stride;
    auto* out = reinterpret_cast<std::uint32_t*>(tile) + t;
    std::int64_t i = 0;
    for (; i + 32 <= k; i += 32) {
      alignas(64) std::uint32_t pairs[16];
      const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + i + 16), _mm512_loadu_ps(row + i));
      _mm512_store_si512(pairs, (__m512i)both);
      for (int j = 0; j < 16; ++j) out[(i / 2 + j) * tokens] = pairs[j];
    }
    for (; i < k; i += 2) {
      out[i / 2 * tokens] = portable_bf16(row[i]) | static_cast<std::uint32_t>(i + 1 < k ? portable_bf16(row[i + 1]) : 0) << 16;
    }
  }
}

// ---- tiles ----

template <int T>
[[gnu::always_inline]] inline void store(const TileArgs& a, __m512 (&acc)[T][2]) {
  const __mmask16 mask[2] = {static_cast<__mmask16>(a.rows >= 16 ? 0xffff : (1 << a.rows) - 1),
                             static_cast<__mmask16>(a.rows >= 32  ? 0xffff
                                                    : a.rows > 16 ? (1 << (a.rows - 16)) - 1
                                                                  : 0)};
#pragma GCC unroll 2
  for (int g = 0; g < 2; ++g) {
    const __m512 bias = a.bias ? _mm512_loadu_ps(a.bias + 16 * g) : _mm512_setzero_ps();
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      const __m512 sum = a.bias ? _mm512_add_ps(acc[t][g], bias) : acc[t][g];
      _mm512_mask_storeu_ps(a.out + t * a.out_stride + 16 * g, mask[g], sum);
    }
  }
}

[[gnu::always_inline]] inline __m512 halves(const std::byte* p, int group) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + group));
}

// Scales (or minima) of a group of 16 rows. `own`: those of the record and run; `super`: the other factors of the K kinds.
template <PackKind Kind>
[[gnu::always_inline]] inline __m512 scales(const std::byte* super, const std::byte* own, int group) {
  if constexpr (!traits(Kind).super) {
    return halves(own, group);
  } else {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(own) + group);
    const __m512i factor = traits(Kind).minima ? _mm512_cvtepu8_epi32(bytes) : _mm512_cvtepi8_epi32(bytes);
    return _mm512_mul_ps(halves(super, group), _mm512_cvtepi32_ps(factor));
  }
}

// Adds bit 4 + `plane` to the codes of quad i of group g.
[[gnu::always_inline]] inline __m512i upper_bit(const std::byte* record, int plane, int i, int g, __m512i codes) {
  std::uint64_t bits;
  std::memcpy(&bits, record + kPlanes + static_cast<std::size_t>(plane) * kPlaneBytes + 16 * i + 8 * g, 8);
  return _mm512_mask_add_epi8(codes, bits, codes, _mm512_set1_epi8(static_cast<char>(16 << plane)));
}

// Quad i of group g of a record.
template <PackKind Kind>
[[gnu::always_inline]] inline __m512i load_codes(const std::byte* record, int i, int g) {
  if constexpr (!traits(Kind).nibbles()) {
    return _mm512_loadu_si512(record + 128 * i + 64 * g);
  } else {
    const __m512i both = _mm512_loadu_si512(record + 128 * (i % 4) + 64 * g);
    __m512i codes = _mm512_and_si512(i < 4 ? both : _mm512_srli_epi16(both, 4), _mm512_set1_epi8(15));
    if constexpr (traits(Kind).bits >= 5) codes = upper_bit(record, 0, i, g, codes);
    if constexpr (traits(Kind).bits == 6) codes = upper_bit(record, 1, i, g, codes);
    return codes;
  }
}

// dot[t][g] += codes * activations for four inputs of each of 32 rows.
template <int T>
[[gnu::always_inline]] inline void quad(__m512i w0, __m512i w1, const std::byte* q, __m512i (&dot)[T][2]) {
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) {
    const __m512i v = _mm512_set1_epi32(reinterpret_cast<const std::int32_t*>(q)[t]);
    dot[t][0] = _mm512_dpbusd_epi32(dot[t][0], w0, v);
    dot[t][1] = _mm512_dpbusd_epi32(dot[t][1], w1, v);
  }
}

template <PackKind Kind, int T>
void int8_tile_of(const TileArgs& a) {
  constexpr PackTraits w = traits(Kind);
  constexpr int kRuns = kBlock / w.run;
  __m512 acc[T][2];
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm512_setzero_ps();
  const std::byte *record = a.weights, *super = record, *x = a.x;
  for (std::int64_t b = 0; b < a.k / kBlock; ++b) {
    const auto* s = reinterpret_cast<const float*>(x + kBlock * T);
    const std::int64_t distance = T <= 2 ? kPrefetchBytes : a.prefetch;
    if (w.super && b % kSuperBlocks == 0) {
      super = record;
      record += w.super_bytes();
      if (distance != 0) {
        for (std::size_t i = 0; i < w.super_bytes(); i += 64) _mm_prefetch(super + distance + i, _MM_HINT_T0);
      }
    }
    if (distance != 0) {
      for (std::size_t i = 0; i < w.record_bytes(); i += 64) _mm_prefetch(record + distance + i, _MM_HINT_T0);
    }
#pragma GCC unroll 2
    for (int h = 0; h < kRuns; ++h) {
      __m512i dot[T][2];
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) {
        dot[t][0] = w.minima ? _mm512_setzero_si512() : _mm512_castps_si512(_mm512_set1_ps(s[(2 + h) * T + t]));
        dot[t][1] = dot[t][0];
      }
      if constexpr (w.nibbles() && kRuns == 1) {  // both halves of a byte at once
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          quad<T>(load_codes<Kind>(record, i, 0), load_codes<Kind>(record, i, 1), x + 4 * T * i, dot);
          quad<T>(load_codes<Kind>(record, i + 4, 0), load_codes<Kind>(record, i + 4, 1), x + 4 * T * (i + 4), dot);
        }
      } else {
#pragma GCC unroll 8
        for (int i = h * 8 / kRuns; i < (h + 1) * 8 / kRuns; ++i) {
          quad<T>(load_codes<Kind>(record, i, 0), load_codes<Kind>(record, i, 1), x + 4 * T * i, dot);
        }
      }
      const std::byte* d = record + w.code_bytes() + w.scale_bytes() / kRuns * static_cast<std::size_t>(h);
#pragma GCC unroll 2
      for (int g = 0; g < 2; ++g) {
        const __m512 dg = scales<Kind>(super, d, g);
#pragma GCC unroll 6
        for (int t = 0; t < T; ++t) {
          acc[t][g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][g]), _mm512_mul_ps(dg, _mm512_set1_ps(s[t])), acc[t][g]);
        }
        if constexpr (w.minima) {
          const __m512 mg = scales<Kind>(super + w.super_bytes() / 2, d + w.scale_bytes(), g);
#pragma GCC unroll 6
          for (int t = 0; t < T; ++t) acc[t][g] = _mm512_fmadd_ps(mg, _mm512_set1_ps(s[T + t]), acc[t][g]);
        }
      }
    }
    record += w.record_bytes();
    x += kInt8BlockBytes * T;
  }
  store<T>(a, acc);
}

template <int T>
[[gnu::always_inline]] inline void load_sums(const TileArgs& a, __m512 (&acc)[T][2]) {
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm512_setzero_ps();
  if (!a.resume) return;
  const __mmask16 mask[2] = {static_cast<__mmask16>(a.rows >= 16 ? 0xffff : (1 << a.rows) - 1),
                             static_cast<__mmask16>(a.rows >= 32  ? 0xffff
                                                    : a.rows > 16 ? (1 << (a.rows - 16)) - 1
                                                                  : 0)};
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) {
    acc[t][0] = _mm512_maskz_loadu_ps(mask[0], a.out + t * a.out_stride);
    acc[t][1] = _mm512_maskz_loadu_ps(mask[1], a.out + t * a.out_stride + 16);
  }
}

template <int T>
void f32_tile_of(const TileArgs& a) {
  __m512 acc[T][2];
  load_sums<T>(a, acc);
  const auto *w = reinterpret_cast<const float*>(a.weights), *x = reinterpret_cast<const float*>(a.x);
  for (std::int64_t i = 0; i < a.k; ++i, w += kPanelRows, x += T) {
    const __m512 w0 = _mm512_loadu_ps(w), w1 = _mm512_loadu_ps(w + 16);
    if (T <= 2 || a.prefetch) {
      const auto* ahead = reinterpret_cast<const char*>(w) + (T <= 2 ? kPrefetchBytes : a.prefetch);
      _mm_prefetch(ahead, _MM_HINT_T0);
      _mm_prefetch(ahead + 64, _MM_HINT_T0);
    }
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      const __m512 v = _mm512_set1_ps(x[t]);
      acc[t][0] = _mm512_fmadd_ps(w0, v, acc[t][0]);
      acc[t][1] = _mm512_fmadd_ps(w1, v, acc[t][1]);
    }
  }
  store<T>(a, acc);
}

template <int T>
void bf16_tile_of(const TileArgs& a) {
  __m512 acc[T][2];
  load_sums<T>(a, acc);
  const std::byte* w = a.weights;
  const auto* x = reinterpret_cast<const std::int32_t*>(a.x);
  for (std::int64_t i = (a.k + 1) / 2; i > 0; --i, w += 128, x += T) {
    const __m512bh w0 = (__m512bh)_mm512_loadu_si512(w), w1 = (__m512bh)_mm512_loadu_si512(w + 64);
    if (T <= 2 || a.prefetch) {
      const auto* ahead = w + (T <= 2 ? kPrefetchBytes : a.prefetch);
      _mm_prefetch(ahead, _MM_HINT_T0);
      _mm_prefetch(ahead + 64, _MM_HINT_T0);
    }
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      const __m512bh v = (__m512bh)_mm512_set1_epi32(x[t]);
      acc[t][0] = _mm512_dpbf16_ps(acc[t][0], w0, v);
      acc[t][1] = _mm512_dpbf16_ps(acc[t][1], w1, v);
    }
  }
  store<T>(a, acc);
}

using Tile = void (*)(const TileArgs&);

template <PackKind Kind>
void int8_tile_sized(const TileArgs& a) {
  static constexpr Tile kTiles[kInt8Tokens] = {int8_tile_of<Kind, 1>, int8_tile_of<Kind, 2>, int8_tile_of<Kind, 3>,
                                               int8_tile_of<Kind, 4>, int8_tile_of<Kind, 5>, int8_tile_of<Kind, 6>};
  kTiles[a.tokens - 1](a);
}

void int8_tile(PackKind kind, const TileArgs& a) {
  switch (kind) {
    case PackKind::kU4Half:
      return int8_tile_sized<PackKind::kU4Half>(a);
    case PackKind::kU4HalfMin:
      return int8_tile_sized<PackKind::kU4HalfMin>(a);
    case PackKind::kU5Half:
      return int8_tile_sized<PackKind::kU5Half>(a);
    case PackKind::kU8Half:
      return int8_tile_sized<PackKind::kU8Half>(a);
    case PackKind::kU5HalfMin:
      return int8_tile_sized<PackKind::kU5HalfMin>(a);
    case PackKind::kU4Super:
      return int8_tile_sized<PackKind::kU4Super>(a);
    case PackKind::kU5Super:
      return int8_tile_sized<PackKind::kU5Super>(a);
    case PackKind::kU6Super:
      return int8_tile_sized<PackKind::kU6Super>(a);
    case PackKind::kF32:
    case PackKind::kBF16:
      break;
  }
}

template <int... T>
void f32_tile_sized(const TileArgs& a, std::integer_sequence<int, T...>) {
  static constexpr Tile kTiles[] = {f32_tile_of<T + 1>...};
  kTiles[a.tokens - 1](a);
}
void f32_tile(const TileArgs& a) { f32_tile_sized(a, std::make_integer_sequence<int, kFloatTokens>()); }

template <int... T>
void bf16_tile_sized(const TileArgs& a, std::integer_sequence<int, T...>) {
  static constexpr Tile kTiles[] = {bf16_tile_of<T + 1>...};
  kTiles[a.tokens - 1](a);
}
void bf16_tile(const TileArgs& a) { bf16_tile_sized(a, std::make_integer_sequence<int, kFloatTokens>()); }

// ---- expansion of block formats ----

// Calls write(i, g, value) for the inputs i (0 .. 32) of each record and the two groups of rows. Inputs come as 4 q + 0, 1, 2, 3.
template <PackKind Kind, class Write>
void expand(const std::byte* record, std::int64_t blocks, const Write& write) {
  constexpr PackTraits w = traits(Kind);
  const __m512i byte = _mm512_set1_epi32(255), shift = _mm512_set1_epi32(w.shift);
  const std::byte* super = record;
  for (std::int64_t b = 0; b < blocks; ++b, record += w.record_bytes()) {
    if (w.super && b % kSuperBlocks == 0) {
      super = record;
      record += w.super_bytes();
    }
#pragma GCC unroll 2
    for (int g = 0; g < 2; ++g) {
      for (int i = 0; i < 8; ++i) {
        const std::byte* d = record + w.code_bytes() + (w.run == 16 && i >= 4 ? w.scale_bytes() / 2 : 0);
        const __m512 dg = scales<Kind>(super, d, g);
        const __m512i codes = load_codes<Kind>(record, i, g);
        __m512 v[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const __m512i q = _mm512_and_si512(_mm512_srli_epi32(codes, 8 * j), byte);
          v[j] = _mm512_mul_ps(dg, _mm512_cvtepi32_ps(_mm512_sub_epi32(q, shift)));
          if constexpr (w.minima) v[j] = _mm512_add_ps(v[j], scales<Kind>(super + w.super_bytes() / 2, d + w.scale_bytes(), g));
        }
        write(b * kBlock + 4 * i, g, v);
      }
    }
  }
}

template <class Write>
void expand(PackKind kind, const std::byte* records, std::int64_t blocks, const Write& write) {
  switch (kind) {
    case PackKind::kU4Half:
      return expand<PackKind::kU4Half>(records, blocks, write);
    case PackKind::kU4HalfMin:
      return expand<PackKind::kU4HalfMin>(records, blocks, write);
    case PackKind::kU5Half:
      return expand<PackKind::kU5Half>(records, blocks, write);
    case PackKind::kU8Half:
      return expand<PackKind::kU8Half>(records, blocks, write);
    case PackKind::kU5HalfMin:
      return expand<PackKind::kU5HalfMin>(records, blocks, write);
    case PackKind::kU4Super:
      return expand<PackKind::kU4Super>(records, blocks, write);
    case PackKind::kU5Super:
      return expand<PackKind::kU5Super>(records, blocks, write);
    case PackKind::kU6Super:
      return expand<PackKind::kU6Super>(records, blocks, write);
    case PackKind::kF32:
    case PackKind::kBF16:
      break;
  }
}

void expand_f32(PackKind kind, const std::byte* records, std::int64_t blocks, float* out) {
  expand(kind, records, blocks, [out](std::int64_t i, int g, const __m512(&v)[4]) {
    for (int j = 0; j < 4; ++j) _mm512_storeu_ps(out + (i + j) * kPanelRows + 16 * g, v[j]);
  });
}

void expand_bf16(PackKind kind, const std::byte* records, std::int64_t blocks, std::uint16_t* out) {
  // Both inputs of a pair side by side in each lane.
  alignas(64) std::uint16_t order[32];
  for (std::uint16_t i = 0; i < 32; ++i) order[i] = static_cast<std::uint16_t>(i / 2 + i % 2 * 16);
  const __m512i interleave = _mm512_load_si512(order);
  expand(kind, records, blocks, [out, interleave](std::int64_t i, int g, const __m512(&v)[4]) {
    for (int j = 0; j < 4; j += 2) {
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(v[j + 1], v[j]);
      _mm512_storeu_si512(out + ((i + j) / 2 * kPanelRows + 16 * g) * 2, _mm512_permutexvar_epi16(interleave, both));
    }
  });
}

}  // namespace

const LinearKernels& linear_kernels_avx512() {
  static constexpr LinearKernels kernels = {kInt8Tokens,      kFloatTokens, int8_activations, portable_f32_activations,
                                            bf16_activations, int8_tile,    f32_tile,         bf16_tile,
                                            expand_f32,       expand_bf16};
  return kernels;
}

}  // namespace baton::device::cpu
