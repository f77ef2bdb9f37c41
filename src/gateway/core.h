#pragma once
// The gateway's decisions: registry, placement, and one state machine a request (README.md has the diagram). Pure: events and `now` go in,
// actions come out in order through take_actions(); whoever calls executes them. No socket, thread or clock.
//
// A request is served by one or more runs. A run covers a range of its choices and owns at most one decode leg and one prefill leg. Losing
// a worker restarts the run elsewhere: with the same request while nothing of it was emitted; afterwards each unfinished choice goes on as
// a run of its own, whose request is prompt + emitted ids. A worker that drains is left in the same way, but before it is lost: the old run
// streams on until the new ones do.

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "gateway/admission.h"
#include "gateway/pairs.h"
#include "gateway/placement.h"
#include "gateway/registry.h"
#include "gateway/request_log.h"
#include "wire/worker_api.h"

namespace baton::gateway {

using LegId = Id<struct LegTag, std::uint64_t>;

// What the caller must do.
struct StartDecode {
  LegId leg;
  WorkerId worker;
  wire::DecodeLeg body;
};
struct StartPrefill {
  LegId leg;
  WorkerId worker;
  wire::PrefillLeg body;
};
struct CancelLeg {  // close its connection; its events are ignored from now on
  LegId leg;
};
struct FinishChoice {  // POST /internal/finish_choice, best effort
  WorkerId worker;
  LegId leg;  // its decode leg
  int choice = 0;
};
struct PollNow {
  WorkerId worker;
};
struct Remark {  // for the log: what has happened to a request
  std::string request, trace_id;
  std::string text;
  bool trouble = false;
};
struct Deliver {  // to the request's sink; a Status is on_done, after which nothing follows
  RequestKey request;
  std::variant<wire::Served, wire::PromptLogprobs, wire::TokenEvent, wire::FinishEvent, Status> event;
};
using Action = std::variant<StartDecode, StartPrefill, CancelLeg, FinishChoice, PollNow, Remark, Deliver>;

// How a leg's connection ended.
struct LegEnd {
  enum class Kind : std::uint8_t {
    kComplete,     // the answer ended as HTTP says
    kRefused,      // an answer other than 200: the worker lives
    kBroken,       // cut or timed out amid the answer, or garbage in it
    kUnreachable,  // no connection, or cut before any answer
  };
  Kind kind = Kind::kComplete;
  Status status;  // of all but kComplete
};

struct CoreOptions {
  Incarnation identity;  // of this gateway, drawn when it starts: with a leg's number it names the leg among those of all gateways
  Fallback fallback = Fallback::kLocal;
  std::size_t requests_max = 4096;  // in flight; beyond: kResourceExhausted
  Duration queue_wait_max{};        // a request that would wait longer is refused when it comes; 0: no such limit
  std::vector<Tenant> tenants;      // GenerateRequest::tenant is an index of it; the first is everybody without a key
  int retries_max = 4;              // failures at work on a run since it last made progress
  int losses_max = 32;              // workers lost while the run waited there, since it last made progress
  // Each wait is also bounded by what is left of the request's own deadline.
  Duration reserve_timeout = std::chrono::seconds(5);
  Duration prefill_slack = std::chrono::seconds(30);   // on top of four times the expected time
  Duration commit_timeout = std::chrono::seconds(10);  // from the end of P's leg to D's commit
  Duration token_timeout = std::chrono::seconds(30);   // between tokens; of a preempted choice, between steps of its worker
  Duration linger = std::chrono::milliseconds(250);    // for the legs' last events once every choice has finished
  std::size_t log_records_max = 1000;
  RegistryOptions registry;
};

struct Stats {
  std::uint64_t requests = 0, rejected = 0, finished = 0, failed = 0, cancelled = 0;
  std::uint64_t tokens = 0;
  std::uint64_t retries_decode_refused = 0, retries_decode_failed = 0, retries_prefill_refused = 0, retries_prefill_failed = 0,
                retries_nacked = 0;
  std::uint64_t retries_decode_lost = 0, retries_prefill_lost = 0;  // of those that failed: the worker, or the way to it, was lost
  std::uint64_t resumed = 0;                                        // runs that went on elsewhere after tokens had been emitted
  std::uint64_t claims = 0, claims_missed = 0;  // KV that a prefill worker had kept was handed on; was gone when it was claimed
  std::uint64_t moved = 0;                      // runs that left a draining worker while it streamed on
  std::uint64_t fallbacks = 0;                  // runs without a hand-off because a role had no worker
  std::uint64_t duplicates_dropped = 0;
  std::uint64_t conflicts = 0;  // two tokens for one position: must be zero
  std::uint64_t garbage = 0;    // events that no sound worker sends
  std::uint64_t waits_expired = 0;
  std::uint64_t queued = 0;  // runs that had to wait for room
  std::uint64_t kv_bytes = 0;
  // Stalls that clients saw: from the last word of a worker that was lost to the next token. By length; the last bucket has no bound.
  static constexpr std::array kStallBounds = {.01, .025, .05, .1, .25, .5, 1., 2.5, 5., 10., 30., 60.};  // seconds
  std::array<std::uint64_t, kStallBounds.size() + 1> stalls{};
  Duration stalled{};                    // all together
  std::size_t waiting = 0, running = 0;  // requests before and after their first token
};

class Core {
 public:
  Core(const CoreOptions& options, std::vector<WorkerConfig> workers);
  ~Core();

