#pragma once

#include "device/ops.h"
#include "device/types.h"

namespace baton::device::cpu {

// Keeps the mapped table and expands a row when it is asked for: a step reads a few rows out of a hundred thousand.
class CpuEmbedding final : public Embedding {
 public:
  static Result<std::unique_ptr<CpuEmbedding>> create(const HostWeight& table);
  const HostWeight& table() const { return table_; }

 private:
  explicit CpuEmbedding(const HostWeight& table) : table_(table) {}
  HostWeight table_;
};

}  // namespace baton::device::cpu
