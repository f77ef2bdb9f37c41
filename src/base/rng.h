#pragma once
// Counter-based random numbers (Philox4x32-10; Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11).
// The value is a function of (key, counter) alone, so the token at (seed, choice, position) draws the same number on any worker, in any
// batch, before and after a failover.

#include <array>
#include <cstdint>

namespace baton {

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

// A stream of numbers for one purpose: `seed` is the key, `stream` the high half of the counter.
class Rng {
 public:
  explicit Rng(std::uint64_t seed, std::uint64_t stream = 0) : seed_(seed), stream_(stream) {}
  std::uint64_t next_u64();
  // Uniform in [0, bound); bound > 0. Without modulo bias.
  std::uint64_t below(std::uint64_t bound);
  // Uniform in [0, 1), 53 bits.
  double uniform();

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::uint64_t counter_ = 0;
};

// A seed from the operating system, for requests that name none.
std::uint64_t entropy_u64();

}  // namespace baton