  // --- from clients. A request gets exactly one Deliver with a Status, unless it is cancelled.
  RequestKey submit(TimePoint now, wire::GenerateRequest request);
  void cancel(TimePoint now, RequestKey key);
  void finish_choice(TimePoint now, RequestKey key, int choice);

  // --- from legs. Of a leg that was cancelled or has ended: ignored.
  void on_leg_event(TimePoint now, LegId leg, wire::LegEvent event);
  void on_leg_end(TimePoint now, LegId leg, const LegEnd& end);

  // --- from polls
  void on_status(TimePoint now, WorkerId worker, const wire::WorkerStatus& status);
  void on_poll_failed(TimePoint now, WorkerId worker, bool unreachable, const std::string& why);

  // --- time. Call on_time() when next_deadline() has come; it may come to nothing.
  void on_time(TimePoint now);
  TimePoint next_deadline() const { return wakes_.empty() ? kNever : wakes_.begin()->first; }

  std::vector<Action> take_actions() { return std::exchange(actions_, {}); }

  const Registry& registry() const { return registry_; }
  // nullopt if requests can be served. A cluster that starts waits until it is whole; afterwards what is left of it serves, as far as
  // `fallback` lets one role do the other's work.
  std::optional<std::string> not_ready() const;
  Stats stats() const;
  std::vector<TenantStats> tenants() const { return admission_.stats(); }
  std::optional<RequestRecord> record(TimePoint now, const std::string& id) const;
  std::size_t open_legs() const { return legs_.size(); }

 private:
  struct Run;
  struct Request;
  struct Plan {  // who is to prefill, and how many KV blocks that takes there
    std::optional<WorkerId> worker{};
    std::int64_t blocks = 0;
  };
  struct Leg {
    RequestKey request;
    std::size_t run = 0;
    bool prefill = false;
    WorkerId worker;
    Incarnation incarnation;
    TimePoint sent_at{}, heard_at{};      // heard_at: its last event, or its start
    std::int64_t blocks = 0, tokens = 0;  // what it is charged for in the registry
    int sequences = 0;
    Plan plan{};      // of a decode leg
    LeaseId lease{};  // of a prefill leg
  };
  using Emission = decltype(Deliver::event);
  // How a leg failed.
  enum class Fault : std::uint8_t {
    kRefused,  // it was not taken
    kLost,     // the worker, or the way to it, is gone or silent
    kNacked,   // D does not take this attempt's KV
    kFailed,   // the worker says so, or sends nonsense
  };

  // core.cc: requests, time, workers
  void deliver(Request& request, Emission event);
  void deliver_served(Request& request);
  void deliver_prompt_logprobs(Request& request, TimePoint now, wire::PromptLogprobs event);
  void release_tokens(Request& request);
  void fail_if_logprobs_lost(Request& request, TimePoint now);
  void note(Request& request, TimePoint now, std::string what, std::string detail = {}, bool trouble = false);
  void finish(Request& request, TimePoint now, Status status);
  void close(Request& request, TimePoint now, const Status& status);
  void finish_if_complete(Request& request, TimePoint now);
  void sweep(TimePoint now);
  void wake_at(Request& request, TimePoint at);
  void expire(Request& request, TimePoint now);
  bool only_preempted(Request& request, const Run& run, TimePoint now) const;
  void lose_legs(TimePoint now, WorkerId worker, std::optional<Incarnation> living, const std::string& why);
  void lose_silent_legs(TimePoint now, WorkerId worker);
  void give_legs_up(TimePoint now, const std::vector<LegId>& lost, const Status& why);
  void forgive_own_pause(TimePoint now);

