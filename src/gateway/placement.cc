#include "gateway/placement.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>

namespace baton::gateway {
namespace {

constexpr std::int64_t kTokensPerSecondUnknown = 1000;  // of a worker that has not measured itself yet

std::vector<WorkerId> without(std::vector<WorkerId> workers, const std::set<WorkerId>& refused) {
  std::erase_if(workers, [&](WorkerId id) { return refused.contains(id); });
  return workers;
}

}  // namespace

// The request's hash chain for each block size among the workers: usually one.
class Placement::Chains {
 public:
  explicit Chains(const Need& need) : need_(need) {}
  std::int64_t hit_tokens(const Worker& worker) {
    const int block = worker.status.block_tokens;
    if (block <= 0) return 0;
    auto found = chains_.find(block);
    if (found == chains_.end()) found = chains_.emplace(block, wire::prefix_chain(need_.ids, block, need_.salt)).first;
    return static_cast<std::int64_t>(worker.prefixes.match(found->second)) * block;
  }

 private:
  const Need& need_;
  std::map<int, std::vector<wire::BlockHash>> chains_;
};

std::int64_t Placement::blocks(WorkerId id, const Need& need) const {
  const std::int64_t block = std::max(1, registry_.at(id).status.block_tokens);
  const auto prompt = static_cast<std::int64_t>(need.ids.size());
  // The choices share the prompt's full blocks.
  return prompt / block + need.choices * ((prompt % block + need.new_tokens + block - 1) / block);
}

std::int64_t Placement::expected_us(const Worker& worker, const Need& need, Chains& chains) const {
  const std::int64_t queued = worker.prefill_backlog();
  const std::int64_t rest = static_cast<std::int64_t>(need.ids.size()) - chains.hit_tokens(worker);
  const std::int64_t measured = worker.prefill_speed(), speed = measured > 0 ? measured : kTokensPerSecondUnknown;
  return (queued + std::max<std::int64_t>(1, rest)) * 1'000'000 / speed;
}

Duration Placement::prefill_estimate(WorkerId id, const Need& need) const {
  Chains chains(need);
  return Duration(expected_us(registry_.at(id), need, chains));
}

std::int64_t Placement::prefill_blocks(WorkerId id, const Need& need) const {
  const std::int64_t block = std::max(1, registry_.at(id).status.block_tokens);
  return (static_cast<std::int64_t>(need.ids.size()) + block - 1) / block;
}

Duration Placement::least_prefill(const Need& need) const {
  Chains chains(need);
  std::optional<std::int64_t> least;
  for (const WorkerId id : registry_.prefilling()) {
    const Worker& w = registry_.at(id);
    const std::int64_t speed = w.prefill_speed();
    if (speed == 0) return Duration(0);  // it may be the fastest
    const std::int64_t rest = static_cast<std::int64_t>(need.ids.size()) - chains.hit_tokens(w);
    least = std::min(least.value_or(INT64_MAX), rest * 1'000'000 / speed);
  }
  return Duration(least.value_or(0));
}

WorkerId Placement::best_decode(const std::vector<WorkerId>& candidates, const Need& need, const Tried& tried) const {
  Chains chains(need);
  const auto rank = [&](WorkerId id) {
    const Worker& w = registry_.at(id);
    const std::int64_t total = std::max(1, w.status.blocks_total);
    const std::int64_t free_there = std::int64_t{w.status.blocks_free} + w.status.blocks_cached;
    const std::int64_t free = std::min<std::int64_t>(free_there, total - w.blocks_promised);
    const std::int64_t sequences = std::max(w.status.running + w.status.waiting, w.legs);
    const std::int64_t load =
        1000 * sequences / std::max(1, w.status.max_num_seqs) + 1000 * (total - std::max<std::int64_t>(0, free)) / total;
    const std::int64_t hit = 1000 * chains.hit_tokens(w) / std::max<std::int64_t>(1, static_cast<std::int64_t>(need.ids.size()));
    const bool last_resort = tried.failed.contains(id) || w.liveness == Liveness::kSuspect;
    // A prefix hit saves its transfer, but is worth no more than half a full machine.
    return std::tuple(last_resort, free < blocks(id, need), load - hit / 2, w.placed, id);
  };
  return *std::ranges::min_element(candidates, {}, rank);
}

// A worker that runs nothing takes any request: whether it can ever fit is the worker's to say.
bool Placement::has_room(WorkerId id, const Need& need) const {
  const Worker& w = registry_.at(id);
  return w.sequences == 0 || w.status.max_num_seqs <= 0 || w.sequences + need.choices <= w.status.max_num_seqs;
}

// Likewise one that holds nothing.
bool Placement::holds_prompt(WorkerId id, const Need& need) const {
  const Worker& w = registry_.at(id);
  return w.prefill_blocks == 0 || w.status.blocks_total <= 0 || w.prefill_blocks + prefill_blocks(id, need) <= w.status.blocks_total;
}

Result<DecodePlacement> Placement::among(std::vector<WorkerId> candidates, const Need& need, const Tried& tried, bool local,
                                         bool fallback) const {
  std::erase_if(candidates, [&](WorkerId id) { return !has_room(id, need); });
  if (candidates.empty()) return Status(Code::kResourceExhausted, "every worker runs as many sequences as it may");
  return DecodePlacement{best_decode(candidates, need, tried), local, fallback};
}

Result<DecodePlacement> Placement::decode(const Need& need, const Tried& tried, Fallback fallback) const {
  const auto both = without(registry_.usable(wire::Role::kBoth), tried.refused);
  const auto decoders = without(registry_.usable(wire::Role::kDecode), tried.refused);
  const auto prefillers = registry_.usable(wire::Role::kPrefill);
  if (!prefillers.empty()) {
    if (!decoders.empty()) return among(decoders, need, tried, false, false);
    auto targets = both;
    std::erase_if(targets, [&](WorkerId id) { return !registry_.at(id).status.takes_handoffs; });
    if (!targets.empty()) return among(targets, need, tried, false, false);
  }
  if (!both.empty()) return among(both, need, tried, true, false);
  if (fallback == Fallback::kLocal) {
    // Only when a role is gone, never because its workers are busy: an overloaded decode pool must not spill onto prefill workers.
    if (!decoders.empty()) return among(decoders, need, tried, true, true);
    const auto last = without(prefillers, tried.refused);
    const bool decoders_gone = registry_.usable(wire::Role::kDecode).empty() && registry_.usable(wire::Role::kBoth).empty();
    if (decoders_gone && !last.empty()) return among(last, need, tried, true, true);
  }
  return Status(Code::kUnavailable, "no live worker can take the request: " + registry_.describe());
}

Result<WorkerId> Placement::prefill(const Need& need, const Tried& tried) const {
  const auto candidates = without(registry_.usable(wire::Role::kPrefill), tried.refused);
  if (candidates.empty()) return Status(Code::kUnavailable, "no live prefill worker: " + registry_.describe());
  Chains chains(need);
  const WorkerId best = *std::ranges::min_element(candidates, {}, [&](WorkerId id) {
    const Worker& w = registry_.at(id);
    const bool last_resort = tried.failed.contains(id) || w.liveness == Liveness::kSuspect;
    return std::tuple(last_resort, !holds_prompt(id, need), expected_us(w, need, chains), w.placed, id);
  });
  if (holds_prompt(best, need)) return best;
  return Status(Code::kResourceExhausted, "every prefill worker has been given as many prompts as its KV cache holds");
}

}  // namespace baton::gateway
