// The core's second half: what a run does with its two legs.

#include <algorithm>
#include <utility>

#include "base/mutant.h"
#include "gateway/core.h"
#include "gateway/request.h"
#include "wire/trace_context.h"

namespace baton::gateway {
namespace {

constexpr int kLeaseFailuresMax = 2;
constexpr int kHoldFailuresMax = 3;  // one more than a lease's: another decode worker has failed with it too

template <class... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};

// What a worker says of its own waits, its clock and its partner does not end the request: only the client cancels, and the deadline is
// that of our clock.
Status as_ours(const Status& said, TimePoint now, TimePoint deadline) {
  const bool theirs = said.code() == Code::kCancelled || (said.code() == Code::kDeadlineExceeded && now < deadline);
  return theirs ? Status(Code::kUnavailable, said.message()) : said;
}

}  // namespace

// --- starting

// Both legs of a run carry the same request: a function of what the run knew when it started.
wire::GenerateRequest Core::request_of(const Request& request, const Run& run, TimePoint now) const {
  wire::GenerateRequest sent = request.base;
  sent.first_choice = run.first;
  sent.n = run.n;
  if (request.deadline != kNever && !BATON_MUTANT(deadline_not_sent)) sent.timeout = std::max(Duration(1), request.deadline - now);
  if (run.n != request.base.n) sent.id += "/" + std::to_string(run.first);  // for logs; no client's id has a slash
  if (run.emitted > 0) {
    const auto& tokens = request.choices[static_cast<std::size_t>(run.first - request.base.first_choice)].tokens();
    sent.ids.insert(sent.ids.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(run.emitted));
    if (BATON_MUTANT(replay_moves_prompt_end)) sent.n_prompt = static_cast<std::int32_t>(sent.ids.size());
    if (BATON_MUTANT(seed_drawn_again)) sent.seed += request.attempts;
  }
  if (!request.wants_prompt_logprobs()) sent.sampling.prompt_logprobs = -1;
  return sent;
}

// Each leg is a hop of its own in the client's trace.
std::string Core::hop(const Request& request, LegId leg) {
  const auto context = wire::parse_traceparent(request.base.traceparent);
  return context ? wire::to_traceparent(wire::next_hop(*context, leg.value)) : std::string();
}

void Core::set_wait(Request& request, Run& run, TimePoint now, Duration wait, std::string what) {
  run.deadline = std::min(request.deadline, now + wait);
  run.waiting_for = std::move(what);
  wake_at(request, run.deadline);
}

LegId Core::open_leg(Request& request, std::size_t run_index, bool prefill, WorkerId id, std::int64_t blocks, std::int64_t tokens) {
  Worker& worker = registry_.at(id);
  const LegId leg(++last_leg_);
  legs_[leg] = {request.key, run_index, prefill, id, worker.status.incarnation, last_event_, last_event_, blocks, tokens};
  ++worker.legs;
  ++worker.placed;
  (prefill ? worker.prefill_blocks : worker.blocks_promised) += blocks;
  worker.prefill_tokens += tokens;
  Run& run = request.runs[run_index];
  worker.sequences += legs_[leg].sequences = prefill ? 0 : run.n;
  (prefill ? run.prefill_leg : run.decode_leg) = leg;
  return leg;
}

void Core::give_blocks_back(Leg& leg) {
  (leg.prefill ? registry_.at(leg.worker).prefill_blocks : registry_.at(leg.worker).blocks_promised) -= std::exchange(leg.blocks, 0);
}

// Forgets a leg and what it was charged for.
void Core::end_leg(LegId id) {
  const auto found = legs_.find(id);
  if (found == legs_.end()) return;
  Leg& leg = found->second;
  Worker& worker = registry_.at(leg.worker);
  --worker.legs;
  drop_plan(leg);
  give_blocks_back(leg);
  worker.prefill_tokens -= leg.tokens;
  if (!BATON_MUTANT(charge_kept)) worker.sequences -= leg.sequences;
  room_changed_ = true;
  if (Request* request = find(leg.request)) {
    Run& run = request->runs[leg.run];
    std::optional<LegId>& slot = !leg.prefill ? run.decode_leg : run.held_leg == id ? run.held_leg : run.prefill_leg;
    if (slot == id) slot.reset();
  }
  legs_.erase(found);
}

void Core::cancel_leg(std::optional<LegId>& leg) {
  if (!leg) return;
  const LegId id = *leg;
  leg.reset();
  actions_.push_back(CancelLeg{id});
  end_leg(id);
}

void Core::cancel_legs(Run& run) {
  cancel_leg(run.held_leg);
  cancel_leg(run.prefill_leg);
  cancel_leg(run.decode_leg);
}

// The attempt is over, the KV is not.
void Core::hold(Run& run) {
  cancel_leg(run.held_leg);
  run.held_leg = std::exchange(run.prefill_leg, std::nullopt);
}

