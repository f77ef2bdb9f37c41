#include <cstring>

#include "device/cpu/limits_kernels.h"

namespace baton::device::cpu {
namespace {

constexpr int kLanes = 64;

// The compiler sees through everything but memory it is told may have changed.
template <class T>
void keep(T& v) {
  asm volatile("" : : "r"(&v) : "memory");
}

// Sums of products of 64 lanes; what the compiler makes of it is this instruction set's limit.
template <class Value, class Sum>
double products(std::int64_t rounds, Value initial) {
  constexpr int kUnroll = 16;
  Value a[kLanes], b[kLanes];
  Sum sum[kLanes] = {};
  for (int i = 0; i < kLanes; ++i) a[i] = b[i] = initial;
  for (std::int64_t r = 0; r < rounds; ++r) {
    keep(a);
    keep(b);
    for (int u = 0; u < kUnroll; ++u) {
      for (int i = 0; i < kLanes; ++i) sum[i] += static_cast<Sum>(a[i]) * static_cast<Sum>(b[i]);
    }
    keep(sum);
  }
  return 2.0 * kLanes * kUnroll;
}

double f32(std::int64_t rounds) { return products<float, float>(rounds, 0.5F); }
double int8(std::int64_t rounds) { return products<std::int8_t, std::int32_t>(rounds, 3); }

std::uint64_t read(const std::byte* data, std::size_t bytes) {
  std::uint64_t sum[8] = {};
  for (std::size_t at = 0; at < bytes; at += 64) {
    std::uint64_t v[8];
    std::memcpy(v, data + at, 64);
    for (int i = 0; i < 8; ++i) sum[i] += v[i];
  }
  return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

}  // namespace

const LimitKernels& limit_kernels_scalar() {
  static constexpr LimitKernels kernels = {f32, f32, int8, read};
  return kernels;
}

}  // namespace baton::device::cpu
