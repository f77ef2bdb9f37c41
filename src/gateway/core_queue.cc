// Who may come in, who waits for room, and who gets it.

#include <algorithm>
#include <utility>

#include "gateway/core.h"
#include "gateway/request.h"

namespace baton::gateway {
namespace {

std::string to_text(Duration d) { return std::to_string(d.count() / 1000) + " ms"; }

}  // namespace

Capacity Core::capacity() const {
  Capacity capacity{.holding = holding_};
  for (const WorkerId id : registry_.prefilling()) {
    const Worker& worker = registry_.at(id);
    if (worker.prefill_speed() == 0) continue;
    capacity.tokens_per_s += worker.prefill_speed();
    capacity.backlog_tokens += worker.prefill_backlog();
  }
  for (const WorkerId id : registry_.decoding()) {
    const Worker& worker = registry_.at(id);
    capacity.sequences += std::max(0, worker.status.max_num_seqs);
    capacity.free += std::max(0, worker.status.max_num_seqs - worker.sequences);
  }
  return capacity;
}

// --- coming in

// What would wait in vain, or for too long, is refused when it comes: whoever is told at once can go elsewhere.
Status Core::admit(TimePoint now, const wire::GenerateRequest& base) {
  const auto refuse = [](std::string why, Duration wait) {
    return Status(Code::kResourceExhausted, std::move(why)).with_retry_after(retry_after_s(wait));
  };
  const int tenant = admission_.known(base.tenant);
  BATON_RETURN_IF_ERROR(admission_.within_limits(now, tenant, holding_));
  const Capacity capacity = this->capacity();
  const Duration prefill = placement_.least_prefill({base.ids, base.n, 0, base.cache_salt});
  const Ahead ahead = admission_.ahead(tenant, due_time(now, deadline_of(now, base), prefill, base.priority));
  const Duration wait = expected_wait(ahead, base.n, capacity);
  if (wait + prefill > base.timeout) {
    return refuse("its first token would take " + to_text(wait + prefill) + ", of which " + to_text(wait) +
                      " in a queue; its time-out is " + to_text(base.timeout),
                  wait + prefill - base.timeout);
  }
  if (options_.queue_wait_max > Duration(0) && wait > options_.queue_wait_max) {
    return refuse("the queue is " + to_text(wait) + " long, over the limit of " + to_text(options_.queue_wait_max) + " (--max-queue-wait)",
                  wait - options_.queue_wait_max);
  }
  if (requests_.size() >= options_.requests_max && !displace(now, tenant)) {
    return refuse(std::to_string(options_.requests_max) + " requests are in flight (--max-requests)", expected_wait({}, 1, capacity));
  }
  return {};
}

// The newcomer's place is that of somebody who has not begun and has more than the newcomer.
bool Core::displace(TimePoint now, int tenant) {
  const auto run = admission_.displaced_by(tenant);
  Request* request = run ? find(run->first) : nullptr;
  if (request == nullptr) return false;
  finish(*request, now,
         Status(Code::kResourceExhausted, "lost its place in the queue to a key with fewer requests; " +
                                              std::to_string(options_.requests_max) + " are in flight (--max-requests)")
             .with_retry_after(retry_after_s(expected_wait(admission_.ahead(tenant, now), 1, capacity()))));
  return true;
}

// --- waiting

// One whose prompt is kept somewhere counts as begun: what it holds there, others may wait for.
Admission::Waiter Core::waiter(const Request& request, const Run& run, Duration prefill) const {
  bool continues = run.held_leg.has_value();
  for (int choice = run.first; choice < run.first + run.n; ++choice)
    continues |= !request.choices[static_cast<std::size_t>(choice - request.base.first_choice)].tokens().empty();
  return {.tenant = request.tenant,
          .continues = continues,
          .due = continues ? request.arrival : due_time(request.arrival, request.deadline, prefill, request.base.priority),
          .tokens = std::ssize(request.base.ids) + static_cast<std::int64_t>(run.emitted),
          .cost = request.cost,
          .sequences = run.n};
}

// A run that has begun waits until the request's deadline; one that has not, as long as it can still be in time.
void Core::enqueue(Request& request, std::size_t run_index, TimePoint now, std::string waiting_for) {
  Run& run = request.runs[run_index];
  run.state = RunState::kQueued;
  run.tried.refused.clear();
  run.waiting_for = std::move(waiting_for);
  const Duration prefill = placement_.least_prefill({request.base.ids, run.n, 0, request.base.cache_salt});
  const Admission::Waiter waits = waiter(request, run, prefill);
  run.deadline = waits.continues || request.deadline == kNever ? kNever : request.deadline - prefill;
  wake_at(request, run.deadline);
  if (!waits.continues && request.charged) {  // it was dispatched, and is back
    admission_.refund(request.tenant, request.cost);
    request.charged = false;
  }
  if (admission_.add({request.key, run_index}, waits) && !dispatching_) {
    ++stats_.queued;
    note(request, now, "queued", run.refusal ? run.refusal->message() : run.waiting_for);
  }
  run.refusal.reset();  // the next round's answer counts: by then there may be no worker left
}

void Core::refuse_late(Request& request, TimePoint now) {
  ++stats_.waits_expired;
  const Ahead ahead = admission_.ahead(request.tenant, now);
  finish(request, now,
         Status(Code::kResourceExhausted, "waited " + to_text(now - request.arrival) + " for room; what is left of its time-out of " +
                                              to_text(request.base.timeout) + " is less than its prefill takes")
             .with_retry_after(retry_after_s(expected_wait(ahead, 1, capacity()))));
}

// --- getting room

// It has been given a worker. Its tenant pays once, whatever becomes of it there.
void Core::charge(Request& request, TimePoint now) {
  if (request.charged) return;
  request.charged = true;
  admission_.charge(request.tenant, request.cost);
  request.dispatched_at = now;
}

void Core::learn_holding(const Request& request, TimePoint now) {
  if (!request.charged) return;
  const Duration held = now - request.dispatched_at;
  holding_ = holding_ == Duration(0) ? held : (7 * holding_ + held) / 8;
}

// The run that asks again has its answer, or is gone.
void Core::settle_probe() {
  if (!probe_) return;
  const Request* request = find(probe_->first);
  const RunState state = request == nullptr ? RunState::kEnded : request->runs[probe_->second].state;
  if (state == RunState::kReserving) return;
  probe_.reset();
  if (state != RunState::kQueued) room_changed_ = true;  // refused once more: the others would be too
}

// Starts runs from the head until one finds no room. Nobody overtakes it: what was short of room for it would be taken by smaller ones for
// ever.
void Core::dispatch_queue(TimePoint now) {
  if (dispatching_) return;
  dispatching_ = true;
  while (!probe_) {
    const auto head = admission_.next();
    if (!head) break;
    admission_.erase(*head);
    Request* request = find(head->first);
    if (request == nullptr) continue;
    const std::size_t run_index = head->second;
    if (request->runs[run_index].state != RunState::kQueued) continue;
    if (now >= request->runs[run_index].deadline) {
      refuse_late(*request, now);
      continue;
    }
    start_run(*request, run_index, now);
    if (request->closed) continue;
    const Run& run = request->runs[run_index];
    if (run.state == RunState::kQueued) break;
    if (run.lacked_room && run.state == RunState::kReserving) probe_ = {request->key, run_index};
  }
  dispatching_ = false;
  room_changed_ = false;
}

// --- what a prefill worker has been given

// A reservation is asked for only with a prefill worker in view whose pool holds the prompt beside all that it has been given. Nothing if
// each has as much as it holds; a plan without a worker if there is none to ask.
std::optional<Core::Plan> Core::plan_prefill(const Need& need, Tried tried, WorkerId decoder, TimePoint now) const {
  for (const WorkerId id : registry_.usable(wire::Role::kPrefill))
    if (pairs_.avoid(now, id, decoder)) tried.failed.insert(id);
  const auto best = placement_.prefill(need, tried);
  if (best.ok()) return Plan{*best, placement_.prefill_blocks(*best, need)};
  return best.status().code() == Code::kResourceExhausted ? std::nullopt : std::optional<Plan>(Plan{});
}

// From now until the decode leg ends, or its prefill is sent.
void Core::keep_plan(LegId leg, const Plan& plan) {
  legs_.at(leg).plan = plan;
  if (plan.worker) registry_.at(*plan.worker).prefill_blocks += plan.blocks;
}

void Core::drop_plan(Leg& leg) {
  if (leg.plan.worker) registry_.at(*leg.plan.worker).prefill_blocks -= leg.plan.blocks;
  leg.plan = {};
}

}  // namespace baton::gateway
