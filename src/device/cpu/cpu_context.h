#pragma once

#include <array>
#include <memory>
#include <vector>

#include "device/cpu/cpu_ops.h"
#include "device/cpu/group.h"
#include "device/device.h"

namespace baton::device::cpu {

// Everything runs inline on the team, so that each call is complete when it returns. Pins the calling thread to the team's first core until
// it is destroyed.
class CpuContext final : public Context {
 public:
  // `group`: null for the group of one.
  CpuContext(Isa isa, std::vector<int> cores, std::unique_ptr<CpuBuffer> arena, std::shared_ptr<Group> group, int local_rank);

  Ops& ops() override { return ops_; }
  Collective& collective() override { return *collective_; }
  Result<Tensor> scratch(DType dtype, std::initializer_list<std::int64_t> shape) override;
  void reset_arena() override { arena_used_ = 0; }
  Status upload_step(StepMeta& meta) override;
  Status upload(const Tensor& target, const void* source, std::size_t bytes) override;
  Result<const void*> download(const Tensor& source) override;
  void notify(void (*fn)(void* user, std::uint64_t tag), void* user, std::uint64_t tag) override { fn(user, tag); }
  Status synchronize(Duration deadline) override;

 private:
  // The device twins of one step: aliases of the caller's host arrays. A step may be issued before the results of the one before are read,
  // hence two sets.
  using Twins = std::array<CpuBuffer, 7>;

  Team team_;
  CpuOps ops_;
  std::shared_ptr<Group> group_;
  std::unique_ptr<Collective> collective_;
  std::unique_ptr<CpuBuffer> arena_;
  std::size_t arena_used_ = 0;
  std::array<Twins, 2> twins_;
  std::size_t step_ = 0;
};

}  // namespace baton::device::cpu