  // core_legs.cc: how a run gets its legs, and lets go of them
  wire::GenerateRequest request_of(const Request& request, const Run& run, TimePoint now) const;
  static std::string hop(const Request& request, LegId leg);
  void start_run(Request& request, std::size_t run_index, TimePoint now);
  void start_prefill(Request& request, std::size_t run_index, TimePoint now);
  Tried avoiding_ways(const Run& run, TimePoint now) const;
  LegId open_leg(Request& request, std::size_t run_index, bool prefill, WorkerId worker, std::int64_t blocks, std::int64_t tokens);
  void give_blocks_back(Leg& leg);
  void end_leg(LegId leg);
  void cancel_leg(std::optional<LegId>& leg);
  void cancel_legs(Run& run);
  void hold(Run& run);
  void hold_lost(Request& request, std::size_t run_index, TimePoint now, const std::string& why);
  void set_wait(Request& request, Run& run, TimePoint now, Duration wait, std::string what);
  // core_events.cc: what legs say
  void on_claimed(Request& request, LegId leg, TimePoint now, bool found);
  void on_retained(Request& request, LegId leg, TimePoint now, const wire::Retained& event);
  void on_committed(Request& request, std::size_t run_index, TimePoint now, wire::Committed event);
  void on_tokens(Request& request, LegId leg, TimePoint now, std::vector<wire::TokenEvent> tokens);
  void emit(Request& request, std::vector<wire::TokenEvent> tokens);
  void on_finish(Request& request, LegId leg, TimePoint now, const wire::FinishEvent& event);
  static bool complete(Request& request, const Run& run);
  void on_done(Request& request, LegId leg, TimePoint now);
  void merge_served(Request& request, const Leg& leg, wire::Served& served);
  // core_failures.cc: a leg fails
  void garbage(Request& request, LegId leg, TimePoint now, const std::string& what);
  void leg_failed(Request& request, LegId leg, TimePoint now, const Status& status, Fault fault);
  void decode_failed(Request& request, std::size_t run_index, TimePoint now, WorkerId worker, const Status& status, Fault fault);
  void prefill_failed(Request& request, std::size_t run_index, TimePoint now, WorkerId worker, const Status& status, Fault fault);
  void take_refusal(Run& run, WorkerId worker, const Status& status);
  bool count_failure(Request& request, Run& run, TimePoint now, const Status& status, bool at_work);
  bool give_lease_up(Request& request, std::size_t run_index, TimePoint now);
  void restart(Request& request, std::size_t run_index, TimePoint now);
  void finish_ended(Request& request, int choice);
  // core_record.cc: what the record says beside its events
  void record_handoff(Request& request, const Run& run, bool claim);
  void begin_stall(Request& request, const Leg& leg, TimePoint now, const Status& why);
  void end_stall(Request& request, TimePoint now, int choice, bool resumed);
  // core_move.cc: leaving a worker that drains
  void on_draining(TimePoint now, WorkerId worker);
  void leave(Request& request, std::size_t run_index, TimePoint now);
  Tried unlike(WorkerId worker) const;
  void start_moves(Request& request, std::size_t run_index, TimePoint now);
  bool start_move(Request& request, std::size_t old_index, int choice, TimePoint now);
  void move_failed(Request& request, std::size_t run_index, TimePoint now, const Status& status);
  void end_move(Request& request, std::size_t run_index);
  void drop_move(Request& request, int choice);
  void settle_moves(Request& request, TimePoint now);
  void promote(Request& request, Run& run);

  // core_queue.cc: coming in, waiting, getting room
  Capacity capacity() const;
  Status admit(TimePoint now, const wire::GenerateRequest& base);
  bool displace(TimePoint now, int tenant);
  Admission::Waiter waiter(const Request& request, const Run& run, Duration prefill) const;
  void enqueue(Request& request, std::size_t run_index, TimePoint now, std::string waiting_for = "room on a decode worker");
  void refuse_late(Request& request, TimePoint now);
  void charge(Request& request, TimePoint now);
  void learn_holding(const Request& request, TimePoint now);
  void dispatch_queue(TimePoint now);
  void settle_probe();
  std::optional<Plan> plan_prefill(const Need& need, Tried tried, WorkerId decoder, TimePoint now) const;
  void keep_plan(LegId leg, const Plan& plan);
  void drop_plan(Leg& leg);

  void remember_prefix(WorkerId worker, const Request& request, std::span<const TokenId> ids);

  Request* find(RequestKey key);

  const CoreOptions options_;
  Registry registry_;
  Placement placement_{registry_};
  Pairs pairs_{registry_};
  RequestLog log_;
  Stats stats_;
  std::uint64_t last_request_ = 0, last_leg_ = 0;
  std::map<RequestKey, std::unique_ptr<Request>> requests_;
  std::map<LegId, Leg> legs_;
  std::set<std::pair<TimePoint, RequestKey>> wakes_;  // one a request, never later than its next deadline
  Admission admission_;                               // who waits for room
  Duration holding_{};                                // from a request's dispatch to its end, averaged
  // A run that was refused for want of room and asks again. Nobody else asks before its answer: what it is short of would go to smaller
  // ones for ever.
  std::optional<std::pair<RequestKey, std::size_t>> probe_;
  TimePoint last_event_{};     // of any kind: a gap between events is this gateway's own pause
  bool room_changed_ = false;  // a leg ended, or a worker reported: the queue's head may fit now
  bool dispatching_ = false;
  bool whole_once_ = false;         // there was a usable pair, or a worker that does both
  std::vector<RequestKey> closed_;  // to be erased when the event that closed them is over
  std::vector<Action> actions_;
};

}  // namespace baton::gateway
