#include "app/bench/compare/machine.h"

#include <sys/utsname.h>

#include <cstdlib>
#include <string>

#include "app/memory.h"
#include "device/cpu/cores.h"
#include "device/device.h"

namespace baton::app {

Machine look_at_machine(const std::string& isa) {
  Machine machine;
  if (const auto device = device::open_device({.kind = "cpu", .cores = {}, .threads = 1, .isa = isa}); device.ok()) {
    const std::string& name = (*device)->info().name;  // "AMD EPYC, 1 core"
    machine.cpu = name.substr(0, name.rfind(','));
    machine.isa = (*device)->info().isa;
  }
  machine.cores = static_cast<int>(device::cpu::physical_cores(device::cpu::allowed_cpus()).size());
  machine.memory_bytes = memory_info().total;
  if (utsname name{}; uname(&name) == 0) machine.kernel = name.release;
  if (double load = 0; getloadavg(&load, 1) == 1) machine.load = load;
  return machine;
}

}  // namespace baton::app
