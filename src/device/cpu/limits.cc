// What the machine can do at most: the yardstick beside every speed figure. Each takes about 0.2 s and reports its best slice, as what
// disturbs a machine only ever slows it down.

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/status.h"
#include "device/cpu/limits_kernels.h"
#include "device/cpu/linear.h"

namespace baton::device::cpu {
namespace {

constexpr double kSeconds = 0.2;
constexpr double kSlice = 0.01;
// Well beyond the caches of a core; for large teams each member still has 32 MB of its own.
constexpr std::size_t kReadBytes = std::size_t{256} << 20, kReadBytesPerMember = std::size_t{32} << 20;

double now() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

const LimitKernels& kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return limit_kernels_avx512();
  if (isa == Isa::kAvx2) return limit_kernels_avx2();
#endif
  BATON_CHECK_MSG(isa == Isa::kScalar, "no limit kernels for this instruction set");
  return limit_kernels_scalar();
}

// Operations per second of all members at once.
double measure_ops(Team& team, double (*loop)(std::int64_t)) {
  std::vector<double> best(static_cast<std::size_t>(team.size()), 0.0);
  team.run([&](int member) {
    std::int64_t rounds = 64;
    for (const double start = now(); now() - start < kSeconds;) {
      const double begin = now();
      const double ops = loop(rounds) * static_cast<double>(rounds);
      const double took = std::max(now() - begin, 1e-9);
      best[static_cast<std::size_t>(member)] = std::max(best[static_cast<std::size_t>(member)], took > kSlice / 4 ? ops / took : 0.0);
      if (took < kSlice / 2) rounds *= 2;
    }
  });
  double sum = 0;
  for (const double b : best) sum += b;
  return sum;
}

}  // namespace

double measure_f32_flops(Isa isa, Team& team) { return measure_ops(team, kernels(isa).f32); }
double measure_bf16_flops(Isa isa, Team& team) { return measure_ops(team, kernels(isa).bf16); }
double measure_int8_ops(Isa isa, Team& team) { return measure_ops(team, kernels(isa).int8); }

double measure_read_bandwidth(Team& team) {
  const auto members = static_cast<std::size_t>(team.size());
  const std::size_t each = std::max(kReadBytes / members, kReadBytesPerMember) / 1024 * 1024, total = each * members;
  void* map = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return 0;
  madvise(map, total, MADV_HUGEPAGE);
  auto* const data = static_cast<std::byte*>(map);
  const LimitKernels& k = kernels(best_isa());
  std::atomic<std::uint64_t> sink{0};
  team.run([&](int member) { std::memset(data + static_cast<std::size_t>(member) * each, 1, each); });
  double best = 0;
  const std::size_t slice = each / 16 / 1024 * 1024;
  for (const double start = now(); now() - start < kSeconds;) {
    for (std::size_t at = 0; at + slice <= each; at += slice) {
      const double begin = now();
      team.run([&](int member) { sink += k.read(data + static_cast<std::size_t>(member) * each + at, slice); });
      best = std::max(best, static_cast<double>(slice * members) / std::max(now() - begin, 1e-9));
    }
  }
  munmap(map, total);
  return best;
}

}  // namespace baton::device::cpu
