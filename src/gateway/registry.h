#pragma once
// The workers a gateway knows: who they are, whether they live, whether they fit together, and how loaded they are. Pure: status reports
// and failures come in, verdicts are read. A worker is its address and incarnation: a restarted one is new, and nothing of the old one is
// believed.

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "gateway/prefix_index.h"
#include "wire/worker_api.h"

namespace baton::gateway {

using WorkerId = Id<struct WorkerTag, std::int32_t>;  // index in the list of configured workers

struct WorkerConfig {
  std::string name;  // empty: whatever the worker calls itself
  std::string host;
  int port = 0;
  wire::Role role = wire::Role::kBoth;
};

enum class Liveness : std::uint8_t {
  kUnknown,  // not heard of yet
  kAlive,
  kSuspect,       // a leg to it broke; used only if there is no other, until it answers a poll
  kDead,          // refused a connection, or was silent for too long
  kIncompatible,  // answers, but must not be used: `problem` says why
};
std::string_view to_string(Liveness liveness);

struct Worker {
  WorkerConfig config;
  Liveness liveness = Liveness::kUnknown;
  std::string problem;        // of a worker that is not alive
  wire::WorkerStatus status;  // the last one heard; meaningless while kUnknown
  TimePoint heard_at{};       // a status, or anything on a leg
  TimePoint progress_at{};    // when `status.steps` last grew, or there was nothing to do
  bool hung = false;          // its device does not end the step that it computes
  bool stalled = false;       // has work and makes no step
  int missed_polls = 0;
  // What this gateway itself has under way there; the status is up to a poll old.
  int legs = 0;
  int sequences = 0;                 // choices of its decode legs
  std::int64_t blocks_promised = 0;  // KV blocks that its decode legs may come to need
  std::int64_t prefill_tokens = 0;   // prompt tokens sent and not yet prefilled
  std::int64_t prefill_blocks = 0;   // KV blocks of prompts for others: sent, or to be sent once they are reserved
  std::uint64_t placed = 0;          // legs ever, to break ties
  PrefixIndex prefixes;

  const std::string& name() const { return config.name.empty() ? status.name : config.name; }
  // May get new legs.
  bool usable() const;
  // Prompt tokens that it has yet to compute, and how many it does in a second; 0: it has not measured that.
  std::int64_t prefill_backlog() const;
  std::int64_t prefill_speed() const;
};

struct RegistryOptions {
  // Whoever makes no progress for this long is given up: a worker that answers nothing, a leg that says nothing (workers say Alive four
  // times in it). A step may take as long as that, or kStepsAllowed times the step budget that its worker reports, whichever is more.
  Duration progress_timeout = std::chrono::seconds(1);
  Duration stalled_after = std::chrono::seconds(10);  // work, but no step for this long: gets nothing new
  std::size_t prefix_blocks_max = 1 << 16;            // remembered per worker
};

class Registry {
 public:
  Registry(const RegistryOptions& options, std::vector<WorkerConfig> workers);

  // What a report changed, for those who have legs on the worker.
  enum class Change : std::uint8_t {
    kNone,
    kLost,       // it died: all its legs are lost
    kRestarted,  // another incarnation: legs of earlier ones are lost
    kHung,       // it answers, but its device stands still: all its legs are lost
  };
  static constexpr int kMissedPolls = 2;   // it takes more than one to be silent: the silence may have been our own
  static constexpr int kStepsAllowed = 4;  // in units of the step budget
  Change on_status(TimePoint now, WorkerId id, const wire::WorkerStatus& status);
  // `unreachable`: refused or unroutable, which one poll settles; otherwise it was a time-out or nonsense, which does once nothing was
  // heard for the progress time-out.
  Change on_poll_failed(TimePoint now, WorkerId id, bool unreachable, const std::string& why);
  // Something came on one of its legs.
  void on_heard(TimePoint now, WorkerId id) { at(id).heard_at = now; }
  // It said on a leg that it goes down; its status will say so too.
  void on_draining(WorkerId id);
  // It refuses legs, whoever sends them (it drains, its engine has failed): it gets none until a poll says otherwise.
  void on_refused(WorkerId id, const std::string& why);
  // A leg broke off. The worker may well live: the next poll tells.
  void on_leg_broken(WorkerId id, const std::string& why);

  Worker& at(WorkerId id) { return workers_.at(static_cast<std::size_t>(id.value)); }
  const Worker& at(WorkerId id) const { return workers_.at(static_cast<std::size_t>(id.value)); }
  const std::vector<Worker>& workers() const { return workers_; }
  // Usable workers whose role is `role`, in order of id.
  std::vector<WorkerId> usable(wire::Role role) const;
  // Usable workers that compute prompts, and those that decode: of these roles, or whoever stands in for one that is gone.
  std::vector<WorkerId> prefilling() const;
  std::vector<WorkerId> decoding() const;
  // A usable pair, or a usable worker of role kBoth.
  bool ready() const;
  // One line that names every worker and what is wrong with it.
  std::string describe() const;

 private:
  std::string incompatibility(WorkerId id, const wire::WorkerStatus& status) const;

  const RegistryOptions options_;
  std::vector<Worker> workers_;
};

}  // namespace baton::gateway
