// A leg fails: who is to blame, what may be tried again, and where.

#include <algorithm>
#include <utility>

#include "base/mutant.h"
#include "gateway/core.h"
#include "gateway/request.h"

namespace baton::gateway {
namespace {

constexpr int kLeaseFailuresMax = 2;

// What a worker says of its own waits, its clock and its partner does not end the request: only the client cancels, and the deadline is
// that of our clock.
Status as_ours(const Status& said, TimePoint now, TimePoint deadline) {
  const bool theirs = said.code() == Code::kCancelled || (said.code() == Code::kDeadlineExceeded && now < deadline);
  return theirs ? Status(Code::kUnavailable, said.message()) : said;
}

}  // namespace

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
  if (++(at_work ? run.failures : run.losses) <= most || BATON_MUTANT(retries_unbounded)) return true;
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
