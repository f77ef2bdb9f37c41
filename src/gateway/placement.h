#pragma once
// Where a request goes. Pure integer arithmetic over the registry; equal candidates are told apart by how often they were chosen, then by
// id, so a trace repeats.

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "gateway/registry.h"
#include "wire/prefix_hash.h"

namespace baton::gateway {

enum class Fallback : std::uint8_t {
  kLocal,  // when a role has no worker left, the other role prefills and decodes alone
  kFail,   // then requests fail with kUnavailable
};

// What a placement must provide for.
struct Need {
  std::span<const TokenId> ids;
  int choices = 1;
  std::int32_t new_tokens = 0;  // at most, per choice
  std::string_view salt;
};

// Workers that this request has tried.
struct Tried {
  std::set<WorkerId> refused;  // full or not serving: not asked again
  std::set<WorkerId> failed;   // asked again only if there is no other
};

struct DecodePlacement {
  WorkerId worker;
  bool local_prefill = false;  // no hand-off
  bool fallback = false;       // local although the cluster is meant to disaggregate
};

class Placement {
 public:
  explicit Placement(const Registry& registry) : registry_(registry) {}

  // kUnavailable if no worker can take it, with what is wrong with each; kResourceExhausted if those that could have no room for its
  // sequences now.
  Result<DecodePlacement> decode(const Need& need, const Tried& tried, Fallback fallback) const;
  // The prefill worker with the earliest expected end among those whose KV pool holds the prompt beside all that they have been given;
  // kResourceExhausted if none does now.
  Result<WorkerId> prefill(const Need& need, const Tried& tried) const;
  // KV blocks that a hand-off of `need` takes on the prefill worker `worker`.
  std::int64_t prefill_blocks(WorkerId worker, const Need& need) const;
  // The time that the prompt takes on the worker that is fastest with it, were there no queue; 0 if nobody has measured itself.
  Duration least_prefill(const Need& need) const;
  // Expected time from now until `worker` has prefilled `need`, its queue included.
  Duration prefill_estimate(WorkerId worker, const Need& need) const;
  // KV blocks that `need` may come to take on `worker`.
  std::int64_t blocks(WorkerId worker, const Need& need) const;

 private:
  class Chains;
  bool has_room(WorkerId id, const Need& need) const;
  bool holds_prompt(WorkerId id, const Need& need) const;
  Result<DecodePlacement> among(std::vector<WorkerId> candidates, const Need& need, const Tried& tried, bool local, bool fallback) const;
  WorkerId best_decode(const std::vector<WorkerId>& candidates, const Need& need, const Tried& tried) const;
  std::int64_t expected_us(const Worker& worker, const Need& need, Chains& chains) const;

  const Registry& registry_;
};

}  // namespace baton::gateway
