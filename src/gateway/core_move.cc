// Streams leave a worker that goes down before it is gone.
//
// A decoding run on a draining worker is replaced by runs elsewhere, one a choice, which prefill prompt + emitted ids. The worker streams
// on meanwhile; ChoiceStream takes each position from whoever brings it first. Once all replacements decode, the old leg is cancelled.
// Until then a replacement that fails ends nothing but itself, and if the old leg is lost the replacements become its continuation.

#include <algorithm>
#include <utility>

#include "base/mutant.h"
#include "gateway/core.h"
#include "gateway/request.h"

namespace baton::gateway {
namespace {

constexpr Duration kFirstPause = std::chrono::milliseconds(250);
constexpr Duration kLastPause = std::chrono::seconds(4);

}  // namespace

// `worker` goes down. What decodes there moves; what only waits there for its prefill starts anew elsewhere, if there is an elsewhere: its
// reservation is worth nothing yet, but it is better than none.
void Core::on_draining(TimePoint now, WorkerId worker) {
  std::vector<LegId> there;
  for (const auto& [id, leg] : legs_)
    if (leg.worker == worker && !leg.prefill && leg.incarnation == registry_.at(worker).status.incarnation) there.push_back(id);
  for (const LegId id : there) {
    const auto found = legs_.find(id);
    if (found == legs_.end()) continue;
    const std::size_t run_index = found->second.run;
    Request& request = *find(found->second.request);
    if (request.linger_until) continue;
    leave(request, run_index, now);
  }
}

// A worker of the same arithmetic: two workers stream at once, so their tokens must be equal bit for bit.
Tried Core::unlike(WorkerId worker) const {
  Tried tried;
  const std::string& numerics = registry_.at(worker).status.numerics_id;
  for (int i = 0; i < std::ssize(registry_.workers()); ++i)
    if (WorkerId(i) == worker || registry_.at(WorkerId(i)).status.numerics_id != numerics) tried.refused.insert(WorkerId(i));
  return tried;
}

void Core::leave(Request& request, std::size_t run_index, TimePoint now) {
  Run& run = request.runs[run_index];
  if (!run.decode_leg || !registry_.at(run.decode_worker).status.draining) return;
  const std::string why = registry_.at(run.decode_worker).name() + " is going down";
  if (run.replaces) return move_failed(request, run_index, now, Status(Code::kUnavailable, why));
  if (run.state == RunState::kDecoding) {
    if (run.move_at == kNever) start_moves(request, run_index, now);
    return;
  }
  const wire::GenerateRequest sent = request_of(request, run, now);
  Tried tried = run.tried;
  tried.refused.insert(run.decode_worker);
  if (!placement_.decode({sent.ids, run.n, sent.sampling.max_tokens, sent.cache_salt}, tried, Fallback::kFail).ok()) return;
  const WorkerId worker = run.decode_worker;
  cancel_leg(run.decode_leg);
  decode_failed(request, run_index, now, worker, Status(Code::kUnavailable, why), Fault::kRefused);
}

// Replacements for each choice that has none. Where nobody can take them now, again after a pause.
void Core::start_moves(Request& request, std::size_t run_index, TimePoint now) {
  const Run old = request.runs[run_index];
  const WorkerId from = old.decode_worker;
  request.runs[run_index].move_at = kNever;
  if (old.state != RunState::kDecoding || !registry_.at(from).status.draining) return;
  bool all = old.local || registry_.at(old.prefill_worker).status.numerics_id == registry_.at(from).status.numerics_id;
  if (request.wants_prompt_logprobs() || !admission_.empty() || probe_) all = false;
  for (int choice = old.first; all && choice < old.first + old.n; ++choice)
    if (!request.choice(choice)->finished() && request.mover(run_index, choice) == nullptr)
      all = start_move(request, run_index, choice, now);
  if (all) return settle_moves(request, now);
  Run& run = request.runs[run_index];
  run.move_pause = std::clamp(2 * run.move_pause, kFirstPause, kLastPause);
  run.move_at = now + run.move_pause;
  wake_at(request, run.move_at);
}

// False if nobody can take it.
bool Core::start_move(Request& request, std::size_t old_index, int choice, TimePoint now) {
  const WorkerId from = request.runs[old_index].decode_worker;
  Run run{.first = choice, .n = 1, .emitted = request.choice(choice)->tokens().size(), .tried = unlike(from), .replaces = old_index};
  wire::GenerateRequest sent = request_of(request, run, now);
  const auto new_tokens = std::max<std::int64_t>(0, sent.sampling.max_tokens - static_cast<std::int64_t>(run.emitted));
  const Need need{sent.ids, 1, static_cast<std::int32_t>(new_tokens), sent.cache_salt};
  const auto placed = placement_.decode(need, run.tried, Fallback::kFail);
  if (!placed.ok()) return false;
  const Worker& worker = registry_.at(placed->worker);
  run.local = placed->local_prefill;
  const std::optional<Plan> plan = run.local ? Plan{} : plan_prefill(need, run.tried, placed->worker, now);
  if (!plan || (!run.local && !plan->worker)) return false;
  run.attempt = Attempt(++request.attempts);
  run.decode_worker = placed->worker;
  run.decode_incarnation = worker.status.incarnation;
  if (run.local) run.state = RunState::kPrefilling;

  // The place of an earlier attempt is used again: a drain of any length leaves one run a choice.
  std::size_t index = request.runs.size();
  for (std::size_t i = 0; i < request.runs.size(); ++i) {
    const Run& r = request.runs[i];
    if (r.state == RunState::kEnded && r.replaces == old_index && r.first == choice && !r.decode_leg && !r.prefill_leg) index = i;
  }
  const bool local = run.local;
  if (index == request.runs.size()) request.runs.emplace_back();
  request.runs[index] = std::move(run);
  note(request, now, "move", registry_.at(from).name() + " goes down: choice " + std::to_string(choice) + " to " + worker.name());
  const auto ids = static_cast<std::int64_t>(sent.ids.size());
  const LegId leg = open_leg(request, index, false, placed->worker, placement_.blocks(placed->worker, need), local ? ids : 0);
  keep_plan(leg, *plan);
  set_wait(request, request.runs[index], now,
           local ? options_.prefill_slack + 4 * placement_.prefill_estimate(placed->worker, need) : options_.reserve_timeout,
           (local ? "prefill on " : "a reservation on ") + worker.name());
  if (local) remember_prefix(placed->worker, request, sent.ids);
  sent.traceparent = hop(request, leg);
  actions_.push_back(
      StartDecode{leg, placed->worker, {std::move(sent), request.runs[index].attempt, local, {options_.identity, leg.value}}});
  return true;
}

// A replacement failed: the old run goes on, and another attempt follows after a pause.
void Core::move_failed(Request& request, std::size_t run_index, TimePoint now, const Status& status) {
  end_move(request, run_index);
  note(request, now, "move_failed", status.to_string());
  Run& old = request.runs[*request.runs[run_index].replaces];
  if (old.state != RunState::kDecoding || old.move_at != kNever) return;
  old.move_pause = std::clamp(2 * old.move_pause, kFirstPause, kLastPause);
  old.move_at = now + old.move_pause;
  wake_at(request, old.move_at);
}

void Core::end_move(Request& request, std::size_t run_index) {
  Run& run = request.runs[run_index];
  cancel_legs(run);
  run.state = RunState::kEnded;
  run.deadline = kNever;
}

// `choice` has ended: nobody else needs to bring it.
void Core::drop_move(Request& request, int choice) {
  for (std::size_t i = 0; i < request.runs.size(); ++i) {
    const Run& run = request.runs[i];
    if (run.replaces && run.state != RunState::kEnded && run.first == choice) end_move(request, i);
  }
}

// The old leg is cancelled once everything that it still decodes is decoded elsewhere.
void Core::settle_moves(Request& request, TimePoint now) {
  for (std::size_t i = 0; i < request.runs.size(); ++i) {
    Run& old = request.runs[i];
    if (old.state != RunState::kDecoding || old.replaces) continue;
    std::vector<Run*> movers;
    bool all = true;
    for (int choice = old.first; choice < old.first + old.n; ++choice) {
      if (request.choice(choice)->finished()) continue;
      Run* mover = request.mover(i, choice);
      all &= mover != nullptr && (mover->state == RunState::kDecoding || BATON_MUTANT(moved_too_early));
      movers.push_back(mover);
    }
    if (!all || movers.empty()) continue;
    ++stats_.moved;
    note(request, now, "moved", "from " + registry_.at(old.decode_worker).name());
    cancel_legs(old);
    old.state = RunState::kEnded;
    old.deadline = old.move_at = kNever;
    for (Run* mover : movers) promote(request, *mover);
    deliver_served(request);
  }
}

// A replacement is an ordinary run from now on.
void Core::promote(Request& request, Run& run) {
  run.replaces.reset();
  run.tried = {};
  request.choice(run.first)->drop_held();  // of the old leg
  wire::Served& served = request.record.served;
  served.attempts = static_cast<int>(request.attempts);
  served.decode_worker = registry_.at(run.decode_worker).name();
  served.disaggregated = !run.local;
  if (run.state >= RunState::kPrefilling) served.prefill_worker = registry_.at(run.local ? run.decode_worker : run.prefill_worker).name();
}

}  // namespace baton::gateway
