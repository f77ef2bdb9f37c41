#pragma once
// One step, or a part of one, as a device takes it: made of a plan's rows on the host that has the plan, and sent to the instance's other
// hosts as words. Its memory is used again, so that in steady state nothing is allocated.

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "device/ops.h"
#include "engine/step.h"

namespace baton::engine {

struct DeviceStepLimits {
  std::int32_t tokens = 0, seqs = 0, logit_rows = 0;  // of one step
  std::int64_t positions = 0;                         // of a sequence
  std::int32_t blocks = 0, block_tokens = 0;          // of the KV pool

  std::int64_t blocks_per_seq() const { return (positions + block_tokens - 1) / block_tokens; }
  // Of a step as words.
  std::size_t words() const;
};

class DeviceStep {
 public:
  explicit DeviceStep(const DeviceStepLimits& limits);

  void fill(const StepPlan& part);
  // In place of fill(), on other hosts: what write() wrote there. kDataLoss if it cannot be a step within the limits.
  void write(std::vector<std::int32_t>& words) const;
  Status read(std::span<const std::int32_t> words);

  // Without device twins; its arrays are this object's.
  const device::StepMeta& meta() const { return meta_; }
  std::span<const device::Ops::BlockCopy> copies() const { return copies_; }
  // The first row of logits of the part's row `row`; only after fill().
  std::int32_t first_logit(std::size_t row) const { return first_logit_[row]; }

 private:
  void clear();
  void fill_row(const StepRow& row);
  void point();
  Status check() const;

  const DeviceStepLimits limits_;
  std::vector<std::int32_t> token_ids_, positions_, slots_, q_start_, kv_len_, block_tables_, logit_rows_, first_logit_;
  std::vector<device::Ops::BlockCopy> copies_;
  device::StepMeta meta_;
};

}  // namespace baton::engine
