#include "transfer/relayout.h"

#include <algorithm>

#include "base/mutant.h"

namespace baton::transfer {
namespace {

bool holds(const RegionPart& part, int head) { return part.heads.begin <= head && head < part.heads.end; }

// Index of the first part that holds the head, or of the next after `after` that does; parts.size() if there is none.
std::size_t holder(std::span<const RegionPart> parts, int head, std::size_t first = 0) {
  while (first < parts.size() && !holds(parts[first], head)) ++first;
  return first;
}

const device::KvSpec& spec_of(const Placement& p) { return p.parts.front().view.spec; }

Status check_inside(const Placement& p, std::string_view side, int layer, Range heads, Range tokens) {
  const auto& spec = spec_of(p);
  const std::int64_t token_end = p.first_token + static_cast<std::int64_t>(p.blocks.size()) * spec.block_tokens;
  if (layer < 0 || layer >= spec.layers) return {Code::kDataLoss, std::string(side) + " has no layer " + std::to_string(layer)};
  bool held = heads.size() > 0;
  for (int head = heads.begin; held && head < heads.end; ++head) held = holder(p.parts, head) < p.parts.size();
  if (!held) {
    return {Code::kDataLoss,
            std::string(side) + " does not hold heads [" + std::to_string(heads.begin) + ", " + std::to_string(heads.end) + ")"};
  }
  if (tokens.begin < p.first_token || tokens.end > token_end || tokens.size() <= 0) {
    return {Code::kDataLoss,
            std::string(side) + " does not hold tokens [" + std::to_string(tokens.begin) + ", " + std::to_string(tokens.end) + ")"};
  }
  return {};
}

// The rows of one head and kind in one part of a pool.
struct Rows {
  const Placement& placement;
  std::size_t part;
  int layer, head;
  device::KvKind kind;

  // Where the row of `token` starts, and how many tokens follow it in one piece.
  std::pair<std::int64_t, std::int32_t> piece(std::int32_t token) const {
    const RegionPart& own = placement.parts[part];
    const int bt = own.view.spec.block_tokens;
    const std::int32_t in_block = token % bt;
    const BlockId block = placement.blocks[static_cast<std::size_t>((token - placement.first_token) / bt)];
    const bool dense = own.view.token_stride == static_cast<std::int64_t>(own.view.spec.row_bytes());
    return {own.view.offset(layer, block, head - own.heads.begin, kind, in_block), dense ? bt - in_block : 1};
  }
  std::int64_t row_bytes() const { return static_cast<std::int64_t>(placement.parts[part].view.spec.row_bytes()); }
};

void append(std::vector<ByteRun>& runs, const Rows& from, const Rows& to, Range tokens) {
  const std::int64_t source_row = from.row_bytes(), target_row = to.row_bytes();
  const auto source_part = static_cast<std::int32_t>(from.part), target_part = static_cast<std::int32_t>(to.part);
  for (std::int32_t t = tokens.begin; t < tokens.end;) {
    const auto [source, source_tokens] = from.piece(t);
    const auto [target, target_tokens] = to.piece(t);
    const std::int32_t n = std::min({source_tokens, target_tokens, tokens.end - t});
    ByteRun* last = runs.empty() ? nullptr : &runs.back();
    if (last != nullptr && last->source_part == source_part && last->target_part == target_part && last->source + last->bytes == source &&
        last->target + last->bytes / source_row * target_row == target) {
      last->bytes += n * source_row;
    } else {
      runs.push_back({source, target, n * source_row, source_part, target_part});
    }
    t += n;
  }
}

bool is_float(device::DType type) { return type == device::DType::kBF16 || type == device::DType::kF16 || type == device::DType::kF32; }

}  // namespace

Result<CopyPlan> plan_copy(const Placement& source, const Placement& target, int layer, Range heads, Range tokens) {
  BATON_RETURN_IF_ERROR(check_inside(source, "the source", layer, heads, tokens));
  BATON_RETURN_IF_ERROR(check_inside(target, "the target", layer, heads, tokens));
  if (spec_of(source).head_dim != spec_of(target).head_dim) return {Code::kDataLoss, "rows differ in size"};
  CopyPlan plan;
  plan.from = spec_of(source).dtype;
  plan.to = spec_of(target).dtype;
  for (int head = heads.begin; head < heads.end; ++head) {
    const std::size_t from = holder(source.parts, head), to = holder(target.parts, head);
    for (const auto kind : {device::KvKind::kKey, device::KvKind::kValue}) {
      const Rows rows{target, to, layer, head, kind};
      append(plan.runs, {source, from, layer, head, kind}, rows, tokens);
      if (BATON_MUTANT(replica_not_filled)) continue;
      for (std::size_t other = holder(target.parts, head, to + 1); other < target.parts.size();
           other = holder(target.parts, head, other + 1)) {
        append(plan.replicas, rows, {target, other, layer, head, kind}, tokens);
      }
    }
  }
  return plan;
}

Result<std::vector<ByteRun>> plan_local(const Placement& local, int layer, Range heads, Range tokens) {
  BATON_ASSIGN_OR_RETURN(CopyPlan plan, plan_copy(local, local, layer, heads, tokens));
  return std::move(plan.runs);
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

Status check_region(const SourceRegion& region, const wire::KvSchema& kv) {
  if (region.parts.empty()) return {Code::kInvalidArgument, "a KV pool without parts"};
  const device::KvSpec& first = region.spec();
  const auto shapeless = [] { return Status(Code::kInvalidArgument, "the pool does not have the shape of its KV schema"); };
  if (!is_float(first.dtype) || to_string(first.dtype) != kv.dtype) return shapeless();
  std::int32_t begin = 0, end = 0;  // of the part before; every head up to `end` is held
  for (const RegionPart& part : region.parts) {
    const device::KvSpec& spec = part.view.spec;
    if (spec.layers != kv.layers || spec.head_dim != kv.head_dim || spec.dtype != first.dtype || part.heads.size() != spec.kv_heads ||
        part.heads.end > kv.kv_heads)
      return shapeless();
    if (spec.block_tokens != first.block_tokens || spec.blocks != first.blocks)
      return {Code::kInvalidArgument, "the ranks of one pool differ in their blocks"};
    if (part.heads.begin < begin || part.heads.begin > end || part.heads.end < end)
      return {Code::kInvalidArgument, "the ranks' KV heads are not in order"};
    begin = part.heads.begin, end = part.heads.end;
    BATON_RETURN_IF_ERROR(check_view(part.view, part.bytes));
  }
  if (end != kv.kv_heads) return {Code::kInvalidArgument, "the ranks hold " + std::to_string(end) + " of the KV heads only"};
  return {};
}

std::vector<Range> announced_heads(std::span<const RegionPart> parts) {
  std::vector<Range> out;
  std::int32_t end = 0;
  for (const RegionPart& part : parts) {
    if (part.heads.end <= end && !BATON_MUTANT(head_announced_twice)) continue;
    out.push_back({BATON_MUTANT(head_announced_twice) ? part.heads.begin : std::max(end, part.heads.begin), part.heads.end});
    end = part.heads.end;
  }
  return out;
}

}  // namespace baton::transfer
