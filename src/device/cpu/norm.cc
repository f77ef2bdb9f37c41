#include "device/cpu/cpu_ops.h"

namespace baton::device::cpu {

void CpuOps::rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out) {
  const RowView in = rows_of(x), to = rows_of(out), w = rows_of(weight);
  BATON_CHECK(in.rows == to.rows && in.n == to.n && w.rows == 1 && w.n == in.n);
  for_rows(in.rows, in.n, [&](long r) { rows_.rms_norm(in[r], w.base, eps, in.n, to[r]); });
}

void CpuOps::add_rms_norm(const Tensor& residual, const Tensor& x, const Tensor& weight, float eps, const Tensor& out) {
  const RowView sum = rows_of(residual), in = rows_of(x), to = rows_of(out), w = rows_of(weight);
  BATON_CHECK(sum.rows == in.rows && sum.rows == to.rows && sum.n == in.n && sum.n == to.n && w.rows == 1 && w.n == sum.n);
  for_rows(sum.rows, sum.n, [&](long r) { rows_.add_rms_norm(sum[r], in[r], w.base, eps, sum.n, to[r]); });
}

}  // namespace baton::device::cpu
