#pragma once
// Loops over a vocabulary, in GCC's portable vectors of four: the same operations in the same order on every machine.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace baton::engine::kernels {

using F4 = float __attribute__((vector_size(16)));
using I4 = std::int32_t __attribute__((vector_size(16)));
using L2 = std::int64_t __attribute__((vector_size(16)));

inline F4 load(const float* p) {
  F4 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, F4 v) { std::memcpy(p, &v, sizeof v); }
inline F4 splat(float x) { return F4{x, x, x, x}; }
inline bool any(I4 mask) {
  const L2 l = reinterpret_cast<L2>(mask);
  return (l[0] | l[1]) != 0;
}

// Calls visit(i) for every i in order with values[i] >= limit() (strict: > limit()), where limit may rise meanwhile.
template <bool kStrict, class Limit, class Visit>
void for_each_above(const float* values, std::size_t n, Limit limit, Visit visit) {
  const auto over = [&](float x) { return kStrict ? x > limit() : x >= limit(); };
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const F4 t = splat(limit());
    const F4 a = load(values + i), b = load(values + i + 4), c = load(values + i + 8), d = load(values + i + 12);
    const I4 hit = kStrict ? ((a > t) | (b > t) | (c > t) | (d > t)) : ((a >= t) | (b >= t) | (c >= t) | (d >= t));
    if (!any(hit)) continue;
    for (std::size_t j = i; j < i + 16; ++j) {
      if (over(values[j])) visit(j);
    }
  }
  for (; i < n; ++i) {
    if (over(values[i])) visit(i);
  }
}

// e^x for x <= 0, to about 1e-7 relative; 0 below -87. Range reduction by powers of two and the polynomial of Cephes' expf.
inline F4 exp_negative(F4 x) {
  const F4 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, which stands in the low bits
  const I4 tiny = x < splat(-87.0f);
  x = tiny ? splat(-87.0f) : x;
  const F4 shifted = x * splat(1.44269504088896341f) + magic;
  const F4 n = shifted - magic;
  const I4 exponent = reinterpret_cast<I4>(shifted) - reinterpret_cast<I4>(magic);
  const F4 r = (x - n * splat(0.693359375f)) + n * splat(2.12194440e-4f);
  F4 p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  const F4 e = p * (r * r) + r + splat(1.0f);
  const F4 scale = reinterpret_cast<F4>((exponent + I4{127, 127, 127, 127}) << 23);
  return tiny ? splat(0.0f) : e * scale;
}

// out[i] = e^((in[i] - largest) * factor); `in` may be `out`. NaN and -inf give 0.
inline void exp_all(const float* in, std::size_t n, float largest, float factor, float* out) {
  const auto one = [&](F4 x) {
    F4 z = (x - splat(largest)) * splat(factor);
    z = z <= splat(0.0f) ? z : splat(-std::numeric_limits<float>::infinity());
    return exp_negative(z);
  };
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) store(out + i, one(load(in + i)));
  if (i < n) {
    float tail[4] = {};
    for (std::size_t j = i; j < n; ++j) tail[j - i] = in[j];
    store(tail, one(load(tail)));
    for (std::size_t j = i; j < n; ++j) out[j] = tail[j - i];
  }
}

// The sum in one documented order: element i goes to lane i % 4, lanes are added at the end, the rest after them.
inline double sum(const float* values, std::size_t n) {
  double lane[4] = {};
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (std::size_t j = 0; j < 4; ++j) lane[j] += static_cast<double>(values[i + j]);
  }
  double total = (lane[0] + lane[1]) + (lane[2] + lane[3]);
  for (; i < n; ++i) total += static_cast<double>(values[i]);
  return total;
}

}  // namespace baton::engine::kernels
