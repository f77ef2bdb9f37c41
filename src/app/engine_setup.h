#pragma once
// From flags to an engine's parts: the device, the loaded model, the executor with its KV pool. Shared by `baton worker` and `baton bench
// engine`.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "app/options.h"
#include "base/status.h"
#include "device/device.h"
#include "engine/device_executor.h"
#include "engine/engine.h"
#include "model/model_files.h"
#include "net/event_loop.h"

namespace baton::app {

struct EngineSetup {
  std::unique_ptr<model::ModelFiles> files;
  std::vector<device::DeviceOptions> devices;  // one a rank
  std::shared_ptr<engine::LoadedModel> loaded;
  std::unique_ptr<engine::DeviceExecutor> executor;
  engine::EngineOptions options;  // with the pool's size
  device::ComputeType compute{};
  device::DType kv_dtype{};
  double load_seconds = 0;
};

// `peers`: how many engines share this machine's memory. Prints the phases through the log. On several hosts all do this together; `on_end`
// is DeviceExecutorOptions'.
Result<EngineSetup> set_up_engine(const EngineFlags& flags, int peers, net::EventLoop& loop, std::function<void(Status)> on_end = {});

}  // namespace baton::app
