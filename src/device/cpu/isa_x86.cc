#include <cpuid.h>

#include "device/cpu/isa.h"

namespace baton::device::cpu {
namespace {

// XCR0: which register state the operating system saves. AVX state is useless without it, whatever cpuid says of the processor.
unsigned long long enabled_state() {
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<unsigned long long>(high) << 32) | low;
}

constexpr unsigned long long kYmmState = 0x6;   // SSE, AVX
constexpr unsigned long long kZmmState = 0xe6;  // and opmask, both halves of ZMM

bool bit(unsigned word, int n) { return (word >> n) & 1u; }

Isa detect() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::kScalar;
  const bool fma = bit(c, 12), osxsave = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
  if (!osxsave || !avx || !fma || !f16c) return Isa::kScalar;
  const unsigned long long state = enabled_state();
  if ((state & kYmmState) != kYmmState) return Isa::kScalar;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !bit(b, 5)) return Isa::kScalar;
  const bool f = bit(b, 16), dq = bit(b, 17), bw = bit(b, 30), vl = bit(b, 31), vnni = bit(c, 11);
  const unsigned subleaves = a;
  if (!f || !dq || !bw || !vl || !vnni || (state & kZmmState) != kZmmState) return Isa::kAvx2;
  if (subleaves < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !bit(a, 5)) return Isa::kAvx2;
  return Isa::kAvx512;
}

}  // namespace

Isa best_isa() {
  static const Isa best = detect();
  return best;
}

}  // namespace baton::device::cpu
