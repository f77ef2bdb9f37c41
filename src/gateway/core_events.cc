// What legs say, and what becomes of it.

#include <algorithm>
#include <utility>

#include "base/mutant.h"
#include "gateway/core.h"
#include "gateway/request.h"

namespace baton::gateway {
namespace {

constexpr int kHoldFailuresMax = 3;  // one more than a lease's: another decode worker has failed with it too

template <class... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};

}  // namespace

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
    emit(request, std::move(ready));
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
  admission_.spent(now, request.tenant, std::ssize(ready));
  emit(request, std::move(ready));
}

void Core::emit(Request& request, std::vector<wire::TokenEvent> tokens) {
  stats_.tokens += tokens.size();
  request.record.tokens += std::ssize(tokens);
  for (wire::TokenEvent& token : tokens) deliver(request, std::move(token));
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

}  // namespace baton::gateway
