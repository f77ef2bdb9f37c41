#pragma once

#include <memory>
#include <span>

#include "device/cpu/memory.h"
#include "device/ops.h"

namespace baton::device::cpu {

class CpuRopeTable final : public RopeTable {
 public:
  // Angles in double, so that a far position is as exact as a near one.
  static Result<std::unique_ptr<CpuRopeTable>> create(std::span<const double> inverse_frequencies, std::int64_t positions,
                                                      double attention_factor);
  std::int64_t positions() const { return positions_; }
  long half() const { return half_; }
  const float* cos(std::int64_t position) const { return values_ + position * 2 * half_; }
  const float* sin(std::int64_t position) const { return cos(position) + half_; }

 private:
  std::unique_ptr<CpuBuffer> buffer_;
  float* values_ = nullptr;  // [position][cos, sin][half]
  std::int64_t positions_ = 0;
  long half_ = 0;
};

}  // namespace baton::device::cpu
