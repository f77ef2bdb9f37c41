#pragma once
// The KV pool of a CPU: a memfd that other processes on this host may map by /proc/<pid>/fd/<fd>.

#include <memory>

#include "base/status.h"
#include "device/kv_view.h"

namespace baton::device::cpu {

// The block size of the kernels here: K or V of one head and block is a run of 32 rows, 4 KiB for 64 bf16 dimensions.
constexpr int kBlockTokens = 32;

class CpuKvPool final : public KvPool {
 public:
  // Pages appear when they are first written. kInvalidArgument for a shape that the kernels cannot serve; kResourceExhausted if the memory
  // is not there, saying which size would fit. `node`: of NUMA, see place_on_node().
  static Result<std::unique_ptr<CpuKvPool>> create(KvSpec spec, int node);
  ~CpuKvPool() override;
  CpuKvPool(const CpuKvPool&) = delete;
  CpuKvPool& operator=(const CpuKvPool&) = delete;

  const KvView& view() const override { return view_; }
  const SharedRegion* shared_region() const override { return &region_; }
  std::byte* data() const { return region_.base; }

 private:
  CpuKvPool() = default;
  KvView view_;
  SharedRegion region_;
};

}  // namespace baton::device::cpu
