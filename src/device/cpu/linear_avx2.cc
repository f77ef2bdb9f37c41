// Linear kernels for AVX2, FMA and F16C. 8 output rows lie in the lanes of a register; a panel's four such groups are taken E at a time, so
// that E * T accumulators fit the sixteen registers. Products of bytes go through vpmaddubsw, whose 16-bit sums saturate: the comments say
// why not here.

#include <immintrin.h>

#include <utility>

#include "device/cpu/linear_portable.h"

namespace baton::device::cpu {
namespace {

constexpr int kInt8Tokens = 4, kFloatTokens = 6;
constexpr int kPrefetchBytes = 2048;

__m256i row_mask(int rows) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(rows), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }

template <int T, int E>
[[gnu::always_inline]] inline void store(const TileArgs& a, int first, __m256 (&acc)[T][E]) {
#pragma GCC unroll 4
  for (int e = 0; e < E; ++e) {
    const int row = 8 * (first + e);
    const __m256i mask = row_mask(a.rows - row);
    const __m256 bias = a.bias ? _mm256_loadu_ps(a.bias + row) : _mm256_setzero_ps();
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
      _mm256_maskstore_ps(a.out + t * a.out_stride + row, mask, a.bias ? _mm256_add_ps(acc[t][e], bias) : acc[t][e]);
    }
  }
}

template <int T, int E>
[[gnu::always_inline]] inline void load_sums(const TileArgs& a, int first, __m256 (&acc)[T][E]) {
#pragma GCC unroll 4
  for (int e = 0; e < E; ++e) {
    const int row = 8 * (first + e);
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
      acc[t][e] = a.resume ? _mm256_maskload_ps(a.out + t * a.out_stride + row, row_mask(a.rows - row)) : _mm256_setzero_ps();
    }
  }
}

// ---- int8 ----

[[gnu::always_inline]] inline __m256 halves(const std::byte* p, int group) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + group));
}

// Scales (or minima) of a group of 8 rows. `own`: those of the record and run; `super`: the other factors of the K kinds.
template <PackKind Kind>
[[gnu::always_inline]] inline __m256 scales(const std::byte* super, const std::byte* own, int group) {
  if constexpr (!traits(Kind).super) {
    return halves(own, group);
  } else {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(own + 8 * group));
    const __m256i factor = traits(Kind).minima ? _mm256_cvtepu8_epi32(bytes) : _mm256_cvtepi8_epi32(bytes);
    return _mm256_mul_ps(halves(super, group), _mm256_cvtepi32_ps(factor));
  }
}

[[gnu::always_inline]] inline __m256i codes(const std::byte* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// Adds bit 4 + `plane` to the codes of quad i of group e.
[[gnu::always_inline]] inline __m256i upper_bit(const std::byte* record, int plane, int i, int e, __m256i code) {
  std::int32_t bits;
  std::memcpy(&bits, record + kPlanes + static_cast<std::size_t>(plane) * kPlaneBytes + 16 * i + 4 * e, 4);
  const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i each = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ULL));
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread), each), each);
  return _mm256_or_si256(code, _mm256_and_si256(set, _mm256_set1_epi8(static_cast<char>(16 << plane))));
}

