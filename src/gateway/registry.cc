#include "gateway/registry.h"

#include <algorithm>
#include <utility>

#include "base/mutant.h"

namespace baton::gateway {
namespace {

constexpr std::int64_t kBacklogMax = 1'000'000'000;  // tokens; believed of a worker's report

std::string text(const wire::KvSchema& kv) {
  return std::to_string(kv.layers) + " layers, " + std::to_string(kv.kv_heads) + " KV heads of " + std::to_string(kv.head_dim) + ", " +
         kv.dtype;
}

bool answers(const Worker& worker) { return worker.liveness == Liveness::kAlive || worker.liveness == Liveness::kSuspect; }

}  // namespace

std::string_view to_string(Liveness liveness) {
  static constexpr std::string_view kNames[] = {"unknown", "alive", "suspect", "dead", "incompatible"};
  return kNames[static_cast<int>(liveness)];
}

std::int64_t Worker::prefill_backlog() const {
  return std::clamp<std::int64_t>(std::max(status.queued_prefill_tokens, prefill_tokens), 0, kBacklogMax);
}

std::int64_t Worker::prefill_speed() const {
  const double measured = status.prefill_tokens_per_s;
  return measured >= 1 && measured < 1e12 ? static_cast<std::int64_t>(measured) : 0;
}

bool Worker::usable() const {
  const bool open = (status.ready && !status.draining) || (status.draining && BATON_MUTANT(draining_gets_work));
  return answers(*this) && open && !stalled && !hung;
}

Registry::Registry(const RegistryOptions& options, std::vector<WorkerConfig> workers) : options_(options) {
  workers_.reserve(workers.size());
  for (WorkerConfig& config : workers) {
    workers_.push_back(Worker{
        .config = std::move(config), .problem = "has not answered yet", .status = {}, .prefixes = PrefixIndex(options.prefix_blocks_max)});
  }
}

// Empty if the worker may be used beside the others that live. The first one that answered sets what the cluster serves, for as long as it
// lives.
std::string Registry::incompatibility(WorkerId id, const wire::WorkerStatus& status) const {
  const WorkerConfig& config = at(id).config;
  if (status.protocol != wire::kProtocolVersion)
    return "speaks protocol " + std::to_string(status.protocol) + ", this gateway speaks " + std::to_string(wire::kProtocolVersion);
  if (!config.name.empty() && status.name != config.name) return "is worker " + status.name + ", expected " + config.name;
  if (status.role != config.role)
    return "has the role " + std::string(wire::to_string(status.role)) + ", expected " + std::string(wire::to_string(config.role));
  if (!status.ready) return {};
  for (const Worker& other : workers_) {
    if (&other == &at(id) || !answers(other) || !other.status.ready) continue;
    if (status.model_digest != other.status.model_digest)
      return "serves the model " + status.model_digest + ", but " + other.name() + " serves " + other.status.model_digest;
    if (!status.kv.same_shape(other.status.kv))
      return "has the KV schema (" + text(status.kv) + "), but " + other.name() + " has (" + text(other.status.kv) + ")";
  }
  return {};
}

Registry::Change Registry::on_status(TimePoint now, WorkerId id, const wire::WorkerStatus& status) {
  Worker& worker = at(id);
  const bool first = worker.liveness == Liveness::kUnknown;
  const bool restarted = !first && worker.status.incarnation != status.incarnation;
  if (restarted && BATON_MUTANT(old_incarnation_believed)) return Change::kNone;
  if (restarted) worker.prefixes.clear();
  if (first || restarted || status.steps != worker.status.steps || status.running + status.waiting == 0) worker.progress_at = now;
  worker.stalled = now - worker.progress_at >= options_.stalled_after;
  const double step_limit_ms = std::max(to_ms(options_.progress_timeout), kStepsAllowed * status.step_budget_ms);
  const bool hung_before = std::exchange(worker.hung, status.step_running_ms >= step_limit_ms);
  worker.status = status;
  worker.heard_at = now;
  worker.missed_polls = 0;
  worker.problem = incompatibility(id, status);
  worker.liveness = worker.problem.empty() ? Liveness::kAlive : Liveness::kIncompatible;
  if (worker.problem.empty()) {
    if (!status.ready) worker.problem = "is loading";
    if (status.draining) worker.problem = "is draining";
    if (worker.stalled) worker.problem = "has work but makes no step";
    if (worker.hung) worker.problem = "hangs: a step runs for " + std::to_string(static_cast<std::int64_t>(status.step_running_ms)) + " ms";
  }
  if (worker.hung && !hung_before) worker.prefixes.clear();
  if (restarted) return Change::kRestarted;
  return worker.hung && !hung_before ? Change::kHung : Change::kNone;
}

Registry::Change Registry::on_poll_failed(TimePoint now, WorkerId id, bool unreachable, const std::string& why) {
  Worker& worker = at(id);
  ++worker.missed_polls;
  if (worker.liveness == Liveness::kDead) return Change::kNone;
  const bool suspect = worker.liveness == Liveness::kSuspect;  // with a broken leg, one missed poll is proof enough
  const bool silent = worker.missed_polls >= kMissedPolls && now - worker.heard_at >= options_.progress_timeout;
  if (!unreachable && !suspect && !silent) return Change::kNone;
  worker.liveness = Liveness::kDead;
  worker.problem = why;
  worker.prefixes.clear();
  return Change::kLost;
}

void Registry::on_refused(WorkerId id, const std::string& why) {
  at(id).status.ready = false;
  at(id).problem = why;
}

void Registry::on_draining(WorkerId id) {
  Worker& worker = at(id);
  worker.status.draining = true;
  if (worker.liveness == Liveness::kAlive) worker.problem = "is draining";
}

void Registry::on_leg_broken(WorkerId id, const std::string& why) {
  Worker& worker = at(id);
  if (worker.liveness != Liveness::kAlive) return;
  worker.liveness = Liveness::kSuspect;
  worker.problem = why;
}

std::vector<WorkerId> Registry::usable(wire::Role role) const {
  std::vector<WorkerId> out;
  for (std::size_t i = 0; i < workers_.size(); ++i)
    if (workers_[i].config.role == role && workers_[i].usable()) out.emplace_back(static_cast<std::int32_t>(i));
  return out;
}

std::vector<WorkerId> Registry::prefilling() const {
  for (const auto role : {wire::Role::kPrefill, wire::Role::kBoth, wire::Role::kDecode})
    if (auto found = usable(role); !found.empty()) return found;
  return {};
}

std::vector<WorkerId> Registry::decoding() const {
  std::vector<WorkerId> found = usable(wire::Role::kDecode), both = usable(wire::Role::kBoth);
  found.insert(found.end(), both.begin(), both.end());
  return found.empty() ? usable(wire::Role::kPrefill) : found;
}

bool Registry::ready() const {
  const bool both = !usable(wire::Role::kBoth).empty();
  return both || (!usable(wire::Role::kDecode).empty() && !usable(wire::Role::kPrefill).empty());
}

std::string Registry::describe() const {
  std::string out;
  for (const Worker& worker : workers_) {
    if (!out.empty()) out += "; ";
    out += (worker.name().empty() ? worker.config.host + ":" + std::to_string(worker.config.port) : worker.name()) + " (" +
           std::string(wire::to_string(worker.config.role)) + ") " + std::string(to_string(worker.liveness));
    if (!worker.problem.empty()) out += ": " + worker.problem;
  }
  return out.empty() ? "no worker is configured" : out;
}

}  // namespace baton::gateway
