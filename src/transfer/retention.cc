#include "transfer/retention.h"

#include <algorithm>

namespace baton::transfer {

HoldIdentity identity_of(const wire::GenerateRequest& r) {
  return {.request_id = r.id,
          .ids = digest_ids(r.ids),
          .n_tokens = static_cast<std::int32_t>(r.ids.size()),
          .n_prompt = r.n_prompt,
          .first_choice = r.first_choice,
          .choices = r.n,
          .seed = r.seed,
          .sampling = r.sampling};
}

Status check_claim(const HoldIdentity& held, const HoldIdentity& wanted) {
  const auto differs = [](std::string_view what) {
    return Status(Code::kInvalidArgument, "the claim is not for the request that was computed: " + std::string(what) + " differ");
  };
  if (held.request_id != wanted.request_id) return differs("request ids");
  if (held.ids != wanted.ids || held.n_tokens != wanted.n_tokens) return differs("token ids");
  if (held.n_prompt != wanted.n_prompt) return differs("prompt lengths");
  if (held.first_choice != wanted.first_choice || held.choices != wanted.choices) return differs("choices");
  if (held.seed != wanted.seed) return differs("seeds");
  wire::SamplingParams sampling = wanted.sampling;
  sampling.prompt_logprobs = held.sampling.prompt_logprobs;
  if (!(sampling == held.sampling)) return differs("sampling parameters");
  return {};
}

void Retention::add(Key key, HoldId name, Attempt attempt, HoldIdentity identity, TimePoint deadline) {
  const auto [it, inserted] = entries_.try_emplace(key);
  BATON_CHECK_MSG(inserted, "keys are not used twice");
  it->second.name = name;
  it->second.attempt = attempt;
  it->second.identity = std::move(identity);
  it->second.deadline = deadline;
  by_name_[name] = key;
}

void Retention::release(Entry& entry) {
  if (!entry.retained) return;
  entry.retained = false;
  retained_.erase(entry.order);
  blocks_ -= std::exchange(entry.blocks, 0);
}

void Retention::remove(Key key) {
  const auto it = entries_.find(key);
  if (it == entries_.end()) return;
  release(it->second);
  if (const auto named = by_name_.find(it->second.name); named != by_name_.end() && named->second == key) by_name_.erase(named);
  entries_.erase(it);
}

void Retention::drop(Key key, Status why) {
  ++dropped_;
  remove(key);
  drops_.push_back({key, std::move(why)});
}

std::optional<Retention::Key> Retention::oldest() const {
  return retained_.empty() ? std::nullopt : std::optional(retained_.begin()->second);
}

bool Retention::retain(TimePoint now, Key key, std::int32_t blocks) {
  const auto it = entries_.find(key);
  BATON_CHECK_MSG(it != entries_.end(), "only what was added can be retained");
  Entry& entry = it->second;
  if (entry.retained) return true;
  if (options_.timeout <= Duration::zero() || options_.holds_max == 0 || blocks > options_.blocks_max || now >= entry.deadline)
    return false;
  while (retained_.size() >= options_.holds_max || blocks_ + blocks > options_.blocks_max)
    drop(*oldest(), Status(Code::kUnavailable, "unclaimed KV was given up for newer: too much is retained"));
  entry.retained = true;
  entry.order = next_order_++;
  entry.since = now;
  entry.until = std::min(entry.deadline, now + options_.timeout);
  entry.blocks = blocks;
  blocks_ += blocks;
  retained_[entry.order] = key;
  return true;
}

Result<std::optional<Retention::Key>> Retention::claim(HoldId name, HoldId name_new, Attempt attempt, const HoldIdentity& identity,
                                                       TimePoint deadline) {
  const auto named = by_name_.find(name);
  if (named == by_name_.end()) return std::optional<Key>();
  const Key key = named->second;
  Entry& entry = entries_.at(key);
  BATON_RETURN_IF_ERROR(check_claim(entry.identity, identity));
  if (name_new == entry.name && attempt <= entry.attempt) {
    return {Code::kCancelled, "attempt " + std::to_string(attempt.value) + " is not newer than the one that it claims from"};
  }
  if (entry.retained) ++claimed_;
  release(entry);
  by_name_.erase(named);
  by_name_[name_new] = key;
  entry.name = name_new;
  entry.attempt = attempt;
  entry.deadline = deadline;
  return std::optional(key);
}

void Retention::reclaim(std::int32_t blocks) {
  while (blocks > 0 && !retained_.empty()) {
    const Key key = *oldest();
    blocks -= entries_.at(key).blocks;
    drop(key, Status(Code::kUnavailable, "unclaimed KV was given up: a prompt that waits needs its blocks"));
  }
}

void Retention::tick(TimePoint now) {
  // In order of retaining, so that a trace repeats.
  const auto order = retained_;
  for (const auto& [number, key] : order) {
    if (entries_.at(key).until <= now) drop(key, Status(Code::kUnavailable, "nobody claimed the KV in time"));
  }
}

TimePoint Retention::next_deadline() const {
  TimePoint next = kNever;
  for (const auto& [order, key] : retained_) next = std::min(next, entries_.at(key).until);
  return next;
}

std::optional<Retention::Held> Retention::retained(Key key) const {
  const auto it = entries_.find(key);
  if (it == entries_.end() || !it->second.retained) return std::nullopt;
  return Held{it->second.since, it->second.until};
}

Retention::Stats Retention::stats(TimePoint now) const {
  Stats s{.holds = retained_.size(), .blocks = blocks_, .claimed = claimed_, .dropped = dropped_};
  if (const auto key = oldest()) s.oldest = now - entries_.at(*key).since;
  return s;
}

}  // namespace baton::transfer
