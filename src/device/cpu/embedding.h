#pragma once

#include "device/ops.h"
#include "device/types.h"

namespace baton::device::cpu {

// Keeps the mapped table and expands a row when it is asked for: a step reads a few rows out of a hundred thousand.
class CpuEmbedding final : public Embedding {
 public:
  static Result<std::unique_ptr<CpuEmbedding>> create(const HostWeight& table, std::int32_t first_id);
  const HostWeight& table() const { return table_; }
  // Of its first row. Ids outside are another rank's where the table is a part.
  std::int32_t first_id() const { return first_id_; }

 private:
  CpuEmbedding(const HostWeight& table, std::int32_t first_id) : table_(table), first_id_(first_id) {}
  HostWeight table_;
  std::int32_t first_id_;
};

}  // namespace baton::device::cpu
