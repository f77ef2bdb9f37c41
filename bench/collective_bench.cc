// Latency and rate of all_reduce among ranks, one core each: of one process, or of several "hosts" that are threads here and speak over
// loopback.
//
//   collective_bench [[NODESx]RANKS] [CORE...]
//
// Each line: bytes of the message, microseconds a call (the best of several runs: what disturbs a machine only ever slows it down), GB/s.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "base/spin.h"
#include "device/cpu/cores.h"
#include "device/cpu/group.h"
#include "device/cpu/memory.h"
#include "device/gloo/gloo_links.h"
#include "device/gloo/meeting.h"
#include "device/gloo/tcp.h"

namespace {

using namespace baton;
using namespace baton::device;
using namespace baton::device::cpu;

constexpr Duration kDeadline = std::chrono::seconds(10);

template <class T>
T must(Result<T> result) {
  if (!result.ok()) std::printf("error: %s\n", result.status().to_string().c_str()), std::exit(1);
  return std::move(result).value();
}

// The groups of all hosts, connected.
std::vector<std::unique_ptr<Group>> make_groups(int nodes, int ranks) {
  std::vector<std::unique_ptr<Group>> groups(static_cast<std::size_t>(nodes));
  if (nodes == 1) {
    groups[0] = std::make_unique<Group>(ranks, kDeadline);
    return groups;
  }
  const auto listener = must(gloo::Socket::listen("127.0.0.1", 0));
  std::vector<std::jthread> threads;
  for (int node = 0; node < nodes; ++node) {
    threads.emplace_back([&, node] {
      gloo::MeetingOptions options;
      options.nodes = nodes, options.node = node, options.host = "127.0.0.1", options.port = listener.port();
      if (node == 0) options.listen_fd = listener.fd();
      const auto meeting = must(gloo::Meeting::hold(options));
      auto links = std::make_shared<NodeGroup>(must(gloo::connect(*meeting, {.deadline = kDeadline})));
      groups[static_cast<std::size_t>(node)] = std::make_unique<Group>(ranks, 2 * kDeadline, std::move(links));
    });
  }
  return threads.clear(), std::move(groups);
}

double best_us(int nodes, int ranks, const std::vector<int>& cores, std::int64_t floats, int calls, int runs) {
  const auto groups = make_groups(nodes, ranks);
  double best = 1e9;
  std::vector<std::jthread> threads;
  for (int r = 0; r < nodes * ranks; ++r) {
    threads.emplace_back([&, r] {
      Team team({cores[static_cast<std::size_t>(r) % cores.size()]});
      const auto collective = groups[static_cast<std::size_t>(r / ranks)]->join(r % ranks, team);
      const auto buffer = must(CpuBuffer::allocate(static_cast<std::size_t>(floats) * sizeof(float)));
      const Tensor x = Tensor::contiguous(buffer.get(), DType::kF32, {floats});
      for (int run = 0; run < runs; ++run) {
        const std::int64_t begin = now_ns();
        for (int i = 0; i < calls; ++i) collective->all_reduce(x);
        if (r == 0) best = std::min(best, static_cast<double>(now_ns() - begin) / 1e3 / calls);
      }
    });
  }
  threads.clear();
  for (const auto& group : groups)
    if (group->failed()) std::printf("error: %s\n", group->status().to_string().c_str());
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const char* x = argc > 1 ? std::strchr(argv[1], 'x') : nullptr;
  const int nodes = x ? std::max(1, std::atoi(argv[1])) : 1;
  const int ranks = argc > 1 ? std::max(1, std::atoi(x ? x + 1 : argv[1])) : 2;
  std::vector<int> cores;
  for (int i = 2; i < argc; ++i) cores.push_back(std::atoi(argv[i]));
  if (cores.empty()) cores = ids_of(physical_cores(allowed_cpus()));
  std::printf("%d nodes of %d ranks\n%12s %10s %8s\n", nodes, ranks, "bytes", "us", "GB/s");
  const std::int64_t most = nodes > 1 ? 100'000 : 2'000'000;
  for (const std::int64_t floats : {16, 512, 576, 4096, 36864, 294912}) {
    const int calls = static_cast<int>(std::max<std::int64_t>(20, most / (floats + 200)));
    const double us = best_us(nodes, ranks, cores, floats, calls, 20);
    std::printf("%12ld %10.2f %8.2f\n", static_cast<long>(floats * 4), us, static_cast<double>(floats) * 4e-3 / us);
  }
}
