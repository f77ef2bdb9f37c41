#pragma once
// Re-layout is addressing: a logical range (layer, heads, tokens) of one pool becomes byte runs, in the digest's order, whatever the block
// sizes, strides, element types and head shards of the two pools are.

#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "device/kv_view.h"
#include "transfer/fabric.h"
#include "transfer/messages.h"

namespace baton::transfer {

// One side of a copy: a pool, and the blocks that hold tokens [first_token, ...) of the sequence; first_token is a multiple of the pool's
// block size.
struct Placement {
  std::span<const RegionPart> parts;
  std::span<const BlockId> blocks;
  std::int32_t first_token = 0;
};

// (layer, heads, tokens) from `source` to `target`: each head is read from the first part of the source that holds it, and written to every
// part of the target that does. kDataLoss where the range is not inside both placements: a peer's message is wrong.
Result<CopyPlan> plan_copy(const Placement& source, const Placement& target, int layer, Range heads, Range tokens);
// The runs of one placement, as targets: what its owner digests.
Result<std::vector<ByteRun>> plan_local(const Placement& local, int layer, Range heads, Range tokens);

// Whether a view is sane and stays inside `bytes`: strides positive and wide enough that no two rows overlap is the owner's business,
// leaving the region is ours.
Status check_view(const device::KvView& view, std::uint64_t bytes);
// Whether the parts of a pool are sane, agree with each other, and hold all heads of the model in ascending order.
Status check_region(const SourceRegion& region, const wire::KvSchema& kv);

// The heads that each part speaks for, being the first that holds them; parts that only repeat others are left out. Their announcements
// together cover every head once.
std::vector<Range> announced_heads(std::span<const RegionPart> parts);

// The blocks that hold `tokens`, as indices into a block table.
inline Range block_range(Range tokens, int block_tokens) {
  return {tokens.begin / block_tokens, (tokens.end + block_tokens - 1) / block_tokens};
}

}  // namespace baton::transfer