// What was to be claimed is gone. A run that waits for a reservation is placed anew, from what was emitted meanwhile.
void Core::hold_lost(Request& request, std::size_t run_index, TimePoint now, const std::string& why) {
  note(request, now, "hold_lost", why);
  if (request.linger_until) return finish_if_complete(request, now);
  if (request.runs[run_index].state != RunState::kQueued) return fail_if_logprobs_lost(request, now);
  admission_.erase({request.key, run_index});
  restart(request, run_index, now);
}

void Core::remember_prefix(WorkerId id, const Request& request, std::span<const TokenId> ids) {
  Worker& worker = registry_.at(id);
  if (worker.status.block_tokens > 0) worker.prefixes.insert(wire::prefix_chain(ids, worker.status.block_tokens, request.base.cache_salt));
}

// What the run has tried, and the ways that failed others: decode workers that no prefill worker reaches; once there is a decode worker,
// prefill workers that do not reach it.
Tried Core::avoiding_ways(const Run& run, TimePoint now) const {
  Tried tried = run.tried;
  const auto prefillers = registry_.usable(wire::Role::kPrefill);
  const auto avoid = [&](WorkerId p, WorkerId d) { return pairs_.avoid(now, p, d); };
  if (run.decode_leg) {
    for (const WorkerId p : prefillers)
      if (avoid(p, run.decode_worker)) tried.failed.insert(p);
    return tried;
  }
  for (const wire::Role role : {wire::Role::kDecode, wire::Role::kBoth})
    for (const WorkerId d : registry_.usable(role))
      if (!prefillers.empty() && std::ranges::all_of(prefillers, [&](WorkerId p) { return avoid(p, d); })) tried.failed.insert(d);
  return tried;
}

// Leg 1: a decode worker that reserves for the whole run, or serves it alone.
void Core::start_run(Request& request, std::size_t run_index, TimePoint now) {
  Run& run = request.runs[run_index];
  const bool asks_again = probe_ == std::pair(request.key, run_index);
  if ((!admission_.empty() || probe_) && !dispatching_ && !asks_again) {  // others wait already
    room_changed_ = true;
    return enqueue(request, run_index, now);
  }
  run.state = RunState::kReserving;
  run.lease_failures = 0;
  run.started = false;
  run.preempted.clear();
  if (!run.held_leg) run.emitted = run.n == 1 ? request.choice(run.first)->tokens().size() : 0;
  wire::GenerateRequest sent = request_of(request, run, now);
  const auto new_tokens = std::max<std::int64_t>(0, sent.sampling.max_tokens - static_cast<std::int64_t>(run.emitted));
  const Need need{sent.ids, run.n, static_cast<std::int32_t>(new_tokens), sent.cache_salt};
  const auto placed = placement_.decode(need, avoiding_ways(run, now), options_.fallback);
  if (!placed.ok()) {
    const Status status = run.refusal.value_or(placed.status());
    if (placed.status().code() == Code::kResourceExhausted || status.code() == Code::kResourceExhausted)
      return enqueue(request, run_index, now);
    return finish(request, now, status);
  }

  if (placed->local_prefill && run.held_leg) {  // there is nobody to claim it for
    cancel_leg(run.held_leg);
    return restart(request, run_index, now);
  }
  std::optional<Plan> plan = Plan{};
  if (!placed->local_prefill && !run.held_leg) plan = plan_prefill(need, run.tried, placed->worker, now);
  if (!plan) return enqueue(request, run_index, now, "room on a prefill worker");
  charge(request, now);
  const WorkerId id = placed->worker;
  const Worker& worker = registry_.at(id);
  run.local = placed->local_prefill;
  run.attempt = Attempt(++request.attempts);
  if (run.emitted > 0 && registry_.at(run.decode_worker).status.numerics_id != worker.status.numerics_id) {
    note(request, now, "changed_hands",
         worker.name() + " has numerics " + worker.status.numerics_id + ", tokens so far are of " +
             registry_.at(run.decode_worker).status.numerics_id);
  }
  run.decode_worker = id;
  run.decode_incarnation = worker.status.incarnation;
  wire::Served& served = request.record.served;
  served.attempts = static_cast<int>(request.attempts);
  served.decode_worker = worker.name();
  served.disaggregated = !run.local;
  served.fallback.clear();
  if (placed->fallback) {
    ++stats_.fallbacks;
    served.fallback = worker.config.role == wire::Role::kPrefill ? "no live decode worker" : "no live prefill worker";
    request.record.fallback = "no live worker of the other role: " + registry_.describe();
  }
  note(request, now, run.local ? "send_local" : "reserve", worker.name());
  const LegId leg =
      open_leg(request, run_index, false, id, placement_.blocks(id, need), run.local ? static_cast<std::int64_t>(sent.ids.size()) : 0);
  keep_plan(leg, *plan);
  if (run.local) {
    const Duration estimate = placement_.prefill_estimate(id, need);
    set_wait(request, run, now, options_.prefill_slack + 4 * estimate, "prefill on " + worker.name());
    remember_prefix(id, request, sent.ids);
    served.prefill_worker = worker.name();
    run.state = RunState::kPrefilling;
    record_handoff(request, run, false);
    deliver_served(request);
  } else {
    set_wait(request, run, now, options_.reserve_timeout, "a reservation on " + worker.name());
  }
  sent.traceparent = hop(request, leg);
  actions_.push_back(StartDecode{leg, id, {std::move(sent), run.attempt, run.local, {options_.identity, leg.value}}});
}

