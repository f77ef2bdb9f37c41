#pragma once

#include <memory>
#include <string>
#include <vector>

#include "device/cpu/group.h"
#include "device/cpu/isa.h"
#include "device/cpu/weight_arena.h"
#include "device/device.h"

namespace baton::device::cpu {

class CpuDevice final : public Device {
 public:
  static Result<std::vector<std::unique_ptr<Device>>> open(std::span<const DeviceOptions> ranks, Duration collective_deadline,
                                                           std::shared_ptr<NodeGroup> nodes);

  const DeviceInfo& info() const override { return info_; }
  Result<std::unique_ptr<Context>> create_context(const ContextOptions& options) override;
  Result<std::unique_ptr<Buffer>> allocate(std::size_t bytes) override;
  Result<std::unique_ptr<KvPool>> create_kv_pool(KvSpec spec) override;
  Result<std::unique_ptr<Linear>> prepare_linear(std::span<const HostWeight> parts, std::span<const float> bias,
                                                 ComputeType compute) override;
  Result<std::unique_ptr<Embedding>> prepare_embedding(const HostWeight& table, std::int32_t first_id) override;
  Result<std::unique_ptr<RopeTable>> prepare_rope(std::span<const double> inverse_frequencies, std::int64_t positions,
                                                  double attention_factor) override;
  DType activation_dtype(ComputeType) const override { return DType::kF32; }
  std::string numerics_id(ComputeType compute, DType kv_dtype) const override;
  P2p* p2p() override { return nullptr; }
  MachineLimits measure_limits() override;

 private:
  CpuDevice(Isa isa, std::vector<int> cores, std::shared_ptr<Group> group, int local_rank);
  const Isa isa_;
  const std::vector<int> cores_;
  const int node_;                      // of NUMA, where all of the cores are; -1: there is but one, or they are of several
  const std::vector<int> near_;         // where weights are prepared: the cores, or anywhere if the node does not matter
  const std::shared_ptr<Group> group_;  // null: the only rank
  const int local_rank_;
  const std::shared_ptr<WeightArena> weights_ = std::make_shared<WeightArena>();  // of all layers, in the order of their preparation
  DeviceInfo info_;
};

}  // namespace baton::device::cpu
