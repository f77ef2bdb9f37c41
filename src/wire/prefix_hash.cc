#include "wire/prefix_hash.h"

#define XXH_STATIC_LINKING_ONLY  // for XXH3_state_t on the stack
#include <xxhash.h>

#include <bit>

#include "base/status.h"

namespace baton::wire {
namespace {

static_assert(std::endian::native == std::endian::little, "block hashes are defined over little-endian bytes");

BlockHash from_xxh(XXH128_hash_t h) { return {.high = h.high64, .low = h.low64}; }

}  // namespace

BlockHash prefix_root(std::string_view salt) { return from_xxh(XXH3_128bits(salt.data(), salt.size())); }

BlockHash prefix_extend(const BlockHash& previous, std::span<const TokenId> block) {
  const std::uint64_t head[2] = {previous.low, previous.high};
  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_128bits_reset(&state);
  XXH3_128bits_update(&state, head, sizeof head);
  XXH3_128bits_update(&state, block.data(), block.size_bytes());
  return from_xxh(XXH3_128bits_digest(&state));
}

std::vector<BlockHash> prefix_chain(std::span<const TokenId> ids, int block_tokens, std::string_view salt) {
  BATON_CHECK(block_tokens > 0);
  const auto size = static_cast<std::size_t>(block_tokens);
  std::vector<BlockHash> chain;
  chain.reserve(ids.size() / size);
  BlockHash previous = prefix_root(salt);
  for (std::size_t i = 0; i + size <= ids.size(); i += size) {
    previous = prefix_extend(previous, ids.subspan(i, size));
    chain.push_back(previous);
  }
  return chain;
}

}  // namespace baton::wire
