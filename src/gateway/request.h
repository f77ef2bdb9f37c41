#pragma once
// Private to the core: the state of one request and of its runs.

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "gateway/choice_stream.h"
#include "gateway/core.h"

namespace baton::gateway {

enum class RunState : std::uint8_t {
  kQueued,      // no decode worker has room
  kReserving,   // decode leg sent, no lease yet
  kPrefilling,  // prefill leg sent (or prefilling on D)
  kDecoding,    // D committed, or sends tokens
  kEnded,       // D is done, or other runs took over
};

inline TimePoint deadline_of(TimePoint arrival, const wire::GenerateRequest& request) {
  return request.timeout < kNever - arrival ? arrival + request.timeout : kNever;
}

struct Core::Run {
  int first = 0, n = 1;  // choices [first, first + n) of the request
  RunState state = RunState::kReserving;
  std::size_t emitted = 0;  // ids of the choice that were part of the run's request when it started
  bool local = false;       // no hand-off
  Attempt attempt{1};       // of the latest leg
  WorkerId decode_worker{}, prefill_worker{};
  Incarnation decode_incarnation{};
  std::optional<LegId> decode_leg{}, prefill_leg{};
  // A prefill leg whose decode worker was lost: its worker computes on or keeps the KV, which the next lease claims. Its request is what
  // the run sends as long as it is there.
  std::optional<LegId> held_leg{};
  int hold_failures = 0;  // attempts to hand over what one prefill worker has computed
  LeaseId lease{};
  bool started = false;    // whoever prefills has begun to
  int failures = 0;        // while a worker was at work on it, since its last progress
  int losses = 0;          // of workers where it waited, since its last progress
  int lease_failures = 0;  // prefills that failed under this lease
  TimePoint deadline = kNever;
  std::string waiting_for{};
  std::set<int> preempted{};        // choices that D said to have put aside, until their next token
  Tried tried{};                    // since the last progress
  std::optional<Status> refusal{};  // what the last worker that refused said, or the one that has no room
  std::string numerics{};           // of the worker whose first tokens were emitted for this run's request
  bool lacked_room = false;         // refused for want of room since its last reservation
  // Moving away from a draining worker.
  std::optional<std::size_t> replaces{};  // index of the run that still decodes this one's choice
  TimePoint move_at = kNever;             // when to look again for somebody who takes this run's choices
  Duration move_pause{};
};

struct Core::Request {
  RequestKey key;
  wire::GenerateRequest base;
  TimePoint arrival{}, deadline = kNever;
  int tenant = 0;
  std::int64_t cost = 0;      // to its tenant's share
  bool charged = false;       // has been given a worker, and has cost that
  TimePoint dispatched_at{};  // when it was
  std::vector<ChoiceStream> choices;
  std::vector<Run> runs;
  std::uint32_t attempts = 0;
  bool first_token = false;
  bool prompt_logprobs_sent = false;
  std::vector<Emission> behind_logprobs;  // tokens and finishes that came before them
  std::optional<TimePoint> linger_until;  // every choice has finished
  TimePoint wake = kNever;
  bool closed = false;
  // Choices whose next token has not come since a worker was lost.
  struct Stalled {
    TimePoint since{};
    std::string cause;
  };
  std::map<int, Stalled> stalled;
  RequestRecord record;

  ChoiceStream* choice(int index) {
    const int i = index - base.first_choice;
    return i >= 0 && i < static_cast<int>(choices.size()) ? &choices[static_cast<std::size_t>(i)] : nullptr;
  }
  bool all_finished() const {
    for (const ChoiceStream& c : choices)
      if (!c.finished()) return false;
    return true;
  }
  bool wants_prompt_logprobs() const { return base.sampling.prompt_logprobs >= 0 && !prompt_logprobs_sent; }
  // Nobody is left who would send them.
  bool prompt_logprobs_lost() const {
    return wants_prompt_logprobs() &&
           std::ranges::none_of(runs, [](const Run& run) { return run.prefill_leg || run.state < RunState::kDecoding; });
  }
  // The run that is to take `choice` over from run `old_index`.
  Run* mover(std::size_t old_index, int choice) {
    for (Run& run : runs)
      if (run.replaces == old_index && run.first == choice && run.state != RunState::kEnded) return &run;
    return nullptr;
  }
  Run* run_of(int choice) {
    for (Run& run : runs)
      if (run.state != RunState::kEnded && choice >= run.first && choice < run.first + run.n) return &run;
    return nullptr;
  }
};

}  // namespace baton::gateway
