#include "gateway/admission.h"

#include <algorithm>

namespace baton::gateway {
namespace {

using std::chrono::seconds;

constexpr Duration kBase = seconds(10);      // everybody's due time after its arrival
constexpr Duration kLongest = seconds(20);   // what a long prompt may come to be later
constexpr Duration kPriority = seconds(10);  // a step of priority
constexpr int kPriorityMax = 6;
static_assert(kAgeing == kBase + kLongest + 2 * kPriorityMax * kPriority, "from the least urgent to the most urgent");

constexpr Duration kHoldingMax = std::chrono::hours(1);
constexpr std::int64_t kOutputCostMax = 512;     // of a choice
constexpr std::int64_t kCostMax = 1 << 24;       // of a request
constexpr std::int64_t kVirtualPerToken = 1000;  // at weight 1: weights up to that keep their proportions
constexpr std::int64_t kMinuteUs = 60'000'000;
constexpr std::int64_t kSecondUs = 1'000'000;

// whole * a / b; of large numbers only what fits is precise.
std::int64_t part(std::int64_t whole, std::int64_t a, std::int64_t b) {
  for (; b >= 1 << 20; b /= 2) a /= 2;
  return whole * a / std::max<std::int64_t>(1, b);
}

}  // namespace

TimePoint due_time(TimePoint arrival, TimePoint deadline, Duration expected_prefill, int priority) {
  Duration patience = kBase + std::min(4 * std::min(expected_prefill, kLongest), kLongest);
  if (deadline != kNever) patience = std::clamp(deadline - expected_prefill - arrival, Duration(0), patience);
  return arrival + patience + std::clamp(priority, -kPriorityMax, kPriorityMax) * kPriority;
}

std::int64_t cost_of(std::int64_t prompt_tokens, std::int64_t max_tokens, int choices) {
  return std::clamp<std::int64_t>(prompt_tokens + choices * std::min(max_tokens, kOutputCostMax), 1, kCostMax);
}

Duration expected_wait(const Ahead& ahead, int sequences, const Capacity& capacity) {
  std::int64_t prefill = 0, decode = 0;
  if (capacity.tokens_per_s > 0) prefill = part(kSecondUs, capacity.backlog_tokens + ahead.tokens, capacity.tokens_per_s);
  // So many must end before. Who waits though there are places waits for KV.
  const std::int64_t to_end = std::max(ahead.sequences, ahead.sequences + sequences - capacity.free);
  if (capacity.sequences > 0) decode = part(std::min(capacity.holding, kHoldingMax).count(), to_end, capacity.sequences);
  return Duration(std::max(prefill, decode));
}

int retry_after_s(Duration wait) { return static_cast<int>(std::clamp<std::int64_t>((wait.count() + kSecondUs - 1) / kSecondUs, 1, 60)); }

Admission::Admission(std::vector<Tenant> tenants) {
  if (tenants.empty()) tenants.push_back({.name = "none"});
  for (Tenant& tenant : tenants) {
    State state;
    tenant.weight = std::max(1, tenant.weight);
    state.stats.name = tenant.name;
    state.budget = tenant.tokens_per_minute * kMinuteUs;
    state.config = std::move(tenant);
    tenants_.push_back(std::move(state));
  }
}

int Admission::known(std::int32_t tenant) const { return tenant >= 0 && tenant < std::ssize(tenants_) ? tenant : 0; }

// --- the queue

bool Admission::add(RunId run, const Waiter& waiter) {
  if (!waiters_.emplace(run, waiter).second) return false;
  const Place place{waiter.due, run.first, run.second};
  if (waiter.continues) {
    continuing_.insert(place);
    continuing_tokens_ += waiter.tokens;
    continuing_sequences_ += waiter.sequences;
    return true;
  }
  State& tenant = at(waiter.tenant);
  if (tenant.waiting.empty()) tenant.start = std::max(tenant.start, virtual_now_);
  tenant.waiting.insert(place);
  tenant.waiting_tokens += waiter.tokens;
  tenant.waiting_cost += waiter.cost;
  tenant.waiting_sequences += waiter.sequences;
  return true;
}

void Admission::erase(RunId run) {
  const auto found = waiters_.find(run);
  if (found == waiters_.end()) return;
  const Waiter waiter = found->second;
  waiters_.erase(found);
  const Place place{waiter.due, run.first, run.second};
  if (waiter.continues) {
    continuing_.erase(place);
    continuing_tokens_ -= waiter.tokens;
    continuing_sequences_ -= waiter.sequences;
    return;
  }
  State& tenant = at(waiter.tenant);
  tenant.waiting.erase(place);
  tenant.waiting_tokens -= waiter.tokens;
  tenant.waiting_cost -= waiter.cost;
  tenant.waiting_sequences -= waiter.sequences;
}

std::optional<Admission::RunId> Admission::next() const {
  const Place* best = continuing_.empty() ? nullptr : &*continuing_.begin();
  if (best == nullptr) {
    std::int64_t earliest = 0;
    for (const State& tenant : tenants_) {
      if (tenant.waiting.empty()) continue;
      const Place& first = *tenant.waiting.begin();
      if (best != nullptr && std::pair(earliest, *best) <= std::pair(tenant.start, first)) continue;
      best = &first;
      earliest = tenant.start;
    }
  }
  if (best == nullptr) return std::nullopt;
  return RunId(std::get<1>(*best), std::get<2>(*best));
}

Ahead Admission::ahead(int tenant, TimePoint due) const {
  const State& own = at(tenant);
  Ahead ahead{continuing_tokens_, continuing_sequences_};
  std::int64_t own_cost = 0;
  for (const Place& place : own.waiting) {
    if (std::get<0>(place) > due) break;
    const Waiter& waiter = waiters_.at({std::get<1>(place), std::get<2>(place)});
    ahead.tokens += waiter.tokens;
    ahead.sequences += waiter.sequences;
    own_cost += waiter.cost;
  }
  // The others' are dispatched up to the virtual time at which it starts.
  const std::int64_t start = std::max(own.start, virtual_now_) + share(own, own_cost);
  for (const State& other : tenants_) {
    if (&other == &own || other.waiting.empty()) continue;
    const std::int64_t all = share(other, other.waiting_cost);
    const std::int64_t before = std::clamp<std::int64_t>(start - other.start, 0, all);
    ahead.tokens += part(other.waiting_tokens, before, all);
    ahead.sequences += part(other.waiting_sequences, before, all);
  }
  return ahead;
}

// --- shares

std::int64_t Admission::share(const State& state, std::int64_t cost) { return cost * kVirtualPerToken / state.config.weight; }

void Admission::charge(int tenant, std::int64_t cost) {
  State& state = at(tenant);
  virtual_now_ = state.start = std::max(state.start, virtual_now_);
  state.start += share(state, cost);
}

void Admission::refund(int tenant, std::int64_t cost) { at(tenant).start -= share(at(tenant), cost); }

// --- limits

void Admission::refill(State& state, TimePoint now) {
  const std::int64_t rate = state.config.tokens_per_minute;
  if (rate == 0) return;
  const Duration passed = std::clamp(now - state.budget_at, Duration(0), Duration(std::chrono::hours(1)));
  state.budget = std::min(rate * kMinuteUs, state.budget + rate * passed.count());
  state.budget_at = now;
}

Status Admission::within_limits(TimePoint now, int tenant, Duration holding) {
  State& state = at(tenant);
  const Tenant& config = state.config;
  if (config.requests_max > 0 && state.in_flight >= config.requests_max) {
    return Status(Code::kResourceExhausted,
                  "key " + config.name + " has " + std::to_string(state.in_flight) + " requests in flight, its limit")
        .with_retry_after(retry_after_s(holding / config.requests_max));
  }
  refill(state, now);
  if (config.tokens_per_minute > 0 && state.budget <= 0) {
    return Status(Code::kResourceExhausted,
                  "key " + config.name + " has used its " + std::to_string(config.tokens_per_minute) + " tokens a minute")
        .with_retry_after(retry_after_s(Duration(-state.budget / config.tokens_per_minute + 1)));
  }
  return {};
}

std::optional<Admission::RunId> Admission::displaced_by(int tenant) const {
  const State* most = nullptr;
  for (const State& state : tenants_) {
    if (state.waiting.empty()) continue;
    if (most == nullptr || std::int64_t{state.in_flight} * most->config.weight > std::int64_t{most->in_flight} * state.config.weight)
      most = &state;
  }
  const State& own = at(tenant);
  if (most == nullptr || most == &own) return std::nullopt;
  if (std::int64_t{most->in_flight} * own.config.weight <= std::int64_t{own.in_flight + 1} * most->config.weight) return std::nullopt;
  const Place& last = *most->waiting.rbegin();
  return RunId(std::get<1>(last), std::get<2>(last));
}

void Admission::arrived(TimePoint now, int tenant, std::int64_t prompt_tokens) {
  ++at(tenant).stats.requests;
  ++at(tenant).in_flight;
  spent(now, tenant, prompt_tokens);
}

void Admission::ended(int tenant) { --at(tenant).in_flight; }

void Admission::spent(TimePoint now, int tenant, std::int64_t tokens) {
  State& state = at(tenant);
  state.stats.tokens += static_cast<std::uint64_t>(tokens);
  if (state.config.tokens_per_minute == 0) return;
  refill(state, now);
  state.budget -= tokens * kMinuteUs;
}

std::vector<TenantStats> Admission::stats() const {
  std::vector<TenantStats> out;
  for (const State& state : tenants_) out.push_back(state.stats);
  return out;
}

}  // namespace baton::gateway
