// What a request's record says beside its events. Nothing here decides anything.

#include <algorithm>
#include <utility>

#include "gateway/core.h"
#include "gateway/request.h"

namespace baton::gateway {

// The run's prompt goes to be computed, under the run's attempt: who takes part. What they report is added when it comes.
void Core::record_handoff(Request& request, const Run& run, bool claim) {
  RequestRecord::Handoff* h = request.record.handoff(run.attempt);
  if (h == nullptr) return;
  const auto fill = [&](RequestRecord::Handoff::Side& side, WorkerId worker, const std::optional<LegId>& leg) {
    const Worker& w = registry_.at(worker);
    side.worker = w.name();
    side.incarnation = w.status.incarnation;
    side.numerics_id = w.status.numerics_id;
    if (leg) side.sent = legs_.at(*leg).sent_at - request.arrival;
  };
  h->claim = claim;
  h->local = run.local;
  if (run.local) return fill(h->prefill, run.decode_worker, run.decode_leg);
  fill(h->prefill, run.prefill_worker, run.prefill_leg);
  fill(h->decode, run.decode_worker, run.decode_leg);
}

// Choices that had begun have nobody who sends their next token. The worker lived when it was heard last; since when it did not, nobody
// knows.
void Core::begin_stall(Request& request, const Leg& leg, TimePoint now, const Status& why) {
  const Run& run = request.runs[leg.run];
  if (run.replaces || run.state == RunState::kEnded || (leg.prefill && run.state != RunState::kPrefilling)) return;
  for (int choice = run.first; choice < run.first + run.n; ++choice) {
    const ChoiceStream& stream = *request.choice(choice);
    if (!stream.finished() && !stream.tokens().empty()) request.stalled.try_emplace(choice, std::min(leg.heard_at, now), why.to_string());
  }
}

void Core::end_stall(Request& request, TimePoint now, int choice, bool resumed) {
  auto node = request.stalled.extract(choice);
  if (node.empty()) return;
  const Duration took = now - node.mapped().since;
  const auto bucket = std::ranges::lower_bound(Stats::kStallBounds, to_seconds(took)) - Stats::kStallBounds.begin();
  ++stats_.stalls[static_cast<std::size_t>(bucket)];
  stats_.stalled += took;
  request.record.add({node.mapped().since - request.arrival, took, choice, std::move(node.mapped().cause), resumed});
}

}  // namespace baton::gateway
