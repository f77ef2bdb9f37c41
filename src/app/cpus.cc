#include "app/cpus.h"

#include <sched.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <string>

namespace baton::app {
namespace {

// The lowest logical CPU of the physical core that `cpu` belongs to.
int first_sibling(int cpu) {
  std::ifstream in(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
  int first = cpu;
  in >> first;
  return in ? first : cpu;
}

}  // namespace

std::vector<int> usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return {0};
  std::vector<int> cores;
  std::set<int> seen;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set) && seen.insert(first_sibling(cpu)).second) cores.push_back(cpu);
  return cores;
}

Result<std::vector<std::vector<int>>> share_cores(std::vector<int> cores, int engines, int threads) {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  for (const int core : cores)
    if (core < 0 || core >= CPU_SETSIZE || !CPU_ISSET(core, &set))
      return Status(Code::kInvalidArgument,
                    fmt::format("--cores: core {} is not one that this process may use ({})", core, fmt::join(usable_cores(), ",")));
  if (cores.empty()) cores = usable_cores();
  std::vector<std::vector<int>> shares(static_cast<std::size_t>(engines));
  const int count = static_cast<int>(cores.size());
  for (int e = 0; e < engines; ++e) {
    auto& share = shares[static_cast<std::size_t>(e)];
    if (count < engines) {
      share = {cores[static_cast<std::size_t>(e % count)]};
      continue;
    }
    for (int c = e * count / engines; c < (e + 1) * count / engines; ++c) share.push_back(cores[static_cast<std::size_t>(c)]);
    if (threads > 0 && static_cast<int>(share.size()) > threads) share.resize(static_cast<std::size_t>(threads));
  }
  return shares;
}

}  // namespace baton::app
