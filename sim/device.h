#pragma once
// The modelled device: KV pools in plain memory (pool.h) and a step executor that takes virtual time by a cost model.
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
#include "sim/pool.h"
#include "sim/trace.h"

namespace baton::sim {

struct DeviceModel {  // nanoseconds
  std::int64_t step = 2'000'000;
  std::int64_t prefill_token = 100'000, decode_row = 300'000;
  std::int64_t context_token = 300;  // read by a row
  bool operator==(const DeviceModel&) const = default;
};

class Device final : public engine::StepExecutor {
 public:
  Device(Host& host, Trace& trace, PoolAudit& audit, DeviceModel model, Memory memory);
  ~Device() override;

  void start(Callbacks callbacks) override { callbacks_ = std::move(callbacks); }
  void submit(const engine::StepPlan& plan) override;

  bool busy() const { return !timers_.empty(); }
  // A fault: its steps take so many per cent more time.
  void slow_down(std::int64_t percent) { slower_percent_ = percent; }

 private:
  std::uint64_t& word(int copy, const engine::StepRow& row, int layer, int head, int kind, std::int32_t token) const;
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
  const Memory memory_;
  const device::KvSpec spec_;  // of the whole model
  Callbacks callbacks_;
  const engine::StepPlan* plan_ = nullptr;
  engine::StepResult result_;
  std::vector<net::Executor::TimerId> timers_;                // of the running step
  std::unordered_map<std::uint64_t, std::int32_t> verified_;  // by sequence: whose words are right up to here
  std::int64_t slower_percent_ = 0;
};

}  // namespace baton::sim
