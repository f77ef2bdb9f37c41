#pragma once
// The modelled device: a KV pool in plain memory (model.h says what is in it) and a step executor that takes virtual time by a cost model.
// It writes a layer when that layer is due, and reads the whole context when the step ends: KV that is missing, overwritten or of someone
// else is then seen as a wrong token.

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/step.h"
#include "net/event_loop.h"
#include "sim/audit.h"
#include "sim/host.h"
#include "sim/model.h"
#include "sim/trace.h"

namespace baton::sim {

// Memory of a pool. Shared, because on a real machine a mapping outlives the process that made it.
using Memory = std::shared_ptr<std::vector<std::uint64_t>>;

struct DeviceModel {  // nanoseconds
  std::int64_t step = 2'000'000;
  std::int64_t prefill_token = 100'000, decode_row = 300'000;
  std::int64_t context_token = 300;  // read by a row
  bool operator==(const DeviceModel&) const = default;
};

class Device final : public engine::StepExecutor {
 public:
  Device(Host& host, Trace& trace, PoolAudit& audit, DeviceModel model, const device::KvView& view, Memory memory);
  ~Device() override;

  void start(Callbacks callbacks) override { callbacks_ = std::move(callbacks); }
  void submit(const engine::StepPlan& plan) override;

  bool busy() const { return !timers_.empty(); }
  // A fault: its steps take so many per cent more time.
  void slow_down(std::int64_t percent) { slower_percent_ = percent; }

 private:
  std::uint64_t& word(const engine::StepRow& row, int layer, int head, int kind, std::int32_t token) const;
  void copy_blocks();
  void verify(const engine::StepRow& row);
  void layer_due(int layer);
  void write(const engine::StepRow& row, int layer);
  void finish();
  engine::StepResult::Row sample(const engine::StepRow& row) const;

  Host& host_;
  Trace& trace_;
  PoolAudit& audit_;
  const DeviceModel model_;
  const device::KvView view_;
  const Memory memory_;
  Callbacks callbacks_;
  const engine::StepPlan* plan_ = nullptr;
  engine::StepResult result_;
  std::vector<net::Executor::TimerId> timers_;                // of the running step
  std::unordered_map<std::uint64_t, std::int32_t> verified_;  // by sequence: whose words are right up to here
  std::int64_t slower_percent_ = 0;
};

}  // namespace baton::sim
