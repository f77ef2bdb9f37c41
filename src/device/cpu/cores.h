#pragma once
// Which hardware threads this process may use, how they hang together (as hwloc sees it), and how they are dealt out: a device on CPUs is a
// set of cores and the memory of their NUMA node.

#include <sched.h>

#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace baton::device::cpu {

// A hardware thread ("logical CPU").
struct Cpu {
  int id = 0;  // as the system numbers it
  // What it is part of; those of one core share its vector units and would only take turns. Numbered in the machine.
  int core = 0, l3 = 0, node = 0, socket = 0;
  bool operator==(const Cpu&) const = default;
};

// Those that the calling thread may run on, of its affinity mask and its cgroup's cpuset; neighbours stand together.
std::vector<Cpu> allowed_cpus();
// Those of a machine that hwloc imagines, such as "package:2 l3:2 core:4 pu:2".
Result<std::vector<Cpu>> imagined_cpus(const std::string& description);

// The first thread of each core, in the given order.
std::vector<Cpu> physical_cores(std::span<const Cpu> cpus);
std::vector<int> ids_of(std::span<const Cpu> cpus);

// `cpus` dealt out to `devices` >= 1, as evenly as they can be while each device stays within one NUMA node, and within one L3 cache where
// that costs no core at all; they differ by one core at most, and what is more stays idle. Devices of one node follow each other. With
// fewer CPUs than devices each device has one, in turn. Pure.
std::vector<std::vector<int>> plan_devices(std::span<const Cpu> cpus, int devices);

// The cores of a team: `cores` themselves if given (`threads` then must be 0 or their number), else `threads` of the allowed ones: those of
// plan_devices(.., 1), other cores, then further threads of cores; threads 0: those of plan_devices(.., 1). kInvalidArgument says which
// there are.
Result<std::vector<int>> choose_cores(const std::vector<int>& cores, int threads);

// The NUMA node that has all of these CPUs; -1: there is none, or the machine has no other.
int home_node(const std::vector<int>& cores);
// Future pages of this memory come from `node` (-1: from anywhere). A wish: where the system refuses it, as containers do, or the node is
// full, they come from where they are touched first.
void place_on_node(void* data, std::size_t bytes, int node);

// While it lives, the calling thread, and threads that it starts, run on `cores`, so that memory that they touch first is near them. Empty:
// nothing changes.
class OnCores {
 public:
  explicit OnCores(const std::vector<int>& cores);
  ~OnCores();
  OnCores(const OnCores&) = delete;
  OnCores& operator=(const OnCores&) = delete;

 private:
  cpu_set_t before_;
  bool moved_ = false;
};

std::string cpu_name();  // "AMD EPYC 9654"

}  // namespace baton::device::cpu
