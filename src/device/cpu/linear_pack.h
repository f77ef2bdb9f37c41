#pragma once
// From weights in their file's format to the kernels' panels (linear_layout.h).

#include <cstddef>
#include <cstdint>
#include <span>

#include "device/cpu/linear_layout.h"
#include "device/types.h"

namespace baton::device::cpu {

// The kind in which `format` is kept for arithmetic in `compute`: block formats stay quantised whatever the arithmetic; plain ones become
// bf16 for kBF16 and f32 for kF32. kInt8 is for block formats only.
PackKind pack_kind(WeightFormat format, ComputeType compute);

struct RowSource {
  const HostWeight* part;
  std::int64_t row;  // stored
};
// Writes the panels of `rows`, whose formats all have pack_kind `kind`. `out` is zeroed memory of ceil(rows / 32) * panel_bytes.
void pack_panels(PackKind kind, std::span<const RowSource> rows, std::byte* out);

}  // namespace baton::device::cpu
