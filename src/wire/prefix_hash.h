#pragma once
// The identity of cached KV: a chain of hashes over full blocks of token ids. Block i's hash covers all tokens up to its end, so equal
// hashes mean equal prefixes. Gateway and workers compute it alike.

#include <compare>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "base/ids.h"

namespace baton::wire {

struct BlockHash {
  std::uint64_t high = 0, low = 0;
  auto operator<=>(const BlockHash&) const = default;
};

// The chain's start: what the first block's hash continues. `salt` separates tenants.
BlockHash prefix_root(std::string_view salt);
// The hash of one full block after `previous`: XXH3-128 over (previous hash, the block's ids), all as little-endian bytes.
BlockHash prefix_extend(const BlockHash& previous, std::span<const TokenId> block);

// One hash for each full block of `ids`; `salt` separates tenants.
std::vector<BlockHash> prefix_chain(std::span<const TokenId> ids, int block_tokens, std::string_view salt);

}  // namespace baton::wire

template <>
struct std::hash<baton::wire::BlockHash> {
  std::size_t operator()(const baton::wire::BlockHash& h) const noexcept { return static_cast<std::size_t>(h.low); }
};