// Leg 2: a prefill worker for the lease that D gave: the one that has computed the prompt already, or the one that ends first.
void Core::start_prefill(Request& request, std::size_t run_index, TimePoint now) {
  Run& run = request.runs[run_index];
  run.state = RunState::kPrefilling;
  run.started = false;
  wire::GenerateRequest sent = request_of(request, run, now);
  const Need need{sent.ids, run.n, 0, sent.cache_salt};
  std::optional<WorkerId> placed;
  HoldId claim;
  auto tokens = static_cast<std::int64_t>(sent.ids.size());
  std::int64_t blocks = 0;
  if (run.decode_leg) drop_plan(legs_.at(*run.decode_leg));
  if (run.held_leg) {
    Leg& held = legs_.at(*run.held_leg);
    placed = held.worker;
    claim = wire::hold_of(held.lease);
    tokens = std::exchange(held.tokens, 0);  // what is left to compute is the new leg's now
    registry_.at(held.worker).prefill_tokens -= tokens;
    give_blocks_back(held);
    blocks = placement_.prefill_blocks(held.worker, need);
  } else if (const auto best = placement_.prefill(need, avoiding_ways(run, now)); best.ok()) {
    placed = *best;
    blocks = placement_.prefill_blocks(*best, need);
  } else {
    if (run.replaces) return move_failed(request, run_index, now, best.status());
    const bool full = best.status().code() == Code::kResourceExhausted;
    if (!full && run.refusal && run.refusal->code() != Code::kUnavailable) return finish(request, now, *run.refusal);
    run.refusal.reset();
    cancel_leg(run.decode_leg);  // every prefill worker is gone, or has no room: place anew, which may mean D alone, or wait
    return restart(request, run_index, now);
  }
  const Worker& worker = registry_.at(*placed);
  const Worker& decoder = registry_.at(run.decode_worker);
  // Other numerics may give another first token than the one that was sent: go on behind it instead.
  if (!run.numerics.empty() && run.numerics != worker.status.numerics_id) {
    note(request, now, "changed_hands",
         worker.name() + " has numerics " + worker.status.numerics_id + ", tokens so far are of " + run.numerics);
    cancel_leg(run.held_leg);
    cancel_leg(run.decode_leg);
    return restart(request, run_index, now);
  }
  run.prefill_worker = *placed;
  pairs_.on_used(now, *placed, run.decode_worker);
  const Duration estimate = placement_.prefill_estimate(*placed, need);
  set_wait(request, run, now, options_.prefill_slack + 4 * estimate, "prefill on " + worker.name());
  const LegId leg = open_leg(request, run_index, true, *placed, blocks, tokens);
  legs_.at(leg).lease = run.lease;
  remember_prefix(*placed, request, sent.ids);
  if (!run.replaces) {
    wire::Served& served = request.record.served;
    served.attempts = static_cast<int>(request.attempts);
    served.prefill_worker = worker.name();
    served.disaggregated = true;
    if (BATON_MUTANT(usage_counts_replay)) served.prompt_tokens = static_cast<std::int32_t>(sent.ids.size());
  }
  std::string detail = worker.name();
  if (worker.status.numerics_id != decoder.status.numerics_id)
    detail +=
        " (numerics " + worker.status.numerics_id + ", decode has " + decoder.status.numerics_id + ": tokens may differ from either alone)";
  note(request, now, claim == HoldId() ? "send_prefill" : "claim", detail);
  record_handoff(request, run, claim != HoldId());
  deliver_served(request);
  sent.traceparent = hop(request, leg);
  actions_.push_back(StartPrefill{leg,
                                  *placed,
                                  {.request = std::move(sent),
                                   .attempt = run.attempt,
                                   .lease = run.lease,
                                   .claim = claim,
                                   .decode_worker = decoder.name(),
                                   .link_host = decoder.config.host,
                                   .link_port = decoder.status.link_port,
                                   .decode_incarnation = run.decode_incarnation}});
}

// --- events

