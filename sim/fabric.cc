#include "sim/fabric.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "transfer/shm/copy_digest.h"

namespace baton::sim {
namespace {

std::byte* target_of(const Pool& pool, const transfer::ByteRun& run) {
  return pool.bytes()[static_cast<std::size_t>(run.target_part)].data() + run.target;
}
const std::byte* source_of(const Pool& pool, const transfer::ByteRun& run) {
  return pool.bytes()[static_cast<std::size_t>(run.source_part)].data() + run.source;
}

}  // namespace

std::int32_t Memories::add(Memory memory, PoolAudit& audit) {
  memories_[next_] = {std::move(memory), &audit};
  return next_++;
}
Memory Memories::find(std::int32_t pid) const {
  const auto found = memories_.find(pid);
  return found == memories_.end() ? nullptr : found->second.memory;
}
PoolAudit* Memories::keeper(std::int32_t pid) const {
  const auto found = memories_.find(pid);
  return found == memories_.end() || !links_last_ ? nullptr : found->second.audit;
}

struct Fabric::Region final : transfer::PeerRegion {
  Region(Memory m, std::int32_t p) : memory(std::move(m)), pid(p) {}
  const Memory memory;
  const std::int32_t pid;
};

Fabric::Fabric(Host& host, Trace& trace, PoolAudit& audit, std::uint64_t seed, FabricModel model, Memories& memories, Memory own)
    : host_(host),
      trace_(trace),
      audit_(audit),
      rng_(seed),
      model_(model),
      memories_(memories),
      own_(std::move(own)),
      pid_(memories.add(own_, audit)),
      self_(std::make_shared<Fabric*>(this)) {}

Fabric::~Fabric() { memories_.remove(pid_); }

Result<std::shared_ptr<transfer::PeerRegion>> Fabric::open(const transfer::SourceRegion& region) {
  const Memory memory = memories_.find(region.pid);
  bool all = memory != nullptr && memory->parts().size() == region.parts.size();
  for (std::size_t i = 0; all && i < region.parts.size(); ++i) all = memory->parts()[i].bytes >= region.parts[i].bytes;
  if (!all) return {Code::kUnavailable, "no process " + std::to_string(region.pid) + " has this memory"};
  return std::shared_ptr<transfer::PeerRegion>(std::make_shared<Region>(memory, region.pid));
}

Fabric::JobId Fabric::fetch(std::shared_ptr<transfer::PeerRegion> peer, transfer::CopyPlan plan, Done done) {
  return submit(std::static_pointer_cast<Region>(std::move(peer)), std::move(plan), std::move(done));
}
Fabric::JobId Fabric::digest(std::vector<transfer::ByteRun> runs, Done done) {
  transfer::CopyPlan plan;
  plan.runs = std::move(runs);
  return submit(nullptr, std::move(plan), std::move(done));
}

Fabric::JobId Fabric::submit(std::shared_ptr<Region> peer, transfer::CopyPlan plan, Done done) {
  const JobId id = next_job_++;
  const bool inside =
      peer ? transfer::plan_inside(plan, peer->memory->const_bytes(), own_->bytes()) : transfer::runs_inside(plan.runs, own_->bytes());
  Status refusal;
  if (queue_.size() + running_.size() >= model_.jobs_max) refusal = Status(Code::kResourceExhausted, "too many KV copies wait");
  if (plan.runs.empty() || !inside) refusal = Status(Code::kDataLoss, "a KV copy leaves its region");
  if (!refusal.ok()) {
    ++refused_;
    host_.post([weak = std::weak_ptr(self_), done = std::move(done), refusal] {
      const auto self = weak.lock();
      if (!self) return;
      --(*self)->refused_;
      done(refusal);
    });
    return id;
  }
  audit_.job_begins(id, plan, peer != nullptr);
  queue_.push_back({id, std::move(peer), std::move(plan), std::move(done)});
  begin();
  return id;
}

void Fabric::cancel(JobId job) {
  // One that runs, completes.
  for (Job& waiting : queue_) {
    if (waiting.id == job) waiting.cancelled = true;
  }
}

void Fabric::copy(const Job& job, std::size_t from, std::size_t to) {
  if (!job.peer) return;
  for (std::size_t i = from; i < to; ++i) {
    const auto& run = job.plan.runs[i];
    std::memcpy(target_of(*own_, run), source_of(*job.peer->memory, run), static_cast<std::size_t>(run.bytes));
  }
}

void Fabric::damage(const Job& job, std::uint64_t one_in) {
  if (!job.peer || one_in == 0 || rng_.below(one_in) != 0) return;
  const auto& run = job.plan.runs[rng_.below(job.plan.runs.size())];
  target_of(*own_, run)[rng_.below(static_cast<std::uint64_t>(run.bytes))] ^= std::byte{0x10};
  trace_(host_.real_now(), host_.name(), "damaged", job.id);
}

void Fabric::begin() {
  if (queue_.empty() || running_.size() == own_->parts().size()) return;
  const JobId id = queue_.front().id;
  Job& job = running_[id] = std::move(queue_.front());
  queue_.pop_front();
  std::int64_t bytes = 0;
  for (const auto& run : job.plan.runs) bytes += run.bytes;
  Duration takes = model_.job + Duration(bytes * 1000 / model_.bytes_per_ms);
  if (job.peer && faults_.late > Duration(0) && rng_.below(4) == 0)
    takes += Duration(static_cast<std::int64_t>(rng_.below(static_cast<std::uint64_t>(faults_.late.count()))));
  if (job.cancelled) takes = Duration(0);
  if (!job.cancelled) copy(job, 0, job.plan.runs.size() / 2);
  host_.after(takes, [weak = std::weak_ptr(self_), id] {
    if (const auto self = weak.lock()) (*self)->end(id);
  });
}

void Fabric::end(JobId id) {
  const Job job = std::move(running_.extract(id).mapped());
  begin();
  audit_.job_ends(job.id);
  if (job.cancelled) {
    trace_(host_.real_now(), host_.name(), "copy cancelled", job.id);
    return job.done(Status(Code::kCancelled, "cancelled"));
  }
  if (job.peer) {
    if (PoolAudit* source = memories_.keeper(job.peer->pid)) source->read_by_peer(job.plan.runs);
  }
  if (job.peer && faults_.lost_one_in > 0 && rng_.below(faults_.lost_one_in) == 0) {
    trace_(host_.real_now(), host_.name(), "copy lost", job.id);
    return job.done(Status(Code::kUnavailable, "the copy failed"));
  }
  copy(job, job.plan.runs.size() / 2, job.plan.runs.size());
  damage(job, model_.damaged_one_in);
  damage(job, faults_.damaged_one_in);
  const transfer::Digest digest = transfer::digest_runs(own_->bytes(), job.plan.runs);
  for (const auto& run : job.plan.replicas) std::memcpy(target_of(*own_, run), source_of(*own_, run), static_cast<std::size_t>(run.bytes));
  trace_(host_.real_now(), host_.name(), job.peer ? "copied" : "digested", job.id, digest.high);
  damage(job, model_.damaged_unseen_one_in);
  job.done(digest);
}

}  // namespace baton::sim
