#include <cstring>

#include "device/cpu/cpu_ops.h"
#include "device/cpu/kv_pool.h"

namespace baton::device::cpu {

void CpuOps::kv_write(const StepMeta& meta, KvPool& pool, int layer, const Tensor& k, const Tensor& v) {
  auto& target = static_cast<CpuKvPool&>(pool);
  const KvView& view = target.view();
  const RowView keys = rows_of(k), values = rows_of(v);
  const std::int32_t* slots = data_of<std::int32_t>(meta.d_slots);
  const int heads = view.spec.kv_heads, dim = view.spec.head_dim, block_tokens = view.spec.block_tokens;
  BATON_CHECK(k.rank == 3 && v.rank == 3 && k.shape[0] == meta.d_slots.shape[0] && keys.inner == heads && values.inner == heads &&
              keys.n == dim && values.n == dim && keys.rows == values.rows && layer >= 0 && layer < view.spec.layers);
  for_rows(k.shape[0], 2L * heads * dim, [&](long token) {
    const std::int32_t slot = slots[token];
    BATON_CHECK(slot >= 0 && slot / block_tokens < view.spec.blocks);
    const BlockId block(slot / block_tokens);
    for (int h = 0; h < heads; ++h) {
      std::byte* key = target.data() + view.offset(layer, block, h, KvKind::kKey, slot % block_tokens);
      rows_.convert(keys[token * heads + h], view.spec.dtype, dim, key);
      rows_.convert(values[token * heads + h], view.spec.dtype, dim, key + view.kind_stride);
    }
  });
}

void CpuOps::copy_blocks(KvPool& pool, std::span<const BlockCopy> copies) {
  auto& target = static_cast<CpuKvPool&>(pool);
  const KvView& view = target.view();
  for (const BlockCopy& copy : copies) {
    BATON_CHECK(copy.from.value >= 0 && copy.from.value < view.spec.blocks && copy.to.value >= 0 && copy.to.value < view.spec.blocks);
    if (copy.from == copy.to) continue;
    for (int layer = 0; layer < view.spec.layers; ++layer) {
      std::byte* base = target.data() + layer * view.layer_stride;  // a block of a layer is one run of bytes
      std::memcpy(base + copy.to.value * view.block_stride, base + copy.from.value * view.block_stride,
                  static_cast<std::size_t>(view.block_stride));
    }
  }
}

}  // namespace baton::device::cpu