// Quad i of group e of a record.
template <PackKind Kind>
[[gnu::always_inline]] inline __m256i load_codes(const std::byte* record, int i, int e) {
  if constexpr (!traits(Kind).nibbles()) {
    return codes(record + 128 * i + 32 * e);
  } else {
    const __m256i both = codes(record + 128 * (i % 4) + 32 * e);
    __m256i code = _mm256_and_si256(i < 4 ? both : _mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
    if constexpr (traits(Kind).bits >= 5) code = upper_bit(record, 0, i, e, code);
    if constexpr (traits(Kind).bits == 6) code = upper_bit(record, 1, i, e, code);
    return code;
  }
}

// Sums of code * activation over run h of group e (of 8 rows), shift applied, for T tokens.
template <PackKind Kind, int T>
[[gnu::always_inline]] inline void dots(const std::byte* record, int e, int h, const std::byte* x, __m256i (&dot)[T]) {
  constexpr PackTraits w = traits(Kind);
  constexpr int kQuads = w.run / 4;
  const __m256i ones = _mm256_set1_epi16(1);
  const auto* q = reinterpret_cast<const std::int32_t*>(x);
  const std::int32_t* c = q + (kBlock / 4 + 2 + h) * T;
  // Pairs of products are at most 2 * 15 * 127 = 3810 for 4 bits, 7874 for 5 and 16002 for 6: so many of them fit 16 bits.
  constexpr int kSums = w.bits == 4 ? 8 : w.bits == 5 ? 4 : w.bits == 6 ? 2 : 1;
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) dot[t] = w.nibbles() && !w.minima ? _mm256_set1_epi32(c[t]) : _mm256_setzero_si256();
  if constexpr (w.nibbles()) {
#pragma GCC unroll 8
    for (int first = h * kQuads; first < (h + 1) * kQuads; first += kSums) {
      __m256i sum[T];
#pragma GCC unroll 8
      for (int n = 0; n < kSums; ++n) {
        const int i = first + n;
        const __m256i code = load_codes<Kind>(record, i, e);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
          const __m256i pairs = _mm256_maddubs_epi16(code, _mm256_set1_epi32(q[i * T + t]));
          sum[t] = n == 0 ? pairs : _mm256_add_epi16(sum[t], pairs);
        }
      }
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(sum[t], ones));
    }
  } else {
    static_assert(!w.minima && w.shift == 128);
#pragma GCC unroll 8
    for (int i = h * kQuads; i < (h + 1) * kQuads; ++i) {
      // |code - 128| <= 128 times the activation with its sign: at most 2 * 128 * 127 = 32512. The shift is then applied already.
      const __m256i value = _mm256_xor_si256(load_codes<Kind>(record, i, e), _mm256_set1_epi8(static_cast<char>(0x80)));
      const __m256i size = _mm256_abs_epi8(value);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(_mm256_set1_epi32(q[i * T + t]), value));
        dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
}

template <PackKind Kind, int T>
void int8_tile_of(const TileArgs& a) {
  constexpr PackTraits w = traits(Kind);
  constexpr int kRuns = kBlock / w.run, E = T == 1 ? 4 : T == 2 ? 2 : 1;
  for (int first = 0; first < 4; first += E) {
    __m256 acc[T][E];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int e = 0; e < E; ++e) acc[t][e] = _mm256_setzero_ps();
    }
    const std::byte *record = a.weights, *super = record, *x = a.x;
    for (std::int64_t b = 0; b < a.k / kBlock; ++b, record += w.record_bytes(), x += kInt8BlockBytes * T) {
      const auto* s = reinterpret_cast<const float*>(x + kBlock * T);
      if (w.super && b % kSuperBlocks == 0) {
        super = record;
        record += w.super_bytes();
      }
      if constexpr (T == 1) {
        for (std::size_t i = 0; i < w.record_bytes(); i += 64) _mm_prefetch(record + kPrefetchBytes + i, _MM_HINT_T0);
      }
#pragma GCC unroll 2
      for (int h = 0; h < kRuns; ++h) {
        const std::byte* d = record + w.code_bytes() + w.scale_bytes() / kRuns * static_cast<std::size_t>(h);
#pragma GCC unroll 4
        for (int e = 0; e < E; ++e) {
          __m256i dot[T];
          dots<Kind, T>(record, first + e, h, x, dot);
          const __m256 de = scales<Kind>(super, d, first + e);
#pragma GCC unroll 4
          for (int t = 0; t < T; ++t) {
            acc[t][e] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t]), _mm256_mul_ps(de, _mm256_set1_ps(s[t])), acc[t][e]);
          }
          if constexpr (w.minima) {
            const __m256 me = scales<Kind>(super + w.super_bytes() / 2, d + w.scale_bytes(), first + e);
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) acc[t][e] = _mm256_fmadd_ps(me, _mm256_set1_ps(s[T + t]), acc[t][e]);
          }
        }
      }
    }
    store<T, E>(a, first, acc);
  }
}

