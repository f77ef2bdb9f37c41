#include "device/cpu/cores.h"

#include <hwloc.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <map>
#include <set>

namespace baton::device::cpu {
namespace {

// A loaded topology: of this machine, or an imagined one. Read only, so that any thread may use it.
class Topology {
 public:
  explicit Topology(const char* imagined = nullptr) {
    if (hwloc_topology_init(&topology_) != 0) return;
    // Nothing is to be bound to CPUs in turn only to ask them; the system's tables say as much.
    const bool sound = imagined == nullptr ? hwloc_topology_set_flags(topology_, HWLOC_TOPOLOGY_FLAG_DONT_CHANGE_BINDING) == 0
                                           : hwloc_topology_set_synthetic(topology_, imagined) == 0;
    loaded_ = sound && hwloc_topology_load(topology_) == 0;
  }
  ~Topology() {
    if (topology_ != nullptr) hwloc_topology_destroy(topology_);
  }
  Topology(const Topology&) = delete;
  Topology& operator=(const Topology&) = delete;

  static const Topology& of_this_machine() {
    static const Topology topology;
    return topology;
  }
  bool loaded() const { return loaded_; }
  hwloc_topology_t get() const { return topology_; }

  std::vector<Cpu> cpus() const {
    std::vector<Cpu> out;
    if (!loaded_) return out;
    for (hwloc_obj_t pu = nullptr; (pu = hwloc_get_next_obj_by_type(topology_, HWLOC_OBJ_PU, pu)) != nullptr;) {
      Cpu cpu;
      cpu.id = static_cast<int>(pu->os_index);
      // A system that does not tell of cores has one for each thread.
      const hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(topology_, HWLOC_OBJ_CORE, pu);
      cpu.core = core != nullptr ? static_cast<int>(core->logical_index) : static_cast<int>(pu->logical_index);
      cpu.l3 = index_of(HWLOC_OBJ_L3CACHE, pu);
      cpu.socket = index_of(HWLOC_OBJ_PACKAGE, pu);
      cpu.node = std::max(0, hwloc_bitmap_first(pu->nodeset));  // of several the first: the others are of another kind of memory
      out.push_back(cpu);
    }
    return out;
  }

 private:
  int index_of(hwloc_obj_type_t type, hwloc_obj_t pu) const {
    const hwloc_obj_t above = hwloc_get_ancestor_obj_by_type(topology_, type, pu);
    return above != nullptr ? static_cast<int>(above->logical_index) : 0;
  }

