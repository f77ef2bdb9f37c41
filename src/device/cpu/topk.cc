#include <limits>

#include "device/cpu/cpu_ops.h"

namespace baton::device::cpu {
namespace {

// The k best so far as a heap whose root is the worst of them, in the caller's two arrays.
struct Heap {
  float* value;
  std::int32_t* index;
  // Whether i ranks below j: a smaller value, or the later index among equals.
  bool below(int i, int j) const { return value[i] < value[j] || (value[i] == value[j] && index[i] > index[j]); }
  void swap(int i, int j) const {
    std::swap(value[i], value[j]);
    std::swap(index[i], index[j]);
  }
  void sift_down(int i, int size) const {
    for (int child; (child = 2 * i + 1) < size; i = child) {
      if (child + 1 < size && below(child + 1, child)) ++child;
      if (!below(child, i)) return;
      swap(i, child);
    }
  }
};

void top_k_row(const RowKernels& kernels, const float* x, long n, int k, float* value, std::int32_t* index) {
  const Heap heap{value, index};
  for (int i = 0; i < k; ++i) {
    value[i] = x[i] == x[i] ? x[i] : -std::numeric_limits<float>::infinity();  // a NaN ranks last
    index[i] = i;
  }
  for (int i = k / 2 - 1; i >= 0; --i) heap.sift_down(i, k);
  // A later value must be larger than the worst to enter: equal ones lose to lower indices.
  for (long i = kernels.find_above(x, value[0], k, n); i < n; i = kernels.find_above(x, value[0], i + 1, n)) {
    value[0] = x[i];
    index[0] = static_cast<std::int32_t>(i);
    heap.sift_down(0, k);
  }
  for (int size = k - 1; size > 0; --size) {  // the worst goes last
    heap.swap(0, size);
    heap.sift_down(0, size);
  }
}

}  // namespace

void CpuOps::argmax(const Tensor& logits, const Tensor& out) {
  const RowView in = rows_of(logits);
  std::int32_t* index = data_of<std::int32_t>(out);
  BATON_CHECK(out.shape[0] == in.rows && in.n > 0);
  for_rows(in.rows, in.n, [&](long r) { index[r] = rows_.argmax(in[r], in.n); });
}

void CpuOps::top_k(const Tensor& logits, int k, const Tensor& values, const Tensor& indices) {
  const RowView in = rows_of(logits), value = rows_of(values);
  std::int32_t* index = data_of<std::int32_t>(indices);
  BATON_CHECK(k >= 1 && k <= in.n && value.rows == in.rows && value.n == k && indices.rank == 2 && indices.shape[0] == in.rows &&
              indices.shape[1] == k);
  for_rows(in.rows, in.n, [&](long r) { top_k_row(rows_, in[r], in.n, k, value[r], index + r * indices.stride[0]); });
}

}  // namespace baton::device::cpu
