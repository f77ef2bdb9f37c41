#include "device/cpu/cpu_ops.h"

#include "device/cpu/linear.h"

namespace baton::device::cpu {

template <class T>
T* data_of(const Tensor& t) {
  BATON_CHECK(t.buffer != nullptr);
  constexpr DType kWanted = std::is_same_v<T, std::int32_t> ? DType::kI32 : DType::kF32;
  BATON_CHECK_MSG(t.dtype == kWanted, "the tensor is " + std::string(to_string(t.dtype)));
  if (t.rank > 0 && t.shape[static_cast<std::size_t>(t.rank - 1)] > 1) BATON_CHECK(t.stride[static_cast<std::size_t>(t.rank - 1)] == 1);
  auto* buffer = static_cast<CpuBuffer*>(t.buffer);
  return reinterpret_cast<T*>(buffer->data()) + t.offset;
}
template float* data_of<float>(const Tensor& t);
template std::int32_t* data_of<std::int32_t>(const Tensor& t);

RowView rows_of(const Tensor& t) {
  float* base = data_of<float>(t);
  if (t.rank == 1) return {base, 1, t.shape[0], 1, 0, 0};
  if (t.rank == 2) return {base, t.shape[0], t.shape[1], 1, t.stride[0], 0};
  BATON_CHECK(t.rank == 3);
  return {base, t.shape[0] * t.shape[1], t.shape[2], std::max<long>(t.shape[1], 1), t.stride[0], t.stride[1]};
}

CpuOps::CpuOps(Isa isa, Team& team) : isa_(isa), rows_(row_kernels(isa)), attention_(attention_kernels(isa)), team_(team) {
  for (int i = 0; i < team.size(); ++i) scratch_.push_back(std::make_unique<AttentionScratch>());
}

CpuOps::~CpuOps() = default;

Status CpuOps::take_error() {
  Status error = std::move(error_);
  error_ = Status();
  return error;
}

std::byte* CpuOps::work_space(std::size_t bytes, const char* op) {
  if (work_ != nullptr && work_->bytes() >= bytes) return work_->data();
  work_.reset();
  auto grown = CpuBuffer::allocate(bytes + bytes / 4);
  if (!grown.ok()) {
    if (error_.ok()) error_ = grown.status().with_context(std::string(op) + ", work space");
    return nullptr;
  }
  work_ = std::move(grown).value();
  return work_->data();
}

void CpuOps::linear(const Linear& weight, const Tensor& x, const Tensor& out) {
  const auto& w = static_cast<const CpuLinear&>(weight);
  const RowView in = rows_of(x), to = rows_of(out);
  BATON_CHECK(in.inner == 1 && to.inner == 1 && in.rows == to.rows && in.n == w.in_features() && to.n == w.out_features());
  if (in.rows == 0) return;
  std::byte* scratch = work_space(std::max<std::size_t>(w.scratch_bytes(in.rows), 64), "linear");
  if (scratch == nullptr) return;
  w.run(team_, in.base, in.outer_stride, in.rows, to.base, to.outer_stride, scratch);
}

}  // namespace baton::device::cpu