// ---- floats ----

template <int T>
void f32_tile_of(const TileArgs& a) {
  constexpr int E = T <= 3 ? 4 : 2;
  for (int first = 0; first < 4; first += E) {
    __m256 acc[T][E];
    load_sums<T, E>(a, first, acc);
    const auto *w = reinterpret_cast<const float*>(a.weights) + 8 * first, *x = reinterpret_cast<const float*>(a.x);
    for (std::int64_t i = 0; i < a.k; ++i, w += kPanelRows, x += T) {
      if constexpr (T == 1) {
        _mm_prefetch(reinterpret_cast<const char*>(w) + kPrefetchBytes, _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(w) + kPrefetchBytes + 64, _MM_HINT_T0);
      }
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) {
        const __m256 v = _mm256_set1_ps(x[t]);
#pragma GCC unroll 4
        for (int e = 0; e < E; ++e) acc[t][e] = _mm256_fmadd_ps(_mm256_loadu_ps(w + 8 * e), v, acc[t][e]);
      }
    }
    store<T, E>(a, first, acc);
  }
}

// A pair of inputs is two fused multiply-adds in f32, the first input's first.
template <int T>
void bf16_tile_of(const TileArgs& a) {
  constexpr int E = T <= 2 ? 4 : T <= 4 ? 2 : 1;
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  for (int first = 0; first < 4; first += E) {
    __m256 acc[T][E];
    load_sums<T, E>(a, first, acc);
    const std::byte* w = a.weights + 32 * first;
    const auto* x = reinterpret_cast<const std::int32_t*>(a.x);
    for (std::int64_t i = (a.k + 1) / 2; i > 0; --i, w += 128, x += T) {
      if constexpr (T == 1) {
        _mm_prefetch(w + kPrefetchBytes, _MM_HINT_T0);
        _mm_prefetch(w + kPrefetchBytes + 64, _MM_HINT_T0);
      }
      __m256 w0[E], w1[E];
#pragma GCC unroll 4
      for (int e = 0; e < E; ++e) {
        const __m256i pair = codes(w + 32 * e);
        w0[e] = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
        w1[e] = _mm256_castsi256_ps(_mm256_and_si256(pair, upper));
      }
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) {
        const __m256i pair = _mm256_set1_epi32(x[t]);
        const __m256 x0 = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16)), x1 = _mm256_castsi256_ps(_mm256_and_si256(pair, upper));
#pragma GCC unroll 4
        for (int e = 0; e < E; ++e) acc[t][e] = _mm256_fmadd_ps(w1[e], x1, _mm256_fmadd_ps(w0[e], x0, acc[t][e]));
      }
    }
    store<T, E>(a, first, acc);
  }
}

// ---- dispatch on the number of tokens ----

using Tile = void (*)(const TileArgs&);

template <PackKind Kind>
void int8_tile_sized(const TileArgs& a) {
  static constexpr Tile kTiles[kInt8Tokens] = {int8_tile_of<Kind, 1>, int8_tile_of<Kind, 2>, int8_tile_of<Kind, 3>, int8_tile_of<Kind, 4>};
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

}  // namespace

const LinearKernels& linear_kernels_avx2() {
  static constexpr LinearKernels kernels = {
      kInt8Tokens, kFloatTokens, portable_int8_activations, portable_f32_activations, portable_bf16_activations, int8_tile,
      f32_tile,    bf16_tile,    portable_expand_f32,       portable_expand_bf16};
  return kernels;
}

}  // namespace baton::device::cpu
