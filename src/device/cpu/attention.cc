// The sharing out of attention: (sequence, KV head, block of query rows) are independent; where they are too few for
// the team, the context is split as well, tile by tile, and the tiles merged in index order to the same bits.

#include <algorithm>
#include <atomic>

#include "device/cpu/cpu_ops.h"
#include "device/cpu/kv_pool.h"

namespace baton::device::cpu {

namespace {

// All attention blocks of a step in a fixed order: sequence, KV head, query rows.
class Plan {
 public:
  Plan(const StepMeta& meta, const CpuKvPool& pool, int layer, const Tensor& q, float scale, const Tensor& out)
      : meta_(meta), view_(pool.view()), base_(pool.data() + layer * view_.layer_stride), heads_(view_.spec.kv_heads) {
    const RowView queries = rows_of(q), to = rows_of(out);
    common_.q = queries.base;
    common_.q_stride = queries.outer_stride;
    common_.q_head_stride = queries.inner_stride;
    common_.out = to.base;
    common_.out_stride = to.outer_stride;
    common_.out_head_stride = to.inner_stride;
    common_.group = static_cast<int>(queries.inner) / heads_;
    common_.scale = scale;
    common_.dtype = view_.spec.dtype;
    common_.head_dim = view_.spec.head_dim;
    common_.block_tokens = view_.spec.block_tokens;
    common_.block_bytes = view_.block_stride;
    common_.token_bytes = view_.token_stride;
    for (int s = 0; s < meta.seqs(); ++s) blocks_ += blocks_of(s) * heads_;
  }

  int blocks() const { return blocks_; }

  // Walks forward through the blocks: indices of successive calls with one cursor must not fall.
  struct Cursor {
    int seq = 0, first = 0;
  };
  AttentionBlock block(int index, Cursor& at) const {
    while (index >= at.first + blocks_of(at.seq) * heads_) at.first += blocks_of(at.seq++) * heads_;
    const int head = (index - at.first) / blocks_of(at.seq), part = (index - at.first) % blocks_of(at.seq), s = at.seq;
    AttentionBlock b = common_;
    const std::int32_t token = meta_.q_start[static_cast<std::size_t>(s)];
    b.q += token * b.q_stride + head * b.group * b.q_head_stride;
    b.out += token * b.out_stride + head * b.group * b.out_head_stride;
    b.row_begin = part * kQueryRows;
    b.row_end = std::min(b.row_begin + kQueryRows, queries(s) * b.group);
    b.first_position = meta_.kv_len[static_cast<std::size_t>(s)] - queries(s);
    b.k = base_ + head * view_.head_stride;
    b.v = b.k + view_.kind_stride;
    b.table = meta_.block_tables.data() + static_cast<std::ptrdiff_t>(s) * meta_.max_blocks;
    return b;
  }

 private:
  int queries(int s) const { return meta_.q_start[static_cast<std::size_t>(s) + 1] - meta_.q_start[static_cast<std::size_t>(s)]; }
  int blocks_of(int s) const { return (queries(s) * common_.group + kQueryRows - 1) / kQueryRows; }

  const StepMeta& meta_;
  const KvView& view_;
  const std::byte* base_;
  const int heads_;
  AttentionBlock common_;
  int blocks_ = 0;
};

void check(const StepMeta& meta, const KvSpec& spec, int layer, const Tensor& q, const Tensor& out) {
  BATON_CHECK(q.rank == 3 && out.rank == 3 && q.shape == out.shape && q.shape[0] == meta.tokens() && q.shape[2] == spec.head_dim &&
              q.shape[1] % spec.kv_heads == 0 && layer >= 0 && layer < spec.layers);
  BATON_CHECK(meta.q_start.size() == meta.kv_len.size() + 1 && meta.q_start.back() <= meta.tokens());
  for (std::size_t s = 0; s < meta.kv_len.size(); ++s) {
    BATON_CHECK(meta.q_start[s + 1] >= meta.q_start[s] && meta.kv_len[s] >= meta.q_start[s + 1] - meta.q_start[s]);
    const int blocks = (meta.kv_len[s] + spec.block_tokens - 1) / spec.block_tokens;
    BATON_CHECK(blocks <= meta.max_blocks);
    for (int b = 0; b < blocks; ++b) {
      const std::int32_t id = meta.block_tables[s * static_cast<std::size_t>(meta.max_blocks) + static_cast<std::size_t>(b)];
      BATON_CHECK(id >= 0 && id < spec.blocks);
    }
  }
}

}  // namespace

void CpuOps::attention(const StepMeta& meta, const KvPool& pool, int layer, const Tensor& q, float scale, const Tensor& out) {
  const auto& source = static_cast<const CpuKvPool&>(pool);
  check(meta, source.view().spec, layer, q, out);
  const Plan plan(meta, source, layer, q, scale, out);
  const int blocks = plan.blocks(), members = team_.size();
  if (members == 1) {
    Plan::Cursor at;
    for (int i = 0; i < blocks; ++i) attention_.whole(plan.block(i, at), *scratch_[0]);
    return;
  }

  // Few blocks: share out tiles instead, if their partial results fit in a bound.
  constexpr int kBlocksEnough = 4;  // per member
  constexpr std::size_t kPartialBytesMax = 8u << 20;
  int tiles = 0;
  std::size_t floats = 0;
  if (blocks < kBlocksEnough * members) {
    Plan::Cursor at;
    for (int i = 0; i < blocks; ++i) {
      const AttentionBlock b = plan.block(i, at);
      tiles += b.tiles();
      floats += static_cast<std::size_t>(b.tiles()) * partial_floats(b.row_end - b.row_begin, b.head_dim);
    }
  }
  std::atomic<int> next{0};
  if (tiles <= blocks || floats * sizeof(float) > kPartialBytesMax) {
    team_.run([&](int member) {
      Plan::Cursor at;
      for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < blocks;)
        attention_.whole(plan.block(i, at), *scratch_[static_cast<std::size_t>(member)]);
    });
    return;
  }

  auto* partials = reinterpret_cast<float*>(work_space(floats * sizeof(float), "attention"));
  if (partials == nullptr) return;
  team_.run([&](int member) {
    Plan::Cursor at;
    int i = 0, first = 0;  // the block that holds tile `t`, and the number of its first tile
    float* to = partials;  // and of its partial results
    AttentionBlock b = plan.block(0, at);
    for (int t; (t = next.fetch_add(1, std::memory_order_relaxed)) < tiles;) {
      while (t >= first + b.tiles()) {
        first += b.tiles();
        to += static_cast<std::size_t>(b.tiles()) * partial_floats(b.row_end - b.row_begin, b.head_dim);
        b = plan.block(++i, at);
      }
      attention_.tile(b, t - first, *scratch_[static_cast<std::size_t>(member)],
                      to + static_cast<std::size_t>(t - first) * partial_floats(b.row_end - b.row_begin, b.head_dim));
    }
  });
  next.store(0, std::memory_order_relaxed);
  team_.run([&](int member) {
    Plan::Cursor at;
    const float* from = partials;
    for (int i = 0; i < blocks; ++i) {
      const AttentionBlock b = plan.block(i, at);
      if (i % members == member) attention_.merge(b, from, *scratch_[static_cast<std::size_t>(member)]);
      from += static_cast<std::size_t>(b.tiles()) * partial_floats(b.row_end - b.row_begin, b.head_dim);
    }
  });
}

}  // namespace baton::device::cpu
