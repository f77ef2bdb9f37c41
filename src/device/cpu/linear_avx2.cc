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

template <bool Half>
[[gnu::always_inline]] inline __m256 scales(const std::byte* p, int group) {
  if constexpr (Half) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + group));
  } else {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(p) + 8 * group);
  }
}

[[gnu::always_inline]] inline __m256i codes(const std::byte* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// The codes of four inputs (quad i) of group e with their fifth bits, where the kind has them.
template <PackKind Kind>
[[gnu::always_inline]] inline __m256i fifth(const std::byte* record, int i, int e, __m256i code) {
  if constexpr (traits(Kind).bits == 5) {
    std::int32_t bits;
    std::memcpy(&bits, record + kFifthBits + 16 * i + 4 * e, 4);
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i each = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ULL));
    const __m256i own = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread), each);
    return _mm256_or_si256(code, _mm256_and_si256(_mm256_cmpeq_epi8(own, each), _mm256_set1_epi8(16)));
  } else {
    return code;
  }
}

// Sums of code * activation over one run of group e (of 8 rows), shift applied, for T tokens.
template <PackKind Kind, int T>
[[gnu::always_inline]] inline void dots(const std::byte* record, int e, int h, const std::byte* x, __m256i (&dot)[T]) {
  constexpr PackTraits w = traits(Kind);
  const __m256i ones = _mm256_set1_epi16(1), nibble = _mm256_set1_epi8(15);
  const auto* q = reinterpret_cast<const std::int32_t*>(x);
  if constexpr (w.nibbles()) {
    // Of 4 bits a pair is at most 2 * 15 * 127 = 3810, of 5 bits 2 * 31 * 127 = 7874: four of them fit 16 bits.
    __m256i first[T], last[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) first[t] = last[t] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i both = codes(record + 128 * i + 32 * e);
      const __m256i low = fifth<Kind>(record, i, e, _mm256_and_si256(both, nibble));
      const __m256i high = fifth<Kind>(record, i + 4, e, _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble));
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        first[t] = _mm256_add_epi16(first[t], _mm256_maddubs_epi16(low, _mm256_set1_epi32(q[i * T + t])));
        // Eight pairs of 4 bits fit too: 30480.
        __m256i& sum = w.bits == 4 ? first[t] : last[t];
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(high, _mm256_set1_epi32(q[(i + 4) * T + t])));
      }
    }
    const auto* c = q + (kBlock / 4 + 2) * T;
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      dot[t] = _mm256_madd_epi16(first[t], ones);
      if constexpr (w.bits == 5) dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(last[t], ones));
      if constexpr (!w.minima) dot[t] = _mm256_add_epi32(dot[t], _mm256_set1_epi32(c[t]));
    }
  } else {
    constexpr int kQuads = w.run / 4;
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) dot[t] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int i = h * kQuads; i < (h + 1) * kQuads; ++i) {
      const __m256i code = codes(record + 128 * i + 32 * e);
      // |code - 128| <= 128 times the activation with its sign: at most 2 * 128 * 127 = 32512. The shift is then applied already.
      const __m256i value = _mm256_xor_si256(code, _mm256_set1_epi8(static_cast<char>(0x80))), size = _mm256_abs_epi8(value);
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
  static_assert(w.nibbles() || (!w.minima && w.shift == 128));  // dots() of bytes
  constexpr int kRuns = kBlock / w.run, E = T == 1 ? 4 : T == 2 ? 2 : 1;
  for (int first = 0; first < 4; first += E) {
    __m256 acc[T][E];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int e = 0; e < E; ++e) acc[t][e] = _mm256_setzero_ps();
    }
    const std::byte *record = a.weights, *x = a.x;
    for (std::int64_t b = a.k / kBlock; b > 0; --b, record += w.record_bytes(), x += kInt8BlockBytes * T) {
      const auto* s = reinterpret_cast<const float*>(x + kBlock * T);
      if constexpr (T == 1) {
        for (std::size_t i = 0; i < w.record_bytes(); i += 64) _mm_prefetch(record + kPrefetchBytes + i, _MM_HINT_T0);
      }
#pragma GCC unroll 2
      for (int h = 0; h < kRuns; ++h) {
        const std::byte* d = record + w.code_bytes() + static_cast<std::size_t>(h) * kPanelRows * (w.half ? 2 : 4);
#pragma GCC unroll 4
        for (int e = 0; e < E; ++e) {
          __m256i dot[T];
          dots<Kind, T>(record, first + e, h, x, dot);
          const __m256 de = scales<w.half>(d, first + e);
#pragma GCC unroll 4
          for (int t = 0; t < T; ++t) {
            acc[t][e] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t]), _mm256_mul_ps(de, _mm256_set1_ps(s[t])), acc[t][e]);
          }
          if constexpr (w.minima) {
            const __m256 me = scales<w.half>(d + w.scale_bytes(), first + e);
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
    case PackKind::kU4Min:
      return int8_tile_sized<PackKind::kU4Min>(a);
    case PackKind::kU5Min:
      return int8_tile_sized<PackKind::kU5Min>(a);
    case PackKind::kU8Run16:
      return int8_tile_sized<PackKind::kU8Run16>(a);
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