void Core::on_leg_event(TimePoint now, LegId id, wire::LegEvent event) {
  forgive_own_pause(now);
  const auto found = legs_.find(id);
  if (found == legs_.end()) return;
  found->second.heard_at = now;
  const Leg leg = found->second;
  Request& request = *find(leg.request);
  Run& run = request.runs[leg.run];
  registry_.on_heard(now, leg.worker);
  const auto offset_ms = [&] { return to_ms(now - request.arrival); };
  const std::string& worker = registry_.at(leg.worker).name();
  wire::Served& served = request.record.served;
  std::visit(Overloaded{
                 [&](const wire::Reserved& e) {
                   if (leg.prefill || run.local || run.state != RunState::kReserving) return;  // a repeated one
                   run.lease = e.lease;
                   run.refusal.reset();
                   run.lacked_room = false;
                   if (served.reserved_ms < 0) served.reserved_ms = offset_ms();
                   note(request, now, "reserved", worker);
                   start_prefill(request, leg.run, now);
                 },
                 [&](const wire::Started&) {
                   if (run.state != RunState::kPrefilling || leg.prefill == run.local) return;
                   run.started = true;
                   if (served.prefill_start_ms < 0) served.prefill_start_ms = offset_ms();
                   note(request, now, "prefill_started", worker);
                 },
                 [&](wire::Committed& e) {
                   if (leg.prefill) return note(request, now, "prefill_committed", worker);
                   on_committed(request, leg.run, now, std::move(e));
                 },
                 [&](const wire::Nacked& e) {
                   if (!leg.prefill)
                     return note(request, now, "nacked", e.status.to_string());  // P says so too, and there it is acted upon
                   actions_.push_back(CancelLeg{id});
                   const bool held = run.held_leg == id;
                   end_leg(id);
                   if (held) return hold_lost(request, leg.run, now, e.status.to_string());
                   prefill_failed(request, leg.run, now, leg.worker, e.status, Fault::kNacked);
                 },
                 [&](const wire::Claimed& e) { on_claimed(request, id, now, e.found); },
                 [&](const wire::Retained& e) { on_retained(request, id, now, e); },
                 [&](const wire::Preempted& e) {
                   if (leg.prefill || e.choice < run.first || e.choice >= run.first + run.n)
                     return garbage(request, id, now, "preemption of choice " + std::to_string(e.choice));
                   note(request, now, "preempted", worker + ", choice " + std::to_string(e.choice));
                   run.preempted.insert(e.choice);
                 },
                 [&](wire::Tokens& e) {
                   on_tokens(request, id, now, std::move(e.tokens));
                   if (!request.closed && request.runs[leg.run].replaces) settle_moves(request, now);
                 },
                 [&](const wire::FinishEvent& e) { on_finish(request, id, now, e); },
                 [&](wire::PromptLogprobs& e) { deliver_prompt_logprobs(request, now, std::move(e)); },
                 [&](wire::Served& e) { merge_served(request, leg, e); },
                 [&](const wire::Done&) { on_done(request, id, now); },
                 [&](const wire::Alive&) {},
                 [&](const wire::Draining&) {
                   if (leg.incarnation == registry_.at(leg.worker).status.incarnation) registry_.on_draining(leg.worker);
                   if (!leg.prefill && !request.linger_until) leave(request, leg.run, now);
                 },
                 [&](const wire::Failed& e) { leg_failed(request, id, now, e.status.with_context(worker), Fault::kFailed); },
             },
             event);
  sweep(now);
}

// P has answered the claim: the leg that had the KV is over, whatever was found.
void Core::on_claimed(Request& request, LegId id, TimePoint now, bool found) {
  Leg& leg = legs_.at(id);
  Run& run = request.runs[leg.run];
  if (!leg.prefill || run.prefill_leg != id) return;
  cancel_leg(run.held_leg);
  ++(found ? stats_.claims : stats_.claims_missed);
  note(request, now, found ? "claimed" : "claim_missed", registry_.at(leg.worker).name());
  if (found) return;
  run.hold_failures = 0;
  const auto tokens = std::ssize(request_of(request, run, now).ids);
  registry_.at(leg.worker).prefill_tokens += tokens - leg.tokens;
  leg.tokens = tokens;
}

// The hand-off failed by D's or the link's fault, and P keeps what it has. The same lease once more, which costs no computation; then
// another D; then another P, for two of them have failed with it.
void Core::on_retained(Request& request, LegId id, TimePoint now, const wire::Retained& event) {
  if (legs_.at(id).prefill) give_blocks_back(legs_.at(id));  // P drops what is unclaimed for a prompt that needs the room
  const Leg leg = legs_.at(id);
  Run& run = request.runs[leg.run];
  if (!leg.prefill || !event.reason) return;
  note(request, now, "retained", registry_.at(leg.worker).name() + ": " + event.reason->to_string());
  if (run.prefill_leg != id || run.state != RunState::kPrefilling) return;
  pairs_.failed(now, leg.worker, run.decode_worker);
  if (run.replaces) return move_failed(request, leg.run, now, *event.reason);
  ++stats_.retries_nacked;
  ++request.record.retries;
  if (!count_failure(request, run, now, *event.reason, false)) return;  // P has done its work
  hold(run);
  if (++run.hold_failures >= kHoldFailuresMax) {
    run.hold_failures = 0;
    run.tried.failed.insert(leg.worker);
    cancel_leg(run.held_leg);
  }
  if (give_lease_up(request, leg.run, now)) return;
  run.attempt = Attempt(++request.attempts);
  start_prefill(request, leg.run, now);
}

