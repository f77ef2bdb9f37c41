#pragma once
// Who waits for room in the cluster, in which order they get it, how long that takes, and who is over a limit of its own. Pure, and
// integers only.
//
// Order. Runs that have begun come before all others, by arrival: a client waits amid its stream. Of the others, tenants share what is
// dispatched by their weights (start-time fair queueing: a tenant that was idle goes on where the others are, not where it stopped, and
// what it costs is prompt and output). Within a tenant whoever is due first:
//
//   due = arrival + min(10 s + min(4 x expected prefill, 20 s), latest start - arrival) + 10 s x priority
//
// with the priority within -6 and 6, and the deadline less the expected prefill as the latest start. So the short overtake the long, and
// the urgent those that can wait, but by a constant at most: whoever arrived kAgeing before another of its tenant is ahead of it, whatever
// both are. Nobody waits for ever.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"

namespace baton::gateway {

using RequestKey = Id<struct RequestKeyTag, std::uint64_t>;  // this gateway's own number of a request; clients may repeat their ids

// Whose requests they are: an API key.
struct Tenant {
  std::string name;
  int weight = 1;                      // its share where several want more than there is
  int requests_max = 0;                // in flight; 0: no limit of its own
  std::int64_t tokens_per_minute = 0;  // prompts and output; 0: no limit
};

struct TenantStats {
  std::string name;
  std::uint64_t requests = 0, rejected = 0, tokens = 0;
};

inline constexpr Duration kAgeing = std::chrono::seconds(150);
TimePoint due_time(TimePoint arrival, TimePoint deadline, Duration expected_prefill, int priority);

// What a request costs its tenant, in tokens. The length of its output is not known: a part of what it asks for counts.
std::int64_t cost_of(std::int64_t prompt_tokens, std::int64_t max_tokens, int choices);

// What can be done in a time, as far as it is known; 0: not.
struct Capacity {
  std::int64_t tokens_per_s = 0;    // of all that prefill
  std::int64_t backlog_tokens = 0;  // that they have been sent, and have not prefilled
  std::int64_t sequences = 0;       // that decode at once
  std::int64_t free = 0;            // of these
  Duration holding{};               // how long one does, on average
};
struct Ahead {
  std::int64_t tokens = 0, sequences = 0;
};
// Until a request of so many sequences is dispatched, and prefilled up to its own prompt.
Duration expected_wait(const Ahead& ahead, int sequences, const Capacity& capacity);
// For Retry-After: whole seconds, 1 to 60.
int retry_after_s(Duration wait);

class Admission {
 public:
  using RunId = std::pair<RequestKey, std::size_t>;
  struct Waiter {
    int tenant = 0;
    bool continues = false;
    TimePoint due{};  // of one that continues: its arrival
    std::int64_t tokens = 0, cost = 0;
    int sequences = 1;
  };

  // Tenant 0 is everybody who has no key; whoever is not listed counts as that.
  explicit Admission(std::vector<Tenant> tenants);

  int known(std::int32_t tenant) const;

  // --- the queue
  bool add(RunId run, const Waiter& waiter);  // false: it waits already
  void erase(RunId run);                      // of one that does not wait: nothing
  bool empty() const { return waiters_.empty(); }
  std::size_t size() const { return waiters_.size(); }
  std::optional<RunId> next() const;
  // What is dispatched before one that came now.
  Ahead ahead(int tenant, TimePoint due) const;

  // --- shares. `cost` was dispatched for a tenant; and was not, after all.
  void charge(int tenant, std::int64_t cost);
  void refund(int tenant, std::int64_t cost);

  // --- limits
  // kResourceExhausted, with Retry-After, if the tenant is over one of its own.
  Status within_limits(TimePoint now, int tenant, Duration holding);
  // Who makes room for another request of `tenant` where there is none left: the last that waits of those who have more, by weight, than
  // `tenant` would. None: `tenant` itself has the most.
  std::optional<RunId> displaced_by(int tenant) const;
  void arrived(TimePoint now, int tenant, std::int64_t prompt_tokens);
  void ended(int tenant);
  void rejected(int tenant) { ++at(tenant).stats.rejected; }
  void spent(TimePoint now, int tenant, std::int64_t tokens);

  std::vector<TenantStats> stats() const;

 private:
  using Place = std::tuple<TimePoint, RequestKey, std::size_t>;
  struct State {
    Tenant config;
    TenantStats stats;
    std::set<Place> waiting;
    std::int64_t waiting_tokens = 0, waiting_cost = 0, waiting_sequences = 0;
    std::int64_t start = 0;  // virtual time at which its next one is dispatched
    int in_flight = 0;
    std::int64_t budget = 0;  // what is left of tokens_per_minute, in tokens x microseconds of a minute; may be overdrawn
    TimePoint budget_at{};
  };
  State& at(int tenant) { return tenants_[static_cast<std::size_t>(tenant)]; }
  const State& at(int tenant) const { return tenants_[static_cast<std::size_t>(tenant)]; }
  static std::int64_t share(const State& state, std::int64_t cost);
  static void refill(State& state, TimePoint now);

  std::vector<State> tenants_;
  std::set<Place> continuing_;
  std::int64_t continuing_tokens_ = 0, continuing_sequences_ = 0;
  std::map<RunId, Waiter> waiters_;
  std::int64_t virtual_now_ = 0;
};

}  // namespace baton::gateway
