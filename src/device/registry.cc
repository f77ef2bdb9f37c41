#include "device/cpu/cpu_device.h"
#include "device/device.h"

namespace baton::device {
namespace {

struct Kind {
  const char* name;
  Result<std::unique_ptr<Device>> (*open)(const DeviceOptions&);
};
constexpr Kind kKinds[] = {{"cpu", cpu::CpuDevice::open}};

}  // namespace

Result<std::unique_ptr<Device>> open_device(const DeviceOptions& options) {
  std::string known;
  for (const Kind& kind : kKinds) {
    if (options.kind == kind.name) return kind.open(options);
    known += (known.empty() ? "" : ", ") + std::string(kind.name);
  }
  return Status(Code::kNotFound, "no device of kind '" + options.kind + "'; there are: " + known);
}

std::vector<std::string> device_kinds() {
  std::vector<std::string> names;
  for (const Kind& kind : kKinds) names.emplace_back(kind.name);
  return names;
}

}  // namespace baton::device
