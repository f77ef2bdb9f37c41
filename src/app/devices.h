#pragma once
// Which cores each device gets: one device a rank, of the engines of this process or of a server's workers.

#include <span>
#include <string>
#include <vector>

#include "app/args.h"
#include "app/options.h"
#include "base/status.h"
#include "device/cpu/cores.h"

namespace baton::app {

struct DevicePlan {
  CoreSets devices;       // as many as asked
  bool shared = false;    // fewer cores than devices: some have the same one
  std::vector<int> idle;  // cores that no device got, because none spans two NUMA nodes or is much larger than another
};

// `count` devices from what --cores says: nothing (the cores of `cpus`, which are those that this process may use), a list to plan with, or
// the devices themselves, "0-3:4-7", which one list is for one device. kInvalidArgument names the cores or devices that are not as they
// must be. Pure.
Result<DevicePlan> plan_devices(std::span<const device::cpu::Cpu> cpus, const EngineFlags& flags, int count);

// At most `threads` cores (0: no limit) in one engine's `devices` together, but one in each.
void limit_threads(std::span<std::vector<int>> devices, int threads);

// What one should be told of a plan before it runs; may be empty.
std::vector<std::string> notices_of(const DevicePlan& plan);

// "0-3; 4-7", with the NUMA node of each where the machine has several.
std::string describe_devices(std::span<const device::cpu::Cpu> cpus, const CoreSets& devices);

// "16 usable cores (0-15): 1 socket, 2 NUMA nodes (0-7; 8-15), 4 L3 caches (0-3; 4-7; 8-11; 12-15)"
std::string describe_machine(std::span<const device::cpu::Cpu> cpus);
// What 1, 2, 4.. devices would get, up to one a core: "1: 0-3 | 2: 0,1; 2,3 | 4: 0; 1; 2; 3".
std::string describe_plans(std::span<const device::cpu::Cpu> cpus);

}  // namespace baton::app
