#include "device/cpu/cpu_device.h"

#include "device/cpu/cores.h"
#include "device/cpu/cpu_context.h"
#include "device/cpu/embedding.h"
#include "device/cpu/kv_pool.h"
#include "device/cpu/linear.h"
#include "device/cpu/memory.h"
#include "device/cpu/rope.h"

namespace baton::device::cpu {
namespace {

// Grows when any kernel here changes its order of summation, so that two builds that differ do not take each other for equal.
constexpr int kNumericsRevision = 1;

template <class To, class From>
Result<std::unique_ptr<To>> upcast(Result<std::unique_ptr<From>> from) {
  if (!from.ok()) return from.status();
  return std::unique_ptr<To>(std::move(from).value());
}

Result<Isa> choose_isa(const std::string& name) {
  const Isa best = best_isa();
  if (name.empty()) return best;
  const std::optional<Isa> isa = isa_from_string(name);
  if (!isa) return Status(Code::kInvalidArgument, "unknown ISA '" + name + "': scalar, avx2 or avx512-bf16-vnni");
  if (*isa > best)
    return Status(Code::kInvalidArgument, "this machine lacks " + name + "; the best that it has is " + std::string(to_string(best)));
  return *isa;
}

}  // namespace

Result<std::vector<std::unique_ptr<Device>>> CpuDevice::open(std::span<const DeviceOptions> ranks, Duration collective_deadline,
                                                             std::shared_ptr<NodeGroup> nodes) {
  const int size = static_cast<int>(ranks.size());
  const auto group = size > 1 || nodes ? std::make_shared<Group>(size, collective_deadline, std::move(nodes)) : nullptr;
  std::vector<std::unique_ptr<Device>> devices;
  for (const DeviceOptions& options : ranks) {
    BATON_ASSIGN_OR_RETURN(const Isa isa, choose_isa(options.isa));
    BATON_ASSIGN_OR_RETURN(std::vector<int> cores, choose_cores(options.cores, options.threads));
    const int local_rank = static_cast<int>(devices.size());
    devices.push_back(std::unique_ptr<Device>(new CpuDevice(isa, std::move(cores), group, local_rank)));
  }
  return devices;
}

CpuDevice::CpuDevice(Isa isa, std::vector<int> cores, std::shared_ptr<Group> group, int local_rank)
    : isa_(isa),
      cores_(std::move(cores)),
      node_(home_node(cores_)),
      near_(node_ >= 0 ? cores_ : std::vector<int>{}),
      group_(std::move(group)),
      local_rank_(local_rank) {
  info_.kind = "cpu";
  info_.name = cpu_name() + ", " + std::to_string(cores_.size()) + (cores_.size() == 1 ? " core" : " cores");
  info_.isa = to_string(isa_);
  info_.memory_bytes = total_memory();
  info_.kv_block_tokens = kBlockTokens;
  info_.asynchronous = false;
  info_.batch_invariant = true;
}

Result<std::unique_ptr<Context>> CpuDevice::create_context(const ContextOptions& options) {
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<CpuBuffer> arena, CpuBuffer::allocate(options.arena_bytes));
  return std::unique_ptr<Context>(std::make_unique<CpuContext>(isa_, cores_, std::move(arena), group_, local_rank_));
}

Result<std::unique_ptr<Buffer>> CpuDevice::allocate(std::size_t bytes) { return upcast<Buffer>(CpuBuffer::allocate(bytes)); }

Result<std::unique_ptr<KvPool>> CpuDevice::create_kv_pool(KvSpec spec) { return upcast<KvPool>(CpuKvPool::create(spec, node_)); }

Result<std::unique_ptr<Linear>> CpuDevice::prepare_linear(std::span<const HostWeight> parts, std::span<const float> bias,
                                                          ComputeType compute) {
  const OnCores near(near_);
  return upcast<Linear>(make_linear(isa_, parts, bias, compute, weights_));
}

Result<std::unique_ptr<Embedding>> CpuDevice::prepare_embedding(const HostWeight& table, std::int32_t first_id) {
  const OnCores near(near_);
  return upcast<Embedding>(CpuEmbedding::create(table, first_id));
}

Result<std::unique_ptr<RopeTable>> CpuDevice::prepare_rope(std::span<const double> inverse_frequencies, std::int64_t positions,
                                                           double attention_factor) {
  const OnCores near(near_);
  return upcast<RopeTable>(CpuRopeTable::create(inverse_frequencies, positions, attention_factor));
}

std::string CpuDevice::numerics_id(ComputeType compute, DType kv_dtype) const {
  std::string id = "cpu/" + info_.isa + "/" + std::string(to_string(compute)) + "/kv-" + std::string(to_string(kv_dtype)) + "/r" +
                   std::to_string(kNumericsRevision);
  if (!group_) return id;
  id += "/tp" + std::to_string(group_->size() * group_->nodes());
  if (group_->nodes() > 1) id += "n" + std::to_string(group_->nodes());
  return id;
}

MachineLimits CpuDevice::measure_limits() {
  Team team(cores_);
  MachineLimits limits;
  limits.read_bytes_per_s = measure_read_bandwidth(team);
  limits.f32_flops = measure_f32_flops(isa_, team);
  limits.bf16_flops = measure_bf16_flops(isa_, team);
  limits.int8_ops = measure_int8_ops(isa_, team);
  return limits;
}

}  // namespace baton::device::cpu
