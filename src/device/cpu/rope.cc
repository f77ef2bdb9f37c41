#include "device/cpu/rope.h"

#include <cmath>

#include "device/cpu/cpu_ops.h"

namespace baton::device::cpu {

Result<std::unique_ptr<CpuRopeTable>> CpuRopeTable::create(std::span<const double> inverse_frequencies, std::int64_t positions,
                                                           double attention_factor) {
  if (inverse_frequencies.empty() || positions <= 0) return Status(Code::kInvalidArgument, "a RoPE table needs frequencies and positions");
  auto table = std::make_unique<CpuRopeTable>();
  table->half_ = static_cast<long>(inverse_frequencies.size());
  table->positions_ = positions;
  BATON_ASSIGN_OR_RETURN(table->buffer_,
                         CpuBuffer::allocate(static_cast<std::size_t>(positions) * 2 * inverse_frequencies.size() * sizeof(float)));
  table->values_ = reinterpret_cast<float*>(table->buffer_->data());
  float* out = table->values_;
  for (std::int64_t p = 0; p < positions; ++p, out += 2 * table->half_)
    for (long i = 0; i < table->half_; ++i) {
      const double angle = static_cast<double>(p) * inverse_frequencies[static_cast<std::size_t>(i)];
      out[i] = static_cast<float>(std::cos(angle) * attention_factor);
      out[table->half_ + i] = static_cast<float>(std::sin(angle) * attention_factor);
    }
  return table;
}

void CpuOps::rope(const RopeTable& table, const Tensor& positions, const Tensor& x) {
  const auto& t = static_cast<const CpuRopeTable&>(table);
  const RowView heads = rows_of(x);
  const std::int32_t* position = data_of<std::int32_t>(positions);
  BATON_CHECK(x.rank == 3 && positions.shape[0] == x.shape[0] && heads.n == 2 * t.half());
  for_rows(x.shape[0], heads.inner * heads.n, [&](long token) {
    const std::int32_t p = position[token];
    BATON_CHECK(p >= 0 && p < t.positions());
    for (long h = 0; h < heads.inner; ++h) rows_.rope(heads[token * heads.inner + h], t.cos(p), t.sin(p), t.half());
  });
}

}  // namespace baton::device::cpu
