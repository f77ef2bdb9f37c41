#include "model/shard_plan.h"

#include <algorithm>

namespace baton::model {
namespace {

constexpr std::int32_t kVocabUnit = 16;  // rows that kernels take at once

// Some may come out empty, or with a border where there can be none.
std::vector<Shard> split(const ShardShape& s, int ranks) {
  std::vector<Shard> shards(static_cast<std::size_t>(ranks));
  const std::int32_t group = s.heads / s.kv_heads;
  if (ranks <= s.kv_heads) {
    const auto kv = split_evenly(s.kv_heads, 1, ranks);
    for (std::size_t r = 0; r < kv.size(); ++r) {
      shards[r].kv_heads = kv[r];
      shards[r].heads = {kv[r].begin * group, kv[r].end * group};
    }
  } else {
    std::size_t rank = 0;
    const auto sharing = split_evenly(ranks, 1, s.kv_heads);  // by KV head: the ranks that have a copy
    for (std::int32_t head = 0; head < s.kv_heads; ++head) {
      for (const Extent& part : split_evenly(group, s.head_unit, sharing[static_cast<std::size_t>(head)].size())) {
        shards[rank].kv_heads = {head, head + 1};
        shards[rank].heads = {head * group + part.begin, head * group + part.end};
        ++rank;
      }
    }
  }
  const auto ffn = split_evenly(s.ffn, s.ffn_unit, ranks), vocab = split_evenly(s.vocab, kVocabUnit, ranks);
  for (std::size_t r = 0; r < shards.size(); ++r) shards[r].ffn = ffn[r], shards[r].vocab = vocab[r];
  return shards;
}

bool works(const ShardShape& s, const std::vector<Shard>& shards) {
  return std::ranges::all_of(shards, [&](const Shard& shard) {
    return shard.heads.size() > 0 && shard.heads.begin % s.head_unit == 0 && shard.ffn.size() > 0 && shard.vocab.size() > 0;
  });
}

std::string list(const std::vector<int>& values) {
  std::string out;
  for (const int v : values) out += (out.empty() ? "" : ", ") + std::to_string(v);
  return out;
}

}  // namespace

std::vector<Extent> split_evenly(std::int32_t count, std::int32_t unit, int parts) {
  const std::int32_t units = count / unit, each = units / parts, more = units % parts;
  std::vector<Extent> out;
  std::int32_t at = 0;
  for (int i = 0; i < parts; ++i) {
    const std::int32_t end = i + 1 == parts ? count : at + (each + (i < more ? 1 : 0)) * unit;
    out.push_back({at, end});
    at = end;
  }
  return out;
}

std::vector<int> ShardPlan::degrees(const ShardShape& shape, int most) {
  std::vector<int> out;
  for (int ranks = 1; ranks <= most; ++ranks)
    if (works(shape, split(shape, ranks))) out.push_back(ranks);
  return out;
}

Result<ShardPlan> ShardPlan::make(const ShardShape& shape, int ranks) {
  ShardPlan plan;
  if (ranks >= 1 && ranks <= shape.heads) plan.shards_ = split(shape, ranks);
  if (plan.shards_.empty() || !works(shape, plan.shards_))
    return Status(Code::kInvalidArgument, "this model cannot be split over " + std::to_string(ranks) +
                                              " ranks; tensor-parallel degrees that work: " + list(degrees(shape, shape.heads)));
  return plan;
}

}  // namespace baton::model
