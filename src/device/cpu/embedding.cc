#include "device/cpu/embedding.h"

#include <string>

#include "device/cpu/cpu_ops.h"

namespace baton::device::cpu {

Result<std::unique_ptr<CpuEmbedding>> CpuEmbedding::create(const HostWeight& table) {
  const int block = block_weights(table.format);
  auto wrong = [](const std::string& what) { return Status(Code::kInvalidArgument, "embedding table: " + what); };
  if (table.data == nullptr || table.rows <= 0 || table.cols <= 0) return wrong("no data");
  if (table.cols % block != 0 || table.col_begin % block != 0 || table.col_end % block != 0)
    return wrong("columns are not whole blocks of " + std::to_string(block));
  if (table.col_begin < 0 || table.out_cols() <= 0 || table.col_end > table.cols) return wrong("columns out of range");
  for (std::int32_t row : table.row_map)
    if (row < 0 || row >= table.rows) return wrong("row " + std::to_string(row) + " of " + std::to_string(table.rows));
  return std::unique_ptr<CpuEmbedding>(new CpuEmbedding(table));
}

void CpuOps::embedding(const Embedding& table, const Tensor& ids, const Tensor& out) {
  const HostWeight& t = static_cast<const CpuEmbedding&>(table).table();
  const std::int32_t* id = data_of<std::int32_t>(ids);
  const RowView to = rows_of(out);
  BATON_CHECK(to.inner == 1 && to.rows == ids.shape[0] && to.n == t.out_cols());
  const std::size_t skip = static_cast<std::size_t>(t.col_begin / block_weights(t.format)) * block_bytes(t.format);
  for_rows(to.rows, to.n, [&](long r) {
    BATON_CHECK_MSG(id[r] >= 0 && id[r] < t.out_rows(), "token id " + std::to_string(id[r]));
    const auto row = static_cast<std::size_t>(t.row_map.empty() ? id[r] : t.row_map[static_cast<std::size_t>(id[r])]);
    dequantize(t.format, t.data + row * t.row_bytes() + skip, to.n, to[r]);
  });
}

}  // namespace baton::device::cpu