  hwloc_topology_t topology_ = nullptr;
  bool loaded_ = false;
};

std::string list_of(const std::vector<int>& cores) {
  std::string text;
  for (int core : cores) text += (text.empty() ? "" : ",") + std::to_string(core);
  return text;
}

bool contains(const std::vector<int>& list, int value) { return std::find(list.begin(), list.end(), value) != list.end(); }

// What no device may leave: the CPUs of each node, or of each L3 cache in each node.
using Bounds = std::vector<std::vector<int>>;

Bounds bounds_by_node(std::span<const Cpu> cpus, bool by_l3) {
  Bounds out;
  std::map<std::pair<int, int>, std::size_t> index;
  for (const Cpu& cpu : cpus) {
    const auto [at, added] = index.emplace(std::pair(cpu.node, by_l3 ? cpu.l3 : 0), out.size());
    if (added) out.emplace_back();
    out[at->second].push_back(cpu.id);
  }
  return out;
}

// How many devices lie in each of them: the next one always where most CPUs are left for each, which makes the smallest device largest.
std::vector<std::size_t> devices_in(const Bounds& bounds, int devices) {
  std::vector<std::size_t> counts(bounds.size(), 0);
  for (int d = 0; d < devices; ++d) {
    std::size_t best = 0;
    for (std::size_t b = 1; b < bounds.size(); ++b)
      if (bounds[b].size() * (counts[best] + 1) > bounds[best].size() * (counts[b] + 1)) best = b;
    ++counts[best];
  }
  return counts;
}

std::size_t smallest(const Bounds& bounds, const std::vector<std::size_t>& counts) {
  std::size_t least = SIZE_MAX;
  for (std::size_t b = 0; b < bounds.size(); ++b)
    if (counts[b] > 0) least = std::min(least, bounds[b].size() / counts[b]);
  return least;
}

// Of one of the bounds: devices are no larger than the smallest of all and one CPU.
std::size_t usable_in(const std::vector<int>& bound, std::size_t devices, std::size_t smallest) {
  return std::min(bound.size(), devices * (smallest + 1));
}

std::size_t used(const Bounds& bounds, const std::vector<std::size_t>& counts) {
  std::size_t sum = 0;
  for (std::size_t b = 0; b < bounds.size(); ++b) sum += usable_in(bounds[b], counts[b], smallest(bounds, counts));
  return sum;
}

}  // namespace

std::vector<Cpu> allowed_cpus() {
  std::vector<Cpu> out;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return out;
  for (const Cpu& cpu : Topology::of_this_machine().cpus()) {
    if (cpu.id >= CPU_SETSIZE || !CPU_ISSET(static_cast<unsigned>(cpu.id), &set)) continue;
    out.push_back(cpu);
    CPU_CLR(static_cast<unsigned>(cpu.id), &set);
  }
  // What may be used but is not described: nothing is known of it.
  for (int id = 0; id < CPU_SETSIZE; ++id)
    if (CPU_ISSET(static_cast<unsigned>(id), &set)) out.push_back({.id = id, .core = CPU_SETSIZE + id});
  return out;
}

Result<std::vector<Cpu>> imagined_cpus(const std::string& description) {
  const Topology topology(description.c_str());
  if (!topology.loaded()) return Status(Code::kInvalidArgument, "hwloc does not know what the machine '" + description + "' is");
  return topology.cpus();
}

std::vector<Cpu> physical_cores(std::span<const Cpu> cpus) {
  std::vector<Cpu> out;
  std::set<int> seen;
  for (const Cpu& cpu : cpus)
    if (seen.insert(cpu.core).second) out.push_back(cpu);
  return out;
}

std::vector<int> ids_of(std::span<const Cpu> cpus) {
  std::vector<int> out;
  for (const Cpu& cpu : cpus) out.push_back(cpu.id);
  return out;
}

std::vector<std::vector<int>> plan_devices(std::span<const Cpu> cpus, int devices) {
  BATON_CHECK(devices >= 1 && !cpus.empty());
  std::vector<std::vector<int>> out;
  if (std::ssize(cpus) < devices) {
    for (std::size_t d = 0; std::ssize(out) < devices; ++d) out.push_back({cpus[d % cpus.size()].id});
    return out;
  }
  Bounds bounds = bounds_by_node(cpus, false);
  std::vector<std::size_t> counts = devices_in(bounds, devices);
  Bounds caches = bounds_by_node(cpus, true);
  if (std::vector<std::size_t> in_caches = devices_in(caches, devices);
      smallest(caches, in_caches) == smallest(bounds, counts) && used(caches, in_caches) == used(bounds, counts)) {
    bounds = std::move(caches);
    counts = std::move(in_caches);
  }
  const std::size_t least = smallest(bounds, counts);
  for (std::size_t b = 0; b < bounds.size(); ++b) {
    const std::size_t usable = usable_in(bounds[b], counts[b], least);
    for (std::size_t d = 0; d < counts[b]; ++d) {
      const auto at = [&](std::size_t n) { return bounds[b].begin() + static_cast<std::ptrdiff_t>(n * usable / counts[b]); };
      out.emplace_back(at(d), at(d + 1));
    }
  }
  return out;
}

Result<std::vector<int>> choose_cores(const std::vector<int>& cores, int threads) {
  const std::vector<Cpu> cpus = allowed_cpus();
  const std::vector<int> allowed = ids_of(cpus);
  if (threads < 0) return Status(Code::kInvalidArgument, "threads must not be negative, not " + std::to_string(threads));
  if (!cores.empty()) {
    for (std::size_t i = 0; i < cores.size(); ++i) {
      if (!contains(allowed, cores[i]))
        return Status(Code::kInvalidArgument,
                      "core " + std::to_string(cores[i]) + " is not among the cores that this process may use (" + list_of(allowed) + ")");
      if (std::count(cores.begin(), cores.end(), cores[i]) > 1)
        return Status(Code::kInvalidArgument, "core " + std::to_string(cores[i]) + " is named twice: each thread needs its own");
    }
    if (threads != 0 && threads != static_cast<int>(cores.size()))
      return Status(Code::kInvalidArgument, std::to_string(threads) + " threads but " + std::to_string(cores.size()) + " cores (" +
                                                list_of(cores) + "): give one core for each thread, or only one of the two");
    return cores;
  }
  if (threads > static_cast<int>(allowed.size()) || allowed.empty())
    return Status(Code::kInvalidArgument, std::to_string(threads) + " threads want as many cores, but this process may use only " +
                                              std::to_string(allowed.size()) + " (" + list_of(allowed) + "); ask for fewer threads");
  const std::vector<Cpu> physical = physical_cores(cpus);
  std::vector<int> order = plan_devices(physical, 1)[0];
  if (threads == 0) return order;
  for (const std::vector<int>& more : {ids_of(physical), allowed})
    for (const int core : more)
      if (!contains(order, core)) order.push_back(core);
  order.resize(static_cast<std::size_t>(threads));
  return order;
}

int home_node(const std::vector<int>& cores) {
  const std::vector<Cpu> cpus = Topology::of_this_machine().cpus();
  std::set<int> all, used;
  for (const Cpu& cpu : cpus) {
    all.insert(cpu.node);
    if (contains(cores, cpu.id)) used.insert(cpu.node);
  }
  return all.size() > 1 && used.size() == 1 ? *used.begin() : -1;
}

void place_on_node(void* data, std::size_t bytes, int node) {
  const Topology& machine = Topology::of_this_machine();
  if (node < 0 || !machine.loaded()) return;
  const hwloc_bitmap_t nodes = hwloc_bitmap_alloc();
  hwloc_bitmap_set(nodes, static_cast<unsigned>(node));
  (void)hwloc_set_area_membind(machine.get(), data, bytes, nodes, HWLOC_MEMBIND_BIND, HWLOC_MEMBIND_BYNODESET);
  hwloc_bitmap_free(nodes);
}

OnCores::OnCores(const std::vector<int>& cores) {
  CPU_ZERO(&before_);
  if (cores.empty() || sched_getaffinity(0, sizeof before_, &before_) != 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores) CPU_SET(static_cast<unsigned>(core), &set);
  moved_ = sched_setaffinity(0, sizeof set, &set) == 0;
}

OnCores::~OnCores() {
  if (moved_) sched_setaffinity(0, sizeof before_, &before_);
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos) return line.substr(line.find(": ") + 2);
  return "unknown CPU";
}

}  // namespace baton::device::cpu
