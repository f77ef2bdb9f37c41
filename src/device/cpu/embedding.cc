#include "device/cpu/embedding.h"

#include <algorithm>
#include <string>

#include "device/cpu/cpu_ops.h"

namespace baton::device::cpu {

Result<std::unique_ptr<CpuEmbedding>> CpuEmbedding::create(const HostWeight& table, std::int32_t first_id) {
  const int block = block_weights(table.format);
  auto wrong = [](const std::string& what) { return Status(Code::kInvalidArgument, "embedding table: " + what); };
  if (table.data == nullptr || table.rows <= 0 || table.cols <= 0) return wrong("no data");
  if (table.cols % block != 0 || table.col_begin % block != 0 || table.col_end % block != 0)
    return wrong("columns are not whole blocks of " + std::to_string(block));
  if (table.col_begin < 0 || table.out_cols() <= 0 || table.col_end > table.cols) return wrong("columns out of range");
  for (std::int32_t row : table.row_map)
    if (row < 0 || row >= table.rows) return wrong("row " + std::to_string(row) + " of " + std::to_string(table.rows));
  return std::unique_ptr<CpuEmbedding>(new CpuEmbedding(table, first_id));
}

void CpuOps::embedding(const Embedding& table, const Tensor& ids, const Tensor& out) {
  const HostWeight& t = static_cast<const CpuEmbedding&>(table).table();
  const std::int32_t first = static_cast<const CpuEmbedding&>(table).first_id();
  const std::int32_t* id = data_of<std::int32_t>(ids);
  const RowView to = rows_of(out);
  BATON_CHECK(to.inner == 1 && to.rows == ids.shape[0] && to.n == t.out_cols());
  const std::size_t skip = static_cast<std::size_t>(t.col_begin / block_weights(t.format)) * block_bytes(t.format);
  for_rows(to.rows, to.n, [&](long r) {
    const std::int64_t at = std::int64_t{id[r]} - first;
    if (at < 0 || at >= t.out_rows()) return void(std::fill_n(to[r], to.n, 0.0f));
    const auto row = static_cast<std::size_t>(t.row_map.empty() ? at : t.row_map[static_cast<std::size_t>(at)]);
    dequantize(t.format, t.data + row * t.row_bytes() + skip, to.n, to[r]);
  });
}

}  // namespace baton::device::cpu
