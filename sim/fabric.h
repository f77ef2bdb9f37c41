#pragma once
// The simulated fabric: as transfer/shm, a copier for each rank of a process, which runs one job at a time, over the memories of the
// simulated processes. The first half of a copy is made when its job begins and the rest when it ends: a source that is reused meanwhile
// gives a wrong digest, a target that is reused meanwhile gets wrong KV.

#include <deque>
#include <map>
#include <memory>

#include "base/rng.h"
#include "sim/audit.h"
#include "sim/device.h"
#include "sim/host.h"
#include "sim/pool.h"
#include "sim/trace.h"
#include "transfer/fabric.h"

namespace baton::sim {

struct FabricModel {
  Duration job = Duration(20);  // of each
  std::int64_t bytes_per_ms = 5'000'000;
  std::size_t jobs_max = 1024;
  // So often a word of a fetch is damaged: on its way, or after its digest was taken, which nothing in the cluster can see (a test of the
  // checks themselves).
  std::uint64_t damaged_one_in = 0, damaged_unseen_one_in = 0;
  bool operator==(const FabricModel&) const = default;
};

// Whose memory there is: what /proc/<pid>/fd/<fd> is to a machine.
class Memories {
 public:
  // `links_last`: no link is ever lost, so that whoever is being read from knows it.
  explicit Memories(bool links_last) : links_last_(links_last) {}
  std::int32_t add(Memory memory, PoolAudit& audit);  // a new pid
  void remove(std::int32_t pid) { memories_.erase(pid); }
  Memory find(std::int32_t pid) const;
  // That of a process which must keep what is read from it; null if there is none.
  PoolAudit* keeper(std::int32_t pid) const;

 private:
  struct Owned {
    Memory memory;
    PoolAudit* audit = nullptr;
  };
  const bool links_last_;
  std::map<std::int32_t, Owned> memories_;
  std::int32_t next_ = 1;
};

class Fabric final : public transfer::Fabric {
 public:
  Fabric(Host& host, Trace& trace, PoolAudit& audit, std::uint64_t seed, FabricModel model, Memories& memories, Memory own);
  ~Fabric() override;

  transfer::SourceRegion export_pool() const override { return own_->region(pid_); }
  Result<std::shared_ptr<transfer::PeerRegion>> open(const transfer::SourceRegion& region) override;
  JobId fetch(std::shared_ptr<transfer::PeerRegion> peer, transfer::CopyPlan plan, Done done) override;
  JobId digest(std::vector<transfer::ByteRun> runs, Done done) override;
  void cancel(JobId job) override;
  std::size_t jobs_max() const override { return model_.jobs_max; }

  std::size_t jobs() const { return queue_.size() + running_.size() + refused_; }

  // --- faults of fetches; zero: none
  struct Faults {
    Duration late{};  // one in four takes up to so much more
    std::uint64_t lost_one_in = 0, damaged_one_in = 0;
  };
  Faults& faults() { return faults_; }

 private:
  struct Region;
  struct Job {
    JobId id = 0;
    std::shared_ptr<Region> peer;  // null: digest local memory
    transfer::CopyPlan plan;
    Done done;
    bool cancelled = false;
  };
  JobId submit(std::shared_ptr<Region> peer, transfer::CopyPlan plan, Done done);
  void begin();
  void end(JobId id);
  void copy(const Job& job, std::size_t from, std::size_t to);
  void damage(const Job& job, std::uint64_t one_in);

  Host& host_;
  Trace& trace_;
  PoolAudit& audit_;
  Rng rng_;
  const FabricModel model_;
  Memories& memories_;
  const Memory own_;
  const std::int32_t pid_;
  std::deque<Job> queue_;
  std::map<JobId, Job> running_;  // at most one a copier
  JobId next_job_ = 1;
  Faults faults_;
  std::size_t refused_ = 0;  // whose answers are under way
  const std::shared_ptr<Fabric*> self_;
};

}  // namespace baton::sim
