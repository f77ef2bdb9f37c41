#pragma once
// 2^x for vectors: to be included after a simd_*.h. Relative error below 2^-22 where the result is normal; exactly 1 at 0; 0 below -126.5
// (so a score of minus infinity has no weight), infinity above 127.5, NaN for NaN.

namespace baton::device::cpu {
namespace {

inline Simd::V exp2_of(Simd::V x) {
  using S = Simd;
  x = S::max(S::set1(-127.0f), S::min(S::set1(128.0f), x));  // in this order of operands a NaN passes through
  const S::V n = S::round(x);
  const S::V f = S::sub(x, n);  // exact, in [-1/2, 1/2]
  // Minimax for the relative error (1.9e-9 before rounding) on that interval.
  S::V p = S::set1(0.00015345812f);
  p = S::fma(p, f, S::set1(0.00133999312f));
  p = S::fma(p, f, S::set1(0.00961848896f));
  p = S::fma(p, f, S::set1(0.0555032878f));
  p = S::fma(p, f, S::set1(0.240226469f));
  p = S::fma(p, f, S::set1(0.693147206f));
  p = S::fma(p, f, S::set1(1.0f));
  return S::mul(p, S::pow2(n));
}

}  // namespace
}  // namespace baton::device::cpu
