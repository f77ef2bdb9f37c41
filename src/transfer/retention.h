#pragma once
// P's ledger of prompts that it computes or has computed for hand-offs: who may take one over, and how long KV that no attempt uses is
// kept. A pure class: events and `now` in; what must be given up comes out of take_drops().
//
//   InUse -> Retained -> (dropped)        the attempt ended by D's or the link's fault, or there was no lease yet
//   InUse | Retained -> InUse             claimed: a new attempt goes on from what is computed
//
// Retained KV can always be computed again, so it may always go: at its deadline, when there is too much of it, and at once when a prompt
// that waits needs its blocks. The oldest goes first. docs/kv-ownership.md has the whole picture.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "transfer/digest.h"
#include "wire/generate.h"

namespace baton::transfer {

// What decides about KV and first tokens: whoever claims a prompt must want exactly this. (Not the log-probabilities of the prompt, which
// are sent beside it, nor what is left of the time-out.)
struct HoldIdentity {
  std::string request_id;
  Digest ids;
  std::int32_t n_tokens = 0, n_prompt = 0;
  int first_choice = 0, choices = 1;
  std::uint64_t seed = 0;
  wire::SamplingParams sampling;
};
HoldIdentity identity_of(const wire::GenerateRequest& request);
// kInvalidArgument naming the first difference.
Status check_claim(const HoldIdentity& held, const HoldIdentity& wanted);

struct RetentionOptions {
  Duration timeout = std::chrono::seconds(10);  // from the end of the attempt; never beyond the request's deadline. 0: nothing is retained
  std::size_t holds_max = 64;
  std::int32_t blocks_max = 0;  // of the pool, all retained prompts together
};

class Retention {
 public:
  using Key = std::uint64_t;  // the caller's number of a prompt, never reused
  struct Drop {
    Key key = 0;
    Status why;  // kUnavailable: the prompt can be computed again
  };

  explicit Retention(RetentionOptions options) : options_(options) {}

  // A leg's prompt is in use, under `name`; an older one of that name cannot be claimed any more.
  void add(Key key, HoldId name, Attempt attempt, HoldIdentity identity, TimePoint deadline);
  // Its KV is given back, or will be as soon as nobody reads it. Idempotent.
  void remove(Key key);

  // No attempt uses it now. False: it is not to be kept (then the caller ends it); others may be dropped for it. Idempotent.
  bool retain(TimePoint now, Key key, std::int32_t blocks);
  // Who claims gets the prompt in use, under `name_new`. nullopt: nothing of that name is here (any more). kInvalidArgument: it is another
  // request's. kCancelled: not a newer attempt of the lease under which it is computed.
  Result<std::optional<Key>> claim(HoldId name, HoldId name_new, Attempt attempt, const HoldIdentity& identity, TimePoint deadline);

  // The engine lacks so many blocks for a prompt that waits.
  void reclaim(std::int32_t blocks);
  void tick(TimePoint now);
  TimePoint next_deadline() const;
  // What is not retained any more; its keys are unknown from here on.
  std::vector<Drop> take_drops() { return std::exchange(drops_, {}); }

  struct Stats {
    std::size_t holds = 0;
    std::int32_t blocks = 0;
    std::uint64_t claimed = 0, dropped = 0;  // of those that were retained
    Duration oldest{};
  };
  Stats stats(TimePoint now) const;
  struct Held {
    TimePoint since, until;
  };
  std::optional<Held> retained(Key key) const;  // nullopt: it is in use, or unknown

 private:
  struct Entry {
    HoldId name;
    Attempt attempt;
    HoldIdentity identity;
    TimePoint deadline = kNever;  // the request's
    bool retained = false;
    std::uint64_t order = 0;  // of retaining
    TimePoint since{}, until = kNever;
    std::int32_t blocks = 0;
  };
  void release(Entry& entry);
  void drop(Key key, Status why);
  std::optional<Key> oldest() const;

  const RetentionOptions options_;
  std::map<Key, Entry> entries_;
  std::map<HoldId, Key> by_name_;
  std::map<std::uint64_t, Key> retained_;  // by order: the oldest first
  std::uint64_t next_order_ = 1;
  std::int32_t blocks_ = 0;
  std::uint64_t claimed_ = 0, dropped_ = 0;
  std::vector<Drop> drops_;
};

}  // namespace baton::transfer
