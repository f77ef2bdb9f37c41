#include "gateway/core.h"

#include <algorithm>
#include <utility>

#include "base/mutant.h"
#include "gateway/request.h"
#include "wire/trace_context.h"

namespace baton::gateway {

Core::Core(const CoreOptions& options, std::vector<WorkerConfig> workers)
    : options_(options), registry_(options.registry, std::move(workers)), log_(options.log_records_max), admission_(options.tenants) {}
Core::~Core() = default;

Core::Request* Core::find(RequestKey key) {
  const auto found = requests_.find(key);
  return found == requests_.end() || found->second->closed ? nullptr : found->second.get();
}

// --- from clients

RequestKey Core::submit(TimePoint now, wire::GenerateRequest base) {
  forgive_own_pause(now);
  const RequestKey key(++last_request_);
  ++stats_.requests;
  const auto reject = [&](Status status) {
    ++stats_.rejected;
    admission_.rejected(admission_.known(base.tenant));
    actions_.push_back(Remark{base.id, wire::trace_id_of(base.traceparent), "rejected: " + status.to_string(), false});
    actions_.push_back(Deliver{key, std::move(status)});
    return key;
  };
  if (base.ids.empty() || base.n_prompt < 1 || static_cast<std::size_t>(base.n_prompt) > base.ids.size() || base.n < 1 ||
      base.first_choice < 0)
    return reject(Status(Code::kInvalidArgument, "a request needs at least one prompt token and one choice"));
  if (base.timeout <= Duration::zero())
    return reject(Status(Code::kDeadlineExceeded, "the request's time ran out before it was dispatched"));
  if (Status status = admit(now, base); !status.ok()) return reject(std::move(status));

  auto owned = std::make_unique<Request>();
  Request& request = *owned;
  request.key = key;
  request.arrival = now;
  request.deadline = deadline_of(now, base);
  request.choices.assign(static_cast<std::size_t>(base.n), ChoiceStream(static_cast<std::int32_t>(base.ids.size())));
  request.record.id = base.id;
  request.record.trace_id = wire::trace_id_of(base.traceparent);
  request.record.traceparent = base.traceparent;
  request.record.served.attempts = 0;
  request.record.served.prompt_tokens = base.n_prompt;
  request.runs.push_back(Run{.first = base.first_choice, .n = base.n});
  request.tenant = admission_.known(base.tenant);
  request.cost = cost_of(std::ssize(base.ids), base.sampling.max_tokens, base.n);
  admission_.arrived(now, request.tenant, base.n_prompt);
  request.base = std::move(base);
  requests_.emplace(key, std::move(owned));
  wake_at(request, request.deadline);
  note(request, now, "arrived");
  start_run(request, 0, now);
  sweep(now);
  return key;
}

void Core::cancel(TimePoint now, RequestKey key) {
  forgive_own_pause(now);
  Request* request = find(key);
  if (request == nullptr) return;
  ++stats_.cancelled;
  close(*request, now, Status(Code::kCancelled, "the client went away"));
  sweep(now);
}

void Core::finish_choice(TimePoint now, RequestKey key, int choice) {
  forgive_own_pause(now);
  Request* request = find(key);
  ChoiceStream* stream = request == nullptr ? nullptr : request->choice(choice);
  if (stream == nullptr || stream->finished()) return;
  stream->finish();
  end_stall(*request, now, choice, true);
  drop_move(*request, choice);
  settle_moves(*request, now);
  note(*request, now, "choice_finished_by_client", std::to_string(choice));
  deliver(*request, wire::FinishEvent{.choice = choice, .reason = wire::FinishReason::kStop, .stop_token = {}});
  if (request->all_finished()) {
    request->base.sampling.prompt_logprobs = -1;  // whoever ends it all before they come does not want them
    release_tokens(*request);
    finish(*request, now, Status());
  } else if (Run* run = request->run_of(choice); run != nullptr) {
    if (run->n == 1) {  // nothing else hangs on its legs
      admission_.erase({key, static_cast<std::size_t>(run - request->runs.data())});
      cancel_legs(*run);
      run->state = RunState::kEnded;
      run->deadline = kNever;
      fail_if_logprobs_lost(*request, now);
    } else if (run->state == RunState::kDecoding) {
      actions_.push_back(FinishChoice{run->decode_worker, *run->decode_leg, choice});
    }
  }
  sweep(now);
}

// --- ends of a request

void Core::deliver(Request& request, Emission event) {
  const bool follows = std::holds_alternative<wire::TokenEvent>(event) || std::holds_alternative<wire::FinishEvent>(event);
  if (follows && request.wants_prompt_logprobs()) return request.behind_logprobs.push_back(std::move(event));
  actions_.push_back(Deliver{request.key, std::move(event)});
}

// They come from P and are long; D's tokens, which follow them, may be here before.
void Core::deliver_prompt_logprobs(Request& request, TimePoint now, wire::PromptLogprobs event) {
  if (!request.wants_prompt_logprobs()) return;
  request.prompt_logprobs_sent = true;
  deliver(request, std::move(event));
  release_tokens(request);
  if (request.linger_until) wake_at(request, *(request.linger_until = now + options_.linger));
}

void Core::release_tokens(Request& request) {
  for (Emission& held : std::exchange(request.behind_logprobs, {})) deliver(request, std::move(held));
}

void Core::fail_if_logprobs_lost(Request& request, TimePoint now) {
  if (!request.closed && request.prompt_logprobs_lost()) finish(request, now, Status());
}

void Core::deliver_served(Request& request) { deliver(request, request.record.served); }

void Core::note(Request& request, TimePoint now, std::string what, std::string detail, bool trouble) {
  actions_.push_back(Remark{request.record.id, request.record.trace_id, detail.empty() ? what : what + ": " + detail, trouble});
  request.record.add(now - request.arrival, std::move(what), std::move(detail));
}

// Ends a request with its one terminal outcome.
void Core::finish(Request& request, TimePoint now, Status status) {
  if (request.closed) return;
  if (status.ok() && request.wants_prompt_logprobs())
    status = Status(Code::kUnavailable, "the worker that had the prompt's log-probabilities was lost; retry");
  ++(status.ok() ? stats_.finished : stats_.failed);
  deliver_served(request);
  close(request, now, status);
  deliver(request, std::move(status));
}

// Cancels what is open and files the record.
void Core::close(Request& request, TimePoint now, const Status& status) {
  request.closed = true;
  for (Run& run : request.runs) {
    cancel_legs(run);
    admission_.erase({request.key, static_cast<std::size_t>(&run - request.runs.data())});
    run.state = RunState::kEnded;
  }
  admission_.ended(request.tenant);
  if (status.ok()) learn_holding(request, now);
  wakes_.erase({request.wake, request.key});
  while (!request.stalled.empty()) end_stall(request, now, request.stalled.begin()->first, false);
  note(request, now, status.ok() ? "finished" : "ended", status.ok() ? "" : status.to_string(),
       !status.ok() && status.code() != Code::kCancelled);
  request.record.finished = true;
  request.record.status = status;
  request.record.total = now - request.arrival;
  stats_.kv_bytes += static_cast<std::uint64_t>(std::max<std::int64_t>(0, request.record.served.kv_bytes));
  log_.put(std::move(request.record));
  closed_.push_back(request.key);
}

// Once every choice has finished, the legs' last events (statistics, Done) are waited for a moment: a connection that ends by itself is
// used again.
void Core::finish_if_complete(Request& request, TimePoint now) {
  if (request.closed || !request.all_finished()) return;
  if (!request.linger_until) {
    request.linger_until =
        request.wants_prompt_logprobs() ? std::min(request.deadline, now + options_.token_timeout) : now + options_.linger;
    wake_at(request, *request.linger_until);
    for (Run& run : request.runs) run.deadline = kNever;
  }
  const bool open = std::ranges::any_of(request.runs, [](const Run& run) { return run.decode_leg || run.prefill_leg || run.held_leg; });
  if (!open || now >= *request.linger_until || request.prompt_logprobs_lost()) finish(request, now, Status());
}

void Core::sweep(TimePoint now) {
  settle_probe();
  if (std::exchange(room_changed_, false)) dispatch_queue(now);
  for (const RequestKey key : closed_) requests_.erase(key);
  closed_.clear();
}

// --- time

// The request wants on_time() at `at` or before. Deadlines that move away are not followed: the wake-up finds nothing to do and sets the
// next one.
void Core::wake_at(Request& request, TimePoint at) {
  if (request.closed || at >= request.wake) return;
  wakes_.erase({request.wake, request.key});
  request.wake = at;
  wakes_.insert({at, request.key});
}

void Core::on_time(TimePoint now) {
  forgive_own_pause(now);
  std::vector<RequestKey> due;
  for (const auto& [at, key] : wakes_) {
    if (at > now) break;
    due.push_back(key);
  }
  for (const RequestKey key : due) {
    Request* request = find(key);
    if (request == nullptr) continue;
    wakes_.erase({request->wake, key});
    request->wake = kNever;
    expire(*request, now);
    if (request->closed) continue;
    TimePoint next = request->linger_until.value_or(request->deadline);
    if (!request->linger_until) {
      for (const Run& run : request->runs) next = std::min({next, run.deadline, run.move_at});
    }
    wake_at(*request, next);
  }
  sweep(now);
}

void Core::expire(Request& request, TimePoint now) {
  if (request.linger_until) return finish_if_complete(request, now);
  if (now >= request.deadline) {
    std::string waiting;
    for (const Run& run : request.runs)
      if (run.state != RunState::kEnded && waiting.empty()) waiting = run.waiting_for;
    ++stats_.waits_expired;
    return finish(request, now,
                  Status(Code::kDeadlineExceeded, "the request's time-out of " + std::to_string(request.base.timeout.count() / 1000) +
                                                      " ms ran out while waiting for " + waiting));
  }
  for (std::size_t i = 0; i < request.runs.size() && !request.closed; ++i) {
    if (now >= request.runs[i].move_at) start_moves(request, i, now);
    Run& run = request.runs[i];
    if (now < run.deadline) continue;
    if (run.state == RunState::kQueued) return refuse_late(request, now);
    run.deadline = kNever;
    const bool at_prefill = run.prefill_leg && run.state == RunState::kPrefilling;
    const auto leg = at_prefill ? run.prefill_leg : run.decode_leg;
    if (!leg) continue;
    const WorkerId worker = legs_.at(*leg).worker;
    if (only_preempted(request, run, now)) {
      set_wait(request, run, now, options_.token_timeout, "its turn after a preemption on " + registry_.at(worker).name());
      continue;
    }
    const bool handing_over =
        run.state == RunState::kPrefilling && !run.local && (!run.prefill_leg || legs_.at(*run.prefill_leg).tokens == 0);
    if (handing_over) pairs_.failed(now, run.prefill_worker, run.decode_worker);
    const Status status(Code::kUnavailable, registry_.at(worker).name() + ": waited too long for " + run.waiting_for);
    ++stats_.waits_expired;
    registry_.on_leg_broken(worker, status.message());
    actions_.push_back(PollNow{worker});
    actions_.push_back(CancelLeg{*leg});
    leg_failed(request, *leg, now, status, Fault::kLost);
  }
}

// D has put aside what is left of the run, and works on others meanwhile: silence, but nothing is lost.
bool Core::only_preempted(Request& request, const Run& run, TimePoint now) const {
  if (run.state != RunState::kDecoding) return false;
  for (int choice = run.first; choice < run.first + run.n; ++choice)
    if (!request.choice(choice)->finished() && !run.preempted.contains(choice)) return false;
  const Worker& worker = registry_.at(run.decode_worker);
  return worker.liveness == Liveness::kAlive && now - worker.progress_at < options_.token_timeout;
}

// --- workers

void Core::on_status(TimePoint now, WorkerId worker, const wire::WorkerStatus& status) {
  forgive_own_pause(now);
  const auto change = registry_.on_status(now, worker, status);
  if (change == Registry::Change::kRestarted) lose_legs(now, worker, status.incarnation, "restarted");
  if (change == Registry::Change::kHung && !BATON_MUTANT(hung_keeps_legs))
    lose_legs(now, worker, std::nullopt, registry_.at(worker).problem);
  lose_silent_legs(now, worker);
  whole_once_ |= registry_.ready();
  if (status.draining) on_draining(now, worker);
  room_changed_ = true;
  sweep(now);
}

void Core::on_poll_failed(TimePoint now, WorkerId worker, bool unreachable, const std::string& why) {
  forgive_own_pause(now);
  const bool lost = registry_.on_poll_failed(now, worker, unreachable, why) == Registry::Change::kLost;
  if (lost && (unreachable || !BATON_MUTANT(hung_keeps_legs))) lose_legs(now, worker, std::nullopt, "died: " + why);
}

// Legs say at least that they live, four times in the progress time-out. One that does not has lost its way to here, though its worker
// answers polls: it alone is given up, not the worker. Looked at with each poll, so that no token touches a timer.
void Core::lose_silent_legs(TimePoint now, WorkerId worker) {
  std::vector<LegId> silent;
  for (const auto& [id, leg] : legs_)
    if (leg.worker == worker && now - leg.heard_at >= options_.registry.progress_timeout) silent.push_back(id);
  give_legs_up(now, silent, Status(Code::kUnavailable, registry_.at(worker).name() + ": the leg says nothing any more"));
}

void Core::give_legs_up(TimePoint now, const std::vector<LegId>& lost, const Status& why) {
  for (const LegId id : lost) {
    const auto leg = legs_.find(id);
    if (leg == legs_.end()) continue;  // went with its partner
    Request* request = find(leg->second.request);
    BATON_CHECK(request != nullptr);
    actions_.push_back(CancelLeg{id});
    leg_failed(*request, id, now, why, Fault::kLost);
  }
}

// Polls alone make several events in the progress time-out. Where none came, this process stood still, and what the legs said meanwhile is
// yet to be read.
void Core::forgive_own_pause(TimePoint now) {
  const bool late = now - std::exchange(last_event_, now) >= options_.registry.progress_timeout / 2;
  if (!late) return;
  for (auto& [id, leg] : legs_) leg.heard_at = now;
}

// Fails the legs on a worker, except those to the incarnation that lives.
void Core::lose_legs(TimePoint now, WorkerId worker, std::optional<Incarnation> living, const std::string& why) {
  std::vector<LegId> lost;
  for (const auto& [id, leg] : legs_)
    if (leg.worker == worker && (!living || leg.incarnation != *living)) lost.push_back(id);
  room_changed_ = true;  // it may have been the last one: who waits must hear of it
  if (const auto head = admission_.next(); head && BATON_MUTANT(queue_head_dropped)) admission_.erase(*head);
  give_legs_up(now, lost, Status(Code::kUnavailable, registry_.at(worker).name() + " " + why));
  sweep(now);
}

// --- views

std::optional<std::string> Core::not_ready() const {
  const auto left = [&](wire::Role role) { return !registry_.usable(role).empty(); };
  if (registry_.ready()) return std::nullopt;
  if (whole_once_ && options_.fallback == Fallback::kLocal && (left(wire::Role::kDecode) || left(wire::Role::kPrefill)))
    return std::nullopt;
  return registry_.describe();
}

Stats Core::stats() const {
  Stats stats = stats_;
  for (const auto& [key, request] : requests_) ++(request->first_token ? stats.running : stats.waiting);
  return stats;
}

std::optional<RequestRecord> Core::record(TimePoint now, const std::string& id) const {
  for (const auto& [key, request] : requests_) {
    if (request->base.id != id) continue;
    RequestRecord record = request->record;
    record.total = now - request->arrival;
    return record;
  }
  const RequestRecord* record = log_.find(id);
  return record == nullptr ? std::nullopt : std::optional(*record);
}

}  // namespace baton::gateway