// After two failures under one lease: it may be D, or the way to it.
bool Core::give_lease_up(Request& request, std::size_t run_index, TimePoint now) {
  Run& run = request.runs[run_index];
  if (++run.lease_failures < kLeaseFailuresMax) return false;
  actions_.push_back(PollNow{run.decode_worker});
  run.tried.failed.insert(run.decode_worker);
  cancel_leg(run.decode_leg);
  restart(request, run_index, now);
  return true;
}

// D's word is authoritative: it ends any retry of the prefill, whoever's KV it was that arrived.
void Core::on_committed(Request& request, std::size_t run_index, TimePoint now, wire::Committed event) {
  Run& run = request.runs[run_index];
  if (run.state == RunState::kDecoding && event.first.empty()) return;
  const LegId leg = *run.decode_leg;
  if (event.attempt.value > request.attempts) return garbage(request, leg, now, "committed an attempt that was never made");
  if (run.state != RunState::kDecoding) {
    run.state = RunState::kDecoding;
    pairs_.worked(run.prefill_worker, run.decode_worker);
    if (run.prefill_leg && event.attempt != run.attempt) cancel_leg(run.prefill_leg);
    cancel_leg(run.held_leg);
    run.hold_failures = 0;
    run.numerics.clear();  // what follows goes on from D's tokens
    if (request.record.served.committed_ms < 0) request.record.served.committed_ms = to_ms(now - request.arrival);
    note(request, now, "committed", registry_.at(run.decode_worker).name() + ", attempt " + std::to_string(event.attempt.value));
    remember_prefix(run.decode_worker, request, request_of(request, run, now).ids);
    if (run.n > 1) {
      for (int choice = run.first; choice < run.first + run.n; ++choice)  // ended while D could not know the choice yet
        if (request.choice(choice)->finished()) actions_.push_back(FinishChoice{run.decode_worker, leg, choice});
    }
    set_wait(request, run, now, options_.token_timeout, "the next token from " + registry_.at(run.decode_worker).name());
  }
  on_tokens(request, leg, now, std::move(event.first));
  if (!request.closed && request.runs[run_index].replaces) settle_moves(request, now);
  fail_if_logprobs_lost(request, now);
}

void Core::on_tokens(Request& request, LegId id, TimePoint now, std::vector<wire::TokenEvent> tokens) {
  Leg& leg = legs_.at(id);
  Run& run = request.runs[leg.run];
  if (!leg.prefill && !run.local && run.state != RunState::kDecoding) return garbage(request, id, now, "tokens before the commit");
  std::vector<wire::TokenEvent> ready;
  // What was taken before the nonsense is emitted: a continuation starts behind it.
  const auto nonsense = [&](const std::string& what) {
    stats_.tokens += ready.size();
    request.record.tokens += static_cast<std::int64_t>(ready.size());
    for (wire::TokenEvent& token : ready) deliver(request, std::move(token));
    garbage(request, id, now, what);
  };
  for (wire::TokenEvent& token : tokens) {
    if (BATON_MUTANT(continuation_off_by_one) && run.emitted > 0) ++token.position;
    const int choice = token.choice;
    const std::int32_t position = token.position;
    if (choice < run.first || choice >= run.first + run.n) return nonsense("token of choice " + std::to_string(choice));
    if (!run.preempted.empty() && !leg.prefill) run.preempted.erase(choice);
    switch (request.choice(choice)->offer(std::move(token), ready)) {
      case ChoiceStream::Verdict::kNew:
      case ChoiceStream::Verdict::kHeld:
      case ChoiceStream::Verdict::kLate:
        break;
      case ChoiceStream::Verdict::kDuplicate:
        ++stats_.duplicates_dropped;
        break;
      case ChoiceStream::Verdict::kConflict:
        ++stats_.conflicts;
        note(request, now, "conflict", "choice " + std::to_string(choice) + ", position " + std::to_string(position), true);
        return finish(request, now, Status(Code::kDataLoss, "two workers gave different tokens for position " + std::to_string(position)));
      case ChoiceStream::Verdict::kGarbage:
        return nonsense("token at position " + std::to_string(position));
    }
  }
  if (leg.prefill && run.state != RunState::kDecoding) run.numerics = registry_.at(leg.worker).status.numerics_id;
  if (leg.prefill || run.state == RunState::kPrefilling) {  // the prompt is computed: its queue is shorter
    registry_.at(leg.worker).prefill_tokens -= std::exchange(leg.tokens, 0);
    if (request.record.served.prefill_end_ms < 0) request.record.served.prefill_end_ms = to_ms(now - request.arrival);
  }
  const std::string& worker = registry_.at(leg.worker).name();
  if (!leg.prefill && run.local) run.state = RunState::kDecoding;
  if (!leg.prefill && run.state == RunState::kDecoding) {
    set_wait(request, run, now, options_.token_timeout, "the next token from " + worker);
  } else if (leg.prefill && run.state == RunState::kPrefilling && run.prefill_leg == id) {
    set_wait(request, run, now, options_.commit_timeout, "the hand-off from " + worker);
  }
  if (ready.empty()) return;
  if (!request.stalled.empty()) {
    for (const wire::TokenEvent& token : ready) end_stall(request, now, token.choice, true);
  }
  run.tried = {};
  run.failures = run.losses = 0;
  if (!request.first_token) {
    request.first_token = true;
    request.record.served.first_token_ms = to_ms(now - request.arrival);
    note(request, now, "first_token", worker);
    deliver_served(request);
  }
  stats_.tokens += ready.size();
  admission_.spent(now, request.tenant, std::ssize(ready));
  request.record.tokens += static_cast<std::int64_t>(ready.size());
  for (wire::TokenEvent& token : ready) deliver(request, std::move(token));
}

