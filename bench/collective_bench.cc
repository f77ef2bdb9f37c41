// Latency and rate of all_reduce among ranks of one process, one core each.
//
//   collective_bench [RANKS] [CORE...]
//
// Each line: bytes of the message, microseconds a call (the best of several runs: what disturbs a machine only ever slows it down), GB/s.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "base/spin.h"
#include "device/cpu/cores.h"
#include "device/cpu/group.h"
#include "device/cpu/memory.h"

namespace {

using namespace baton;
using namespace baton::device;
using namespace baton::device::cpu;

double best_us(int ranks, const std::vector<int>& cores, std::int64_t floats, int calls, int runs) {
  Group group(ranks, std::chrono::seconds(10));
  double best = 1e9;
  std::vector<std::jthread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      Team team({cores[static_cast<std::size_t>(r) % cores.size()]});
      const auto collective = group.join(Rank(r), team);
      const auto buffer = std::move(CpuBuffer::allocate(static_cast<std::size_t>(floats) * sizeof(float))).value();
      const Tensor x = Tensor::contiguous(buffer.get(), DType::kF32, {floats});
      for (int run = 0; run < runs; ++run) {
        const std::int64_t begin = now_ns();
        for (int i = 0; i < calls; ++i) collective->all_reduce(x);
        if (r == 0) best = std::min(best, static_cast<double>(now_ns() - begin) / 1e3 / calls);
      }
    });
  }
  threads.clear();
  if (group.failed()) std::printf("error: %s\n", group.status().to_string().c_str());
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const int ranks = argc > 1 ? std::max(1, std::atoi(argv[1])) : 2;
  std::vector<int> cores;
  for (int i = 2; i < argc; ++i) cores.push_back(std::atoi(argv[i]));
  if (cores.empty()) cores = ids_of(physical_cores(allowed_cpus()));
  std::printf("%d ranks\n%12s %10s %8s\n", ranks, "bytes", "us", "GB/s");
  for (const std::int64_t floats : {16, 512, 576, 4096, 36864, 294912}) {
    const int calls = static_cast<int>(std::max<std::int64_t>(20, 2'000'000 / (floats + 200)));
    const double us = best_us(ranks, cores, floats, calls, 20);
    std::printf("%12ld %10.2f %8.2f\n", static_cast<long>(floats * 4), us, static_cast<double>(floats) * 4e-3 / us);
  }
}
