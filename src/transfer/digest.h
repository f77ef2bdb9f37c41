#pragma once
// The digest of handed-over KV: XXH3-128 over the rows of a chunk in one order that no layout has a say in: for each head, for K then V,
// for tokens ascending. Source and target compute it over their own memory, so equal digests mean equal logical KV, whatever the block
// sizes. It finds damage and races, not malice: peers are authenticated by the link.

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/ids.h"

namespace baton::transfer {

struct Digest {
  std::uint64_t high = 0, low = 0;
  auto operator<=>(const Digest&) const = default;
};
std::string to_string(const Digest& digest);

// Streaming: update() in any pieces gives the digest of the bytes in order.
class Digester {
 public:
  Digester();
  void reset();
  void update(const void* bytes, std::size_t count) { update_(state(), bytes, count); }
  Digest finish() const;

 private:
  void* state() { return storage_.data(); }
  using Update = void (*)(void* state, const void* bytes, std::size_t count);
  Update update_;  // of the machine's instruction set; all give the same value
  alignas(64) std::array<std::byte, 640> storage_;
};

// What a hand-off's two sides must agree on before any KV moves: the very ids whose KV it is.
Digest digest_ids(std::span<const TokenId> ids);

}  // namespace baton::transfer
