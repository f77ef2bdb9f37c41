#pragma once
// What gateway and workers say to each other, as JSON over HTTP (one object a line in streamed answers):
//
//   POST /internal/decode    DecodeLeg   -> 200 and a stream of LegEvents, or 429/503 with Retry-After
//   POST /internal/prefill   PrefillLeg  -> the same
//   GET  /internal/status                -> WorkerStatus
//   GET  /internal/kv                    -> KvReport (kv_report.h)
//   POST /internal/finish_choice?gateway=G&leg=L&choice=N -> 204: ends one choice of a running decode leg
//
// The body of an answer that is not 200 is a Failed event, whose status says why.
// Closing a leg's connection cancels it, in every state.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "wire/generate.h"

namespace baton::wire {

inline constexpr int kProtocolVersion = 3;

// What finish_choice names. Request ids are the clients' and may be anybody's; this is the gateway's own.
struct LegName {
  Incarnation gateway;    // drawn when the gateway started
  std::uint64_t leg = 0;  // counted by it
  bool operator==(const LegName&) const = default;
};

struct DecodeLeg {
  GenerateRequest request;
  Attempt attempt{1};
  bool local_prefill = false;  // aggregated: compute the prompt here, no lease
  LegName name{};
};

// Two orders. With a lease the KV goes to D as it is computed. Without one (zero) P computes, retains and waits to be claimed. A claim
// names KV that this P is computing or has retained for the same request: it goes on from there, under the new lease, and nothing is
// computed again. The leg that held it before ends; where there is nothing of that name any more, the prompt is computed anew.
struct PrefillLeg {
  GenerateRequest request;
  Attempt attempt{1};
  LeaseId lease;
  HoldId claim;               // zero: nothing
  std::string decode_worker;  // name, for logs
  std::string link_host;      // where D accepts hand-off links
  int link_port = 0;
  Incarnation decode_incarnation;  // D as the gateway knew it when it got the lease
};
// The name under which KV computed for a lease can be claimed: whoever knows the lease may.
inline HoldId hold_of(LeaseId lease) { return HoldId(lease.value); }

// Events of both legs.
struct Reserved {
  LeaseId lease;
};
struct Started {};  // the prompt has entered a batch
struct Committed {
  Attempt attempt;
  std::vector<TokenEvent> first;  // one a choice
};
struct Nacked {
  Status status;  // D refused or could not verify; nothing of this attempt will be used
};
struct Claimed {
  bool found = false;  // the first answer to a claim; false: it was gone, so the prompt is computed anew
};
// P keeps the KV, as far as it is computed, for as long as this leg is open, but not for ever: Failed says when it was given up.
struct Retained {
  HoldId hold;                   // what a claim has to name
  std::optional<Status> reason;  // why the attempt ended of which nothing will be used; none: the leg had no lease
};
struct Tokens {
  std::vector<TokenEvent> tokens;  // of one step
};
// Of a decode leg: the choice gave its KV back and waits to go on. Its next token may take long; nothing is lost while D makes steps.
struct Preempted {
  int choice = 0;
};
struct PromptLogprobs {
  std::vector<std::optional<TokenEvent>> entries;
};
struct Done {};
struct Failed {
  Status status;
};
struct Alive {};     // nothing else to say: a leg that says nothing at all has lost its worker, or the way to it
struct Draining {};  // the worker is going down: the leg goes on, but had better be served elsewhere
using LegEvent = std::variant<Reserved, Started, Committed, Nacked, Claimed, Retained, Tokens, Preempted, FinishEvent, PromptLogprobs,
                              Served, Done, Failed, Alive, Draining>;

// Two KV pools pair only if these have the same shape; elements of another type are converted on the way.
struct KvSchema {
  int layers = 0, kv_heads = 0, head_dim = 0;  // of the whole model, not of a rank
  std::string dtype;
  bool same_shape(const KvSchema& other) const {
    return layers == other.layers && kv_heads == other.kv_heads && head_dim == other.head_dim;
  }
  bool operator==(const KvSchema&) const = default;
};

enum class Role : std::uint8_t { kPrefill, kDecode, kBoth };
std::string_view to_string(Role role);
std::optional<Role> role_from_string(std::string_view name);

struct WorkerStatus {
  std::string name;
  Role role = Role::kBoth;
  Incarnation incarnation;
  int protocol = kProtocolVersion;
  std::string model_digest, numerics_id;
  KvSchema kv;
  int tensor_parallel_size = 1;  // ranks of its engine
  bool takes_handoffs = true;    // legs that hand KV over; otherwise whole requests only
  int link_port = 0;             // hand-off links (decode role)
  bool ready = false;
  bool draining = false;
  // load
  int running = 0, waiting = 0;
  std::int32_t block_tokens = 0, blocks_total = 0, blocks_free = 0, blocks_cached = 0;
  std::int32_t blocks_held = 0, blocks_promised = 0;  // promised: credit of leases that have not attached
  std::int32_t blocks_retained = 0;                   // of those held: computed for a hand-off, and nobody has claimed them
  bool balanced = true;                               // free + cached + held = total, and what is held is somebody's
  std::int32_t max_num_seqs = 0;
  std::int64_t max_model_len = 0;
  std::int64_t queued_prefill_tokens = 0;
  double prefill_tokens_per_s = 0;  // recent, for placement; 0 while unknown
  // progress: a worker with work whose counter stands still is not healthy
  std::uint64_t steps = 0;
  double step_running_ms = 0;  // age of the step that its device computes now; 0: none
  double step_budget_ms = 0;   // what a step may take there, configured or measured, whichever is more
  double oldest_held_ms = 0;
  // How many leases (decode side) and hand-offs (prefill side) are in each state of docs/kv-ownership.md; and by the reason for which KV or
  // credit is held, how long the one has had no progress that has had none for longest. Zeros included.
  std::vector<std::pair<std::string, std::int32_t>> leases, handoffs;
  std::vector<std::pair<std::string, double>> held_ms;
  // counters for metrics
  std::uint64_t prompt_tokens = 0, prompt_tokens_computed = 0, generation_tokens = 0, preemptions = 0;
  std::uint64_t prefix_queries = 0, prefix_hits = 0;  // tokens
  std::uint64_t handoffs_ok = 0, handoffs_failed = 0, kv_bytes = 0;
  std::uint64_t holds_claimed = 0, holds_dropped = 0;  // retained KV that was claimed; that was given up
  std::uint64_t links_refused = 0;                     // hand-off links closed for what they sent, or did not send
};

std::string to_json(const DecodeLeg& leg);
std::string to_json(const PrefillLeg& leg);
std::string to_json(const LegEvent& event);  // one line, no newline
std::string to_json(const WorkerStatus& status);
// Errors name the field. A peer's garbage closes the call, never the process.
Result<DecodeLeg> decode_leg_from_json(std::string_view json);
Result<PrefillLeg> prefill_leg_from_json(std::string_view json);
Result<LegEvent> leg_event_from_json(std::string_view line);
// Of a worker that speaks another protocol only `protocol` is read, so that the difference can be named.
Result<WorkerStatus> worker_status_from_json(std::string_view json);

}  // namespace baton::wire