bool Core::complete(Request& request, const Run& run) {
  for (int choice = run.first; choice < run.first + run.n; ++choice)
    if (!request.choice(choice)->finished()) return false;
  return true;
}

void Core::on_finish(Request& request, LegId id, TimePoint now, const wire::FinishEvent& event) {
  const Leg leg = legs_.at(id);
  Run& run = request.runs[leg.run];
  if (event.choice < run.first || event.choice >= run.first + run.n)
    return garbage(request, id, now, "finish of choice " + std::to_string(event.choice));
  if (!leg.prefill && !run.local && run.state != RunState::kDecoding) return garbage(request, id, now, "a finish before the commit");
  ChoiceStream& stream = *request.choice(event.choice);
  if (stream.finished()) return;
  if (stream.has_gap()) return garbage(request, id, now, "finish behind a missing token");
  if (event.reason == wire::FinishReason::kAbort)  // the worker gave it up, it did not end: whatever is missing can be had elsewhere
    return leg_failed(request, id, now, Status(Code::kUnavailable, registry_.at(leg.worker).name() + " aborted the sequence"),
                      Fault::kFailed);
  stream.finish();
  end_stall(request, now, event.choice, true);
  drop_move(request, event.choice);
  settle_moves(request, now);
  deliver(request, event);
  if (!leg.prefill) {
    std::vector<TokenId> ids = request.base.ids;
    ids.insert(ids.end(), stream.tokens().begin(), stream.tokens().end());
    remember_prefix(leg.worker, request, ids);
  }
  // It ended with its first tokens: D holds a lease that nobody will use, or there will be none.
  if (run.state != RunState::kDecoding && run.state != RunState::kEnded && !run.local && complete(request, run)) {
    admission_.erase({request.key, leg.run});
    cancel_leg(run.decode_leg);
    run.state = RunState::kEnded;
    run.deadline = kNever;
  }
  finish_if_complete(request, now);
}

void Core::on_done(Request& request, LegId id, TimePoint now) {
  const Leg leg = legs_.at(id);
  Run& run = request.runs[leg.run];
  if (!leg.prefill && !complete(request, run)) return garbage(request, id, now, "done before every choice had finished");
  const bool held = run.held_leg == id;
  end_leg(id);
  if (held) return hold_lost(request, leg.run, now, registry_.at(leg.worker).name() + " is done with it");
  if (!leg.prefill) {
    run.state = RunState::kEnded;
    run.deadline = kNever;
  } else if (run.state == RunState::kPrefilling) {
    set_wait(request, run, now, options_.commit_timeout, "the commit on " + registry_.at(run.decode_worker).name());
  }
  fail_if_logprobs_lost(request, now);
  finish_if_complete(request, now);
}

// Workers report what they did; times are taken here, where the request arrived.
void Core::merge_served(Request& request, const Leg& leg, wire::Served& said) {
  wire::Served& served = request.record.served;
  const Run& run = request.runs[leg.run];
  // The cache hit of a continuation is the gateway's doing, not the client's.
  if ((leg.prefill || run.local) && run.emitted == 0) served.cached_tokens = std::clamp(said.cached_tokens, 0, request.base.n_prompt);
  served.kv_bytes = std::max(served.kv_bytes, said.kv_bytes);
  served.kv_bytes_early = std::max(served.kv_bytes_early, said.kv_bytes_early);
  if (said.handoff) {
    const bool prefill = leg.prefill || run.local;
    request.record.add_times(prefill, registry_.at(leg.worker).name(), leg.sent_at - request.arrival, leg.heard_at - request.arrival,
                             std::move(*said.handoff));
  }
  deliver_served(request);
}

// --- failures

