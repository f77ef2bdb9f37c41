#include <cstring>

#include "device/cpu/cpu_ops.h"

namespace baton::device::cpu {

void CpuOps::add(const Tensor& x, const Tensor& y) {
  const RowView to = rows_of(x), from = rows_of(y);
  BATON_CHECK(to.rows == from.rows && to.n == from.n);
  for_rows(to.rows, to.n, [&](long r) { rows_.add(to[r], from[r], to.n); });
}

void CpuOps::swiglu(const Tensor& gate_up, const Tensor& out) {
  const RowView in = rows_of(gate_up), to = rows_of(out);
  BATON_CHECK(in.rows == to.rows && in.n == 2 * to.n);
  for_rows(to.rows, 4 * to.n, [&](long r) { rows_.swiglu(in[r], in[r] + to.n, to.n, to[r]); });
}

void CpuOps::gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) {
  const RowView from = rows_of(x), to = rows_of(out);
  const std::int32_t* row = data_of<std::int32_t>(rows);
  BATON_CHECK(rows.shape[0] == to.rows && from.n == to.n);
  for (long r = 0; r < to.rows; ++r) {
    BATON_CHECK(row[r] >= 0 && row[r] < from.rows);
    std::memcpy(to[r], from[row[r]], static_cast<std::size_t>(to.n) * sizeof(float));
  }
}

void CpuOps::patch_tokens(const Tensor& ids, const Tensor& source, const Tensor& last) {
  std::int32_t* id = data_of<std::int32_t>(ids);
  const std::int32_t* from = data_of<std::int32_t>(source);
  const std::int32_t* token = data_of<std::int32_t>(last);
  BATON_CHECK(ids.shape[0] == source.shape[0]);
  for (std::int64_t t = 0; t < ids.shape[0]; ++t) {
    if (from[t] < 0) continue;
    BATON_CHECK(from[t] < last.shape[0]);
    id[t] = token[from[t]];
  }
}

}  // namespace baton::device::cpu
