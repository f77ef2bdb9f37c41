#include "sim/pool.h"

#include <algorithm>

#include "model/shard_plan.h"

namespace baton::sim {

Pool::Pool(const ModelShape& model, int block_tokens, std::int32_t blocks, int ranks) : spec_(model.spec(block_tokens, blocks)) {
  // Query heads enough for every rank to have one.
  const model::ShardShape shape{.heads = model.kv_heads * ranks, .kv_heads = model.kv_heads, .ffn = ranks, .vocab = kVocab};
  const model::ShardPlan plan = model::ShardPlan::make(shape, ranks).value();
  holders_.resize(static_cast<std::size_t>(model.kv_heads));
  for (int r = 0; r < ranks; ++r) {
    const model::Extent heads = plan.of(Rank(r)).kv_heads;
    device::KvSpec own = spec_;
    own.kv_heads = heads.size();
    parts_.push_back({3 + r, own.bytes(), device::KvView::dense(own), {heads.begin, heads.end}});
    memory_.emplace_back(own.bytes() / sizeof(std::uint64_t), 0);
    for (int h = heads.begin; h < heads.end; ++h) {
      Holders& holders = holders_[static_cast<std::size_t>(h)];
      if (holders.count++ == 0) holders.first = r;
      copies_max_ = std::max(copies_max_, holders.count);
    }
  }
  for (auto& words : memory_) bytes_.push_back(std::as_writable_bytes(std::span(words)));
  const_bytes_.assign(bytes_.begin(), bytes_.end());
}

}  // namespace baton::sim
