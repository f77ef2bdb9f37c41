#include "app/devices.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <map>
#include <set>

namespace baton::app {
namespace {

using device::cpu::Cpu;

Status check_cores(std::span<const Cpu> cpus, const CoreSets& sets) {
  std::set<int> named;
  for (const std::vector<int>& set : sets) {
    std::set<int> of_set;
    for (const int core : set) {
      if (std::ranges::find(cpus, core, &Cpu::id) == cpus.end())
        return Status(Code::kInvalidArgument, fmt::format("--cores: core {} is not one that this process may use ({})", core,
                                                          format_cores(device::cpu::ids_of(cpus))));
      if (!of_set.insert(core).second) return Status(Code::kInvalidArgument, fmt::format("--cores: core {} is named twice", core));
    }
  }
  return {};
}

// A core has one owner.
Status check_overlap(const CoreSets& sets) {
  std::map<int, std::size_t> owner;
  for (std::size_t s = 0; s < sets.size(); ++s)
    for (const int core : sets[s])
      if (const auto [at, added] = owner.emplace(core, s); !added)
        return Status(Code::kInvalidArgument,
                      fmt::format("--cores: device {} ({}) and device {} ({}) overlap: both have core {}, and each needs its own",
                                  at->second, format_cores(sets[at->second]), s, format_cores(sets[s]), core));
  return {};
}

}  // namespace

Result<DevicePlan> plan_devices(std::span<const Cpu> cpus, const EngineFlags& flags, int count) {
  BATON_ASSIGN_OR_RETURN(const CoreSets sets, parse_core_sets(flags.cores));
  BATON_RETURN_IF_ERROR(check_cores(cpus, sets));
  DevicePlan plan;
  if (sets.size() > 1 || (sets.size() == 1 && count == 1)) {
    if (!flags.cores_shared) BATON_RETURN_IF_ERROR(check_overlap(sets));
    if (std::ssize(sets) != count)
      return Status(Code::kInvalidArgument, fmt::format("--cores {} names {} devices, but {} {} wanted: one for each rank of each engine",
                                                        flags.cores, sets.size(), count, count == 1 ? "is" : "are"));
    plan.devices = sets;
    return plan;
  }
  std::vector<Cpu> usable = device::cpu::physical_cores(cpus);
  if (!sets.empty()) {  // in the machine's order, siblings too: who names them wants them
    usable.assign(cpus.begin(), cpus.end());
    std::erase_if(usable, [&](const Cpu& cpu) { return std::ranges::find(sets[0], cpu.id) == sets[0].end(); });
  }
  if (usable.empty()) return Status(Code::kUnavailable, "this process may not use any CPU");
  plan.devices = device::cpu::plan_devices(usable, count);
  plan.shared = std::ssize(usable) < count;
  plan.idle = device::cpu::ids_of(usable);
  for (const std::vector<int>& device : plan.devices)
    std::erase_if(plan.idle, [&](int core) { return std::ranges::find(device, core) != device.end(); });
  return plan;
}

void limit_threads(std::span<std::vector<int>> devices, int threads) {
  const std::size_t count = devices.size(), limit = static_cast<std::size_t>(threads);
  for (std::size_t d = 0; threads > 0 && d < count; ++d) {
    const std::size_t share = std::max<std::size_t>(1, (d + 1) * limit / count - d * limit / count);
    if (devices[d].size() > share) devices[d].resize(share);
  }
}

std::vector<std::string> notices_of(const DevicePlan& plan) {
  std::vector<std::string> out;
  if (plan.shared) {
    std::set<int> cores;
    for (const auto& device : plan.devices) cores.insert(device.begin(), device.end());
    out.push_back(fmt::format("{} devices share {} core{}: they take turns, and each waits for the others'", plan.devices.size(),
                              cores.size(), cores.size() == 1 ? "" : "s"));
  }
  if (!plan.idle.empty())
    out.push_back(
        fmt::format("cores {} stay idle: a device does not span NUMA nodes, unless --cores names each device's own; more ranks "
                    "(--tensor-parallel-size) or engines would use them",
                    format_cores(plan.idle)));
  return out;
}

std::string describe_devices(std::span<const Cpu> cpus, const CoreSets& devices) {
  std::map<int, int> node_of;
  std::set<int> nodes;
  for (const Cpu& cpu : cpus) nodes.insert(node_of[cpu.id] = cpu.node);
  std::vector<std::string> out;
  for (const std::vector<int>& device : devices) {
    std::set<int> used;
    for (const int core : device) used.insert(node_of[core]);
    out.push_back(format_cores(device));
    if (nodes.size() > 1) out.back() += fmt::format(" (node {})", fmt::join(used, ","));
  }
  return fmt::format("{}", fmt::join(out, "; "));
}

std::string describe_machine(std::span<const Cpu> cpus) {
  const std::vector<Cpu> cores = device::cpu::physical_cores(cpus);
  const auto groups = [&](int Cpu::* part, const char* what) {
    std::map<int, std::vector<int>> of;
    for (const Cpu& core : cores) of[core.*part].push_back(core.id);
    std::vector<std::string> lists;
    for (const auto& [number, ids] : of) lists.push_back(format_cores(ids));
    return fmt::format("{} {}{}{}", of.size(), what, of.size() == 1 ? "" : "s",
                       of.size() == 1 ? "" : fmt::format(" ({})", fmt::join(lists, "; ")));
  };
  return fmt::format("{} usable core{} ({}): {}, {}, {}", cores.size(), cores.size() == 1 ? "" : "s",
                     format_cores(device::cpu::ids_of(cores)), groups(&Cpu::socket, "socket"), groups(&Cpu::node, "NUMA node"),
                     groups(&Cpu::l3, "L3 cache"));
}

std::string describe_plans(std::span<const Cpu> cpus) {
  const std::vector<Cpu> cores = device::cpu::physical_cores(cpus);
  std::vector<std::string> out;
  for (int count = 1; count <= std::ssize(cores); count *= 2)
    out.push_back(fmt::format("{}: {}", count, describe_devices(cpus, device::cpu::plan_devices(cores, count))));
  return fmt::format("{}", fmt::join(out, " | "));
}

}  // namespace baton::app
