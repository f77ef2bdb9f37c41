#pragma once
// A device: memory, streams, prepared weights. Together with ops.h, collective.h, kv_view.h and p2p.h this is all that is vendor-specific;
// a port to another accelerator is one folder beside cpu/.
//
// Lifecycle: open_device() -> create_context() on each rank's thread -> prepare_*() at load -> per step: upload_step(), ops, synchronize().
// A step in steady state allocates nothing.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "device/collective.h"
#include "device/kv_view.h"
#include "device/node_group.h"
#include "device/ops.h"
#include "device/p2p.h"
#include "device/types.h"

namespace baton::device {

struct DeviceInfo {
  std::string kind;  // "cpu"
  std::string name;  // "AMD EPYC ..., 2 cores"
  std::string isa;   // "avx512-bf16-vnni", "avx2", "scalar"
  std::size_t memory_bytes = 0;
  int kv_block_tokens = 0;  // the block size that its kernels want
  bool asynchronous = false;
  // Whether a row's bits are independent of the batch in its GEMMs: promised by construction or checked at start.
  bool batch_invariant = false;
};

// Upper bounds of this machine, measured now by simple loops on this device's cores (takes about a second).
struct MachineLimits {
  double read_bytes_per_s = 0;
  double f32_flops = 0;
  double bf16_flops = 0;
  double int8_ops = 0;
};

// Every scratch tensor begins at a multiple of this (ContextOptions::arena_bytes counts from such an address), so that an arena can be
// sized exactly: the sum of the tensors' bytes, each rounded up. What ops need inside is the device's own matter, not the arena's.
constexpr std::size_t kScratchAlignment = 512;

// What one rank computes with: a stream, an arena, the ops. Belongs to the thread that made it.
class Context {
 public:
  virtual ~Context() = default;
  virtual Ops& ops() = 0;
  virtual Collective& collective() = 0;
  // Work space from the caller's arena: valid until reset_arena(). kResourceExhausted names the bytes wanted.
  virtual Result<Tensor> scratch(DType dtype, std::initializer_list<std::int64_t> shape) = 0;
  virtual void reset_arena() = 0;
  // Fills the device twins in `meta`; the host arrays must stay until the step is done.
  virtual Status upload_step(StepMeta& meta) = 0;
  // Ordered with the stream. The source is free again on return.
  virtual Status upload(const Tensor& target, const void* source, std::size_t bytes) = 0;
  // The tensor's bytes as host memory, valid after synchronize() and until reset_arena(). On a CPU the memory itself, elsewhere a pinned
  // copy.
  virtual Result<const void*> download(const Tensor& source) = 0;
  // Calls fn(user, tag) once everything queued so far is complete: inline on a CPU, from a device thread elsewhere; fn must not block.
  virtual void notify(void (*fn)(void* user, std::uint64_t tag), void* user, std::uint64_t tag) = 0;
  // Waits for all queued work, up to the deadline. An error names the op; the context is then dead.
  virtual Status synchronize(Duration deadline) = 0;
};

struct ContextOptions {
  std::size_t arena_bytes = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const = 0;
  // Called on the thread that will own it. kResourceExhausted if the arena does not fit.
  virtual Result<std::unique_ptr<Context>> create_context(const ContextOptions& options) = 0;
  virtual Result<std::unique_ptr<Buffer>> allocate(std::size_t bytes) = 0;
  virtual Result<std::unique_ptr<KvPool>> create_kv_pool(KvSpec spec) = 0;
  // `parts` are stacked along the rows (fused QKV, gate and up); `bias` is empty or has one value a row. The weights are packed or uploaded
  // here; the host data is not needed afterwards.
  virtual Result<std::unique_ptr<Linear>> prepare_linear(std::span<const HostWeight> parts, std::span<const float> bias,
                                                         ComputeType compute) = 0;
  // `first_id`: of the table's first row. Ids outside the table give rows of zeros: another rank has them.
  virtual Result<std::unique_ptr<Embedding>> prepare_embedding(const HostWeight& table, std::int32_t first_id = 0) = 0;
  // cos and sin of positions 0 .. positions-1 for the given inverse frequencies (head_dim / 2 of them), scaled by `attention_factor`.
  virtual Result<std::unique_ptr<RopeTable>> prepare_rope(std::span<const double> inverse_frequencies, std::int64_t positions,
                                                          double attention_factor) = 0;
  virtual DType activation_dtype(ComputeType compute) const = 0;
  // Names one order of summation: equal ids promise equal bits. E.g. "cpu/avx512-bf16-vnni/int8/kv-bf16", with "/tp4" behind it in a group
  // of four, and "/tp4n2" where it is on two hosts.
  virtual std::string numerics_id(ComputeType compute, DType kv_dtype) const = 0;
  virtual P2p* p2p() = 0;
  virtual MachineLimits measure_limits() = 0;
};

struct DeviceOptions {
  std::string kind = "cpu";
  std::vector<int> cores = {};  // cpu: logical CPUs to pin the team to; empty: `threads` of those that this process may use
  int threads = 0;              // cpu: 0 for one per physical core of one NUMA node
  std::string isa = {};         // cpu: "" for the best that the machine has, else a named lower one (tests)
};
// kNotFound names the kinds there are; kInvalidArgument an ISA or a core that this machine lacks.
Result<std::unique_ptr<Device>> open_device(const DeviceOptions& options);
// The devices of one tensor-parallel instance on this host, in the order of their ranks, all of one kind: their contexts share a group of
// collectives. `collective_deadline`: how long one waits for the last of them. `nodes`: all hosts of the instance, where there are several;
// each opens as many devices. From then on it belongs to the first rank's thread.
Result<std::vector<std::unique_ptr<Device>>> open_devices(std::span<const DeviceOptions> ranks, Duration collective_deadline,
                                                          std::shared_ptr<NodeGroup> nodes = nullptr);
std::vector<std::string> device_kinds();

}  // namespace baton::device
