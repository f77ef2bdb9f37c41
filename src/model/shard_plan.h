#pragma once
// Which part of a model each rank of a tensor-parallel group holds. Pure: a function of the model's shape and the degree, so that every
// process that knows both knows where each KV head lies.
//
// Attention is split by KV heads with all their query heads (one group). Where there are more ranks than KV heads, several ranks share a
// group: each holds a copy of its one KV head and a part of its query heads. So on every rank each KV head has equally many query heads, in
// order, which is what attention kernels want. The FFN is split along its inner dimension, embedding and head along the vocabulary.
// Nothing needs to divide evenly; ranks with less wait for those with more.

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"

namespace baton::model {

struct Extent {  // [begin, end)
  std::int32_t begin = 0, end = 0;
  std::int32_t size() const { return end - begin; }
  bool operator==(const Extent&) const = default;
};

struct ShardShape {
  std::int32_t heads = 0, kv_heads = 0, ffn = 0, vocab = 0;
  // What a rank's part of the o projection's and of the FFN's inner dimension must be a multiple of: the weights that share a scale cannot
  // be parted. In query heads, and in columns.
  std::int32_t head_unit = 1, ffn_unit = 1;
};

struct Shard {
  Extent heads, kv_heads, ffn, vocab;
};

class ShardPlan {
 public:
  // kInvalidArgument names the degrees that work.
  static Result<ShardPlan> make(const ShardShape& shape, int ranks);
  // Those up to `most` that make() takes.
  static std::vector<int> degrees(const ShardShape& shape, int most);

  int ranks() const { return static_cast<int>(shards_.size()); }
  const Shard& of(Rank rank) const { return shards_.at(static_cast<std::size_t>(rank.value)); }

 private:
  std::vector<Shard> shards_;
};

// [0, count) in `parts` pieces of whole units, as even as they can be, the larger ones first. Pieces may be empty; the last has the
// remainder that is no whole unit.
std::vector<Extent> split_evenly(std::int32_t count, std::int32_t unit, int parts);

}  // namespace baton::model
