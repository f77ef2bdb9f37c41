// How a run gets its two legs, and how it lets go of them.

#include <algorithm>
#include <utility>

#include "base/mutant.h"
#include "gateway/core.h"
#include "gateway/request.h"
#include "wire/trace_context.h"

namespace baton::gateway {

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

}  // namespace baton::gateway
