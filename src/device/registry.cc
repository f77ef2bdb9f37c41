#include "device/cpu/cpu_device.h"
#include "device/device.h"

namespace baton::device {
namespace {

struct Kind {
  const char* name;
  Result<std::vector<std::unique_ptr<Device>>> (*open)(std::span<const DeviceOptions> ranks, Duration collective_deadline,
                                                       std::shared_ptr<NodeGroup> nodes);
};
constexpr Kind kKinds[] = {{"cpu", cpu::CpuDevice::open}};

}  // namespace

Result<std::vector<std::unique_ptr<Device>>> open_devices(std::span<const DeviceOptions> ranks, Duration collective_deadline,
                                                          std::shared_ptr<NodeGroup> nodes) {
  BATON_CHECK(!ranks.empty());
  const std::string& wanted = ranks[0].kind;
  std::string known;
  for (const Kind& kind : kKinds) {
    if (wanted == kind.name) return kind.open(ranks, collective_deadline, std::move(nodes));
    known += (known.empty() ? "" : ", ") + std::string(kind.name);
  }
  return Status(Code::kNotFound, "no device of kind '" + wanted + "'; there are: " + known);
}

Result<std::unique_ptr<Device>> open_device(const DeviceOptions& options) {
  BATON_ASSIGN_OR_RETURN(auto devices, open_devices({&options, 1}, Duration(0)));
  return std::move(devices[0]);
}

std::vector<std::string> device_kinds() {
  std::vector<std::string> names;
  for (const Kind& kind : kKinds) names.emplace_back(kind.name);
  return names;
}

}  // namespace baton::device