void Core::on_leg_end(TimePoint now, LegId id, const LegEnd& end) {
  forgive_own_pause(now);
  const auto found = legs_.find(id);
  if (found == legs_.end()) return;
  const WorkerId worker = found->second.worker;
  Request& request = *find(found->second.request);
  const std::string& name = registry_.at(worker).name();
  // A broken connection says nothing about the request, whatever the code: it may be tried elsewhere.
  const auto broken = [&](const Status& s) {
    return Status(retryable(s.code()) ? s.code() : Code::kUnavailable, name + ": " + s.message());
  };
  switch (end.kind) {
    case LegEnd::Kind::kComplete:
      leg_failed(request, id, now, Status(Code::kUnavailable, name + " ended its answer early"), Fault::kFailed);
      break;
    case LegEnd::Kind::kRefused: {
      const bool room_changed = room_changed_;
      leg_failed(request, id, now, end.status.with_context(name), Fault::kRefused);
      room_changed_ = room_changed;  // a refused leg held nothing: asking again at once would get the same answer
      break;
    }
    case LegEnd::Kind::kBroken:
      registry_.on_leg_broken(worker, end.status.message());
      actions_.push_back(PollNow{worker});
      leg_failed(request, id, now, broken(end.status), end.status.code() == Code::kDataLoss ? Fault::kFailed : Fault::kLost);
      break;
    case LegEnd::Kind::kUnreachable: {
      const auto change = registry_.on_poll_failed(now, worker, true, end.status.message());
      actions_.push_back(PollNow{worker});
      leg_failed(request, id, now, broken(end.status), Fault::kLost);
      if (change == Registry::Change::kLost) lose_legs(now, worker, std::nullopt, "died: " + end.status.message());
      break;
    }
  }
  sweep(now);
}

void Core::garbage(Request& request, LegId id, TimePoint now, const std::string& what) {
  ++stats_.garbage;
  actions_.push_back(CancelLeg{id});
  leg_failed(request, id, now, Status(Code::kDataLoss, registry_.at(legs_.at(id).worker).name() + " sent nonsense: " + what),
             Fault::kFailed);
}

void Core::leg_failed(Request& request, LegId id, TimePoint now, const Status& status, Fault fault) {
  const Leg leg = legs_.at(id);
  const bool held = request.runs[leg.run].held_leg == id;
  end_leg(id);
  if (held) return hold_lost(request, leg.run, now, status.to_string());
  if (request.linger_until) return finish_if_complete(request, now);
  begin_stall(request, leg, now, status);
  if (leg.prefill) {
    prefill_failed(request, leg.run, now, leg.worker, status, fault);
  } else {
    decode_failed(request, leg.run, now, leg.worker, status, fault);
  }
}

// One that has no room may have it for others; one that is unavailable is so for all, and its role may be gone with it.
void Core::take_refusal(Run& run, WorkerId worker, const Status& status) {
  run.tried.refused.insert(worker);
  const bool room_will_do = run.refusal && run.refusal->code() == Code::kResourceExhausted;
  if (!room_will_do) run.refusal = status;
  if (status.code() != Code::kUnavailable) return;
  registry_.on_refused(worker, status.message());
  actions_.push_back(PollNow{worker});
}

// False if the request has failed for good. One that brings down whoever works on it must not go through the whole cluster; one that only
// waited where a worker was lost is innocent, and goes on for as long as its deadline allows (`losses_max` ends a loop without pauses).
bool Core::count_failure(Request& request, Run& run, TimePoint now, const Status& status, bool at_work) {
  const int most = at_work ? options_.retries_max : options_.losses_max;
  if (++(at_work ? run.failures : run.losses) <= most) return true;
  finish(request, now, status.with_context("gave up after " + std::to_string(most) + " retries"));
  return false;
}

void Core::prefill_failed(Request& request, std::size_t run_index, TimePoint now, WorkerId worker, const Status& said, Fault fault) {
  const bool refused = fault == Fault::kRefused, nacked = fault == Fault::kNacked;
  const Status status = as_ours(said, now, request.deadline);
  Run& run = request.runs[run_index];
  if (run.state != RunState::kPrefilling) return fail_if_logprobs_lost(request, now);  // D has committed
  if (nacked) pairs_.failed(now, worker, run.decode_worker);
  if (run.replaces) return move_failed(request, run_index, now, status);
  note(request, now, nacked ? "prefill_nacked" : refused ? "prefill_refused" : "prefill_failed", status.to_string(), !refused);
  // A claim that was refused may still be computed: the request itself has been accepted once.
  const bool claim_refused = run.held_leg && refused;
  cancel_leg(run.held_leg);
  run.hold_failures = 0;
  if (!retryable(status.code()) && !claim_refused) return finish(request, now, status);
  ++(nacked ? stats_.retries_nacked : refused ? stats_.retries_prefill_refused : stats_.retries_prefill_failed);
  stats_.retries_prefill_lost += fault == Fault::kLost ? 1 : 0;
  ++request.record.retries;
  if (refused && !claim_refused) {
    take_refusal(run, worker, status);
  } else if (!refused) {
    run.tried.failed.insert(worker);
    if (!count_failure(request, run, now, status, fault != Fault::kLost || run.started)) return;
    if (give_lease_up(request, run_index, now)) return;
  }
  run.attempt = Attempt(BATON_MUTANT(retry_keeps_attempt) ? request.attempts : ++request.attempts);
  start_prefill(request, run_index, now);
}

