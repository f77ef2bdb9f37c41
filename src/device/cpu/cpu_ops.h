#pragma once
// The ops of one context, inline on its team. One file per group of ops: norm.cc, rope.cc, kv_write.cc, attention.cc, elementwise.cc,
// embedding.cc, topk.cc.

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/team.h"
#include "device/cpu/attention_kernel.h"
#include "device/cpu/isa.h"
#include "device/cpu/memory.h"
#include "device/cpu/row_kernels.h"
#include "device/cpu/split.h"
#include "device/ops.h"

namespace baton::device::cpu {

class CpuOps final : public Ops {
 public:
  CpuOps(Isa isa, Team& team);
  ~CpuOps() override;

  void embedding(const Embedding& table, const Tensor& ids, const Tensor& out) override;
  void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out) override;
  void add(const Tensor& x, const Tensor& y) override;
  void add_rms_norm(const Tensor& residual, const Tensor& x, const Tensor& weight, float eps, const Tensor& out) override;
  void linear(const Linear& weight, const Tensor& x, const Tensor& out) override;
  void rope(const RopeTable& table, const Tensor& positions, const Tensor& x) override;
  void kv_write(const StepMeta& meta, KvPool& pool, int layer, const Tensor& k, const Tensor& v) override;
  void copy_blocks(KvPool& pool, std::span<const BlockCopy> copies) override;
  void attention(const StepMeta& meta, const KvPool& pool, int layer, const Tensor& q, float scale, const Tensor& out) override;
  void swiglu(const Tensor& gate_up, const Tensor& out) override;
  void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) override;
  void argmax(const Tensor& logits, const Tensor& out) override;
  void top_k(const Tensor& logits, int k, const Tensor& values, const Tensor& indices) override;
  void patch_tokens(const Tensor& ids, const Tensor& source, const Tensor& last) override;

  // The first failure since the last call, naming its op: for Context::synchronize.
  Status take_error();

 private:
  // Work space of at least so many bytes, kept for the next op; nullptr (and an error for `op`) if the memory is not there. In steady state
  // it has grown to its size and nothing is allocated.
  std::byte* work_space(std::size_t bytes, const char* op);
  // Runs fn(row) for every row, on the team where there is enough to do: `row_values` f32 values are touched for a row.
  template <class F>
  void for_rows(long rows, long row_values, F&& fn);

  const Isa isa_;
  const RowKernels& rows_;
  const AttentionKernels& attention_;
  Team& team_;
  std::unique_ptr<CpuBuffer> work_;
  std::vector<std::unique_ptr<AttentionScratch>> scratch_;  // one a member
  Status error_;
};

// Memory of a tensor's first element; the element type must be T's.
template <class T>
T* data_of(const Tensor& t);

// A tensor [rows, n] or [tokens, heads, n] as rows of n values.
struct RowView {
  float* base;
  long rows, n;
  long inner;                       // rows for each index of the first dimension
  long outer_stride, inner_stride;  // in elements
  float* operator[](long row) const { return base + row / inner * outer_stride + row % inner * inner_stride; }
};
RowView rows_of(const Tensor& t);

template <class F>
void CpuOps::for_rows(long rows, long row_values, F&& fn) {
  // Below this a region costs more than the work that it shares out.
  constexpr long kValuesMin = 8192;
  if (rows < 2 || rows * row_values < kValuesMin || team_.size() == 1) {
    for (long r = 0; r < rows; ++r) fn(r);
    return;
  }
  team_.run([&](int member) {
    const Range range = split(rows, 1, member, team_.size());
    for (long r = range.begin; r < range.end; ++r) fn(r);
  });
}

}  // namespace baton::device::cpu
