#include "transfer/relayout.h"

#include <algorithm>

namespace baton::transfer {
namespace {

Status check_inside(const Placement& p, std::string_view side, int layer, Range heads, Range tokens) {
  const auto& spec = p.view.spec;
  const std::int64_t token_end = p.first_token + static_cast<std::int64_t>(p.blocks.size()) * spec.block_tokens;
  if (layer < 0 || layer >= spec.layers) return {Code::kDataLoss, std::string(side) + " has no layer " + std::to_string(layer)};
  if (heads.begin < p.heads.begin || heads.end > p.heads.end || heads.size() <= 0) {
    return {Code::kDataLoss,
            std::string(side) + " does not hold heads [" + std::to_string(heads.begin) + ", " + std::to_string(heads.end) + ")"};
  }
  if (tokens.begin < p.first_token || tokens.end > token_end || tokens.size() <= 0) {
    return {Code::kDataLoss,
            std::string(side) + " does not hold tokens [" + std::to_string(tokens.begin) + ", " + std::to_string(tokens.end) + ")"};
  }
  return {};
}

// Where the row of `token` starts, and how many tokens follow it in one piece.
struct Piece {
  std::int64_t offset;
  std::int32_t tokens;
};
Piece piece_at(const Placement& p, int layer, int head, device::KvKind kind, std::int32_t token) {
  const int bt = p.view.spec.block_tokens;
  const std::int32_t in_block = token % bt;
  const BlockId block = p.blocks[static_cast<std::size_t>((token - p.first_token) / bt)];
  const bool dense = p.view.token_stride == static_cast<std::int64_t>(p.view.spec.row_bytes());
  return {p.view.offset(layer, block, head - p.heads.begin, kind, in_block), dense ? bt - in_block : 1};
}

}  // namespace

Result<std::vector<ByteRun>> plan_runs(const Placement& source, const Placement& target, int layer, Range heads, Range tokens) {
  BATON_RETURN_IF_ERROR(check_inside(source, "the source", layer, heads, tokens));
  BATON_RETURN_IF_ERROR(check_inside(target, "the target", layer, heads, tokens));
  const auto row = static_cast<std::int64_t>(target.view.spec.row_bytes());
  if (static_cast<std::int64_t>(source.view.spec.row_bytes()) != row) return {Code::kDataLoss, "rows differ in size"};
  std::vector<ByteRun> runs;
  for (int head = heads.begin; head < heads.end; ++head) {
    for (const auto kind : {device::KvKind::kKey, device::KvKind::kValue}) {
      for (std::int32_t t = tokens.begin; t < tokens.end;) {
        const Piece from = piece_at(source, layer, head, kind, t), to = piece_at(target, layer, head, kind, t);
        const std::int32_t n = std::min({from.tokens, to.tokens, tokens.end - t});
        if (!runs.empty() && runs.back().source + runs.back().bytes == from.offset && runs.back().target + runs.back().bytes == to.offset) {
          runs.back().bytes += n * row;
        } else {
          runs.push_back({from.offset, to.offset, n * row});
        }
        t += n;
      }
    }
  }
  return runs;
}

Result<std::vector<ByteRun>> plan_local(const Placement& local, int layer, Range heads, Range tokens) {
  return plan_runs(local, local, layer, heads, tokens);
}

Status check_view(const device::KvView& view, std::uint64_t bytes) {
  const auto& s = view.spec;
  if (s.layers <= 0 || s.kv_heads <= 0 || s.head_dim <= 0 || s.block_tokens <= 0 || s.blocks <= 0) {
    return {Code::kInvalidArgument, "KV view with an empty dimension"};
  }
  // The last byte of the last row; in 128 bits, because a peer chose the numbers.
  __int128 end = static_cast<__int128>(s.row_bytes());
  const std::pair<std::int64_t, std::int64_t> dims[] = {{view.layer_stride, s.layers},
                                                        {view.block_stride, s.blocks},
                                                        {view.head_stride, s.kv_heads},
                                                        {view.kind_stride, 2},
                                                        {view.token_stride, s.block_tokens}};
  for (const auto& [stride, count] : dims) {
    if (stride < 0) return {Code::kInvalidArgument, "KV view with a negative stride"};
    end += static_cast<__int128>(stride) * (count - 1);
  }
  if (end > static_cast<__int128>(bytes))
    return {Code::kInvalidArgument, "KV view leaves its region of " + std::to_string(bytes) + " bytes"};
  return {};
}

}  // namespace baton::transfer