void Core::decode_failed(Request& request, std::size_t run_index, TimePoint now, WorkerId worker, const Status& said, Fault fault) {
  const bool refused = fault == Fault::kRefused;
  const Status status = as_ours(said, now, request.deadline);
  Run& run = request.runs[run_index];
  if (run.replaces) return move_failed(request, run_index, now, status);
  // What P computes or has computed is good for another D.
  if (run.prefill_leg && run.state == RunState::kPrefilling && !run.local && !request.linger_until) {
    hold(run);
  } else {
    cancel_leg(run.prefill_leg);
  }
  if (run.state == RunState::kEnded) return cancel_leg(run.held_leg);
  const bool at_work = fault != Fault::kLost || run.state == RunState::kDecoding || (run.local && run.started);
  note(request, now, refused ? "decode_refused" : "decode_failed", status.to_string(), !refused);
  if (!retryable(status.code())) return finish(request, now, status);
  ++(refused ? stats_.retries_decode_refused : stats_.retries_decode_failed);
  stats_.retries_decode_lost += fault == Fault::kLost ? 1 : 0;
  ++request.record.retries;
  if (refused) {
    take_refusal(run, worker, status);
    run.lacked_room |= status.code() == Code::kResourceExhausted;
  } else {
    run.tried.failed.insert(worker);
    if (!count_failure(request, run, now, status, at_work)) return;
  }
  restart(request, run_index, now);
}

// A choice whose last token was its end has no more to say, though its finish was lost with the worker. The rule is the engine's; the
// limit of the context is part of max_tokens already.
void Core::finish_ended(Request& request, int choice) {
  ChoiceStream& stream = *request.choice(choice);
  const wire::SamplingParams& p = request.base.sampling;
  const auto before = static_cast<std::int64_t>(request.base.ids.size()) - request.base.n_prompt;
  const std::int64_t generated = before + std::ssize(stream.tokens());
  if (stream.finished() || stream.tokens().empty()) return;
  const TokenId last = stream.tokens().back();
  const auto in = [last](const std::vector<TokenId>& ids) { return std::ranges::find(ids, last) != ids.end(); };
  const bool stopped = generated > p.min_tokens && ((!p.ignore_eos && in(p.eos_ids)) || in(p.stop_token_ids));
  if (!stopped && generated < p.max_tokens) return;
  wire::FinishEvent event{.choice = choice, .reason = wire::FinishReason::kLength, .stop_token = {}};
  if (stopped) event.reason = wire::FinishReason::kStop, event.stop_token = last;
  stream.finish();
  end_stall(request, last_event_, choice, true);
  drop_move(request, choice);
  deliver(request, event);
}

// Goes on elsewhere from what was emitted. Choices that have parted need a run each, unless a prefill worker keeps what all of them began
// with.
void Core::restart(Request& request, std::size_t run_index, TimePoint now) {
  const bool held = request.runs[run_index].held_leg.has_value();
  if (!held) request.runs[run_index].numerics.clear();
  const Run old = request.runs[run_index];
  bool parted = false, emitted = false, moves = false;
  std::vector<int> unfinished;
  for (int choice = old.first; choice < old.first + old.n; ++choice) {
    ChoiceStream& stream = *request.choice(choice);
    stream.drop_held();
    finish_ended(request, choice);
    emitted |= !stream.tokens().empty();
    parted |= !stream.tokens().empty() || stream.finished();
    if (stream.finished()) continue;
    if (Run* mover = request.mover(run_index, choice)) {  // it is on its way already
      promote(request, *mover);
      moves = parted = true;
    } else {
      unfinished.push_back(choice);
    }
  }
  if (emitted && (moves || !unfinished.empty())) ++stats_.resumed;
  if (!unfinished.empty() && (old.n == 1 || !parted || held)) return start_run(request, run_index, now);
  cancel_leg(request.runs[run_index].held_leg);
  request.runs[run_index].state = RunState::kEnded;
  request.runs[run_index].deadline = kNever;
  if (unfinished.empty()) return finish_if_complete(request, now);
  for (const int choice : unfinished) {
    if (request.closed) return;
    request.runs.push_back(Run{.first = choice,
                               .n = 1,
                               .decode_worker = old.decode_worker,
                               .failures = old.failures,
                               .losses = old.losses,
                               .tried = old.tried,
                               .refusal = old.refusal,
                               .lacked_room = old.lacked_room});
    start_run(request, request.runs.size() - 1, now);
  }
}

}  // namespace baton::gateway
