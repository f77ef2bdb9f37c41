#pragma once
// Strong integer ids: a BlockId is not a LayerId, and neither is an int.

#include <compare>
#include <cstdint>
#include <functional>

namespace baton {

template <class Tag, class Rep>
struct Id {
  Rep value{};
  constexpr Id() = default;
  constexpr explicit Id(Rep v) : value(v) {}
  constexpr auto operator<=>(const Id&) const = default;
};

using TokenId = std::int32_t;                          // an index into the vocabulary; plain, because arrays of it cross every border
using BlockId = Id<struct BlockTag, std::int32_t>;     // a block of a worker's KV pool
using SeqId = Id<struct SeqTag, std::uint64_t>;        // a sequence inside one engine
using LeaseId = Id<struct LeaseTag, std::uint64_t>;    // a reservation on a decode worker
using HoldId = Id<struct HoldTag, std::uint64_t>;      // KV that a prefill worker keeps until a decode worker is found for it
using Attempt = Id<struct AttemptTag, std::uint32_t>;  // one try of a request; grows with each retry
using Epoch = Id<struct EpochTag, std::uint64_t>;      // fencing counter; a transfer that bears an old one is void
using Incarnation = Id<struct IncarnationTag, std::uint64_t>;  // drawn at process start; a restarted peer is a new peer
using Rank = Id<struct RankTag, std::int32_t>;

}  // namespace baton

template <class Tag, class Rep>
struct std::hash<baton::Id<Tag, Rep>> {
  std::size_t operator()(const baton::Id<Tag, Rep>& id) const noexcept { return std::hash<Rep>{}(id.value); }
};
