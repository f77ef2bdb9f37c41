#include "transfer/shm/shm_fabric.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <utility>

#include "base/bounded_queue.h"
#include "transfer/relayout.h"
#include "transfer/shm/copy_digest.h"

namespace baton::transfer {
namespace {

using Bytes = std::span<std::byte>;

// The parts of a peer's pool, mapped read-only.
class Mapping final : public PeerRegion {
 public:
  ~Mapping() override {
    for (const auto& part : parts_) ::munmap(const_cast<std::byte*>(part.data()), part.size());
  }
  void add(std::span<const std::byte> part) { parts_.push_back(part); }
  SourceBytes parts() const { return parts_; }

 private:
  std::vector<std::span<const std::byte>> parts_;
};

class ShmFabric final : public Fabric {
 public:
  ShmFabric(net::Executor& loop, std::span<const RankPool> ranks, std::size_t jobs_max)
      : loop_(loop), jobs_max_(jobs_max), queue_(jobs_max) {
    region_.pid = ::getpid();
    for (const RankPool& rank : ranks) {
      const device::SharedRegion& own = *rank.pool->shared_region();
      region_.parts.push_back({own.fd, own.bytes, rank.pool->view(), rank.heads});
      own_.push_back({own.base, own.bytes});
    }
    // Several copies at once, so that the ranks' parts do not wait for each other.
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      copiers_.emplace_back([this] { work(); });
      pthread_setname_np(copiers_.back().native_handle(), "kv-copier");
    }
  }

  ~ShmFabric() override {
    *alive_ = false;
    stopping_ = true;
    queue_.close();
    for (std::thread& copier : copiers_) copier.join();
  }

  SourceRegion export_pool() const override { return region_; }

  Result<std::shared_ptr<PeerRegion>> open(const SourceRegion& region) override {
    auto mapping = std::make_shared<Mapping>();
    for (const RegionPart& part : region.parts) {
      BATON_ASSIGN_OR_RETURN(const auto bytes, map(region.pid, part));
      mapping->add(bytes);
    }
    return std::shared_ptr<PeerRegion>(std::move(mapping));
  }

  JobId fetch(std::shared_ptr<PeerRegion> peer, CopyPlan plan, Done done) override {
    return submit(std::static_pointer_cast<Mapping>(std::move(peer)), std::move(plan), std::move(done));
  }
  JobId digest(std::vector<ByteRun> runs, Done done) override {
    CopyPlan plan;
    plan.runs = std::move(runs);
    return submit(nullptr, std::move(plan), std::move(done));
  }

  void cancel(JobId job) override {
    if (auto it = jobs_.find(job); it != jobs_.end()) *it->second.cancelled = true;
  }
  std::size_t jobs_max() const override { return jobs_max_; }

 private:
  static Result<std::span<const std::byte>> map(std::int32_t pid, const RegionPart& region) {
    const std::string path = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(region.fd);
    const auto failed = [&](const std::string& what) {
      return Status(Code::kUnavailable, "cannot map the prefill worker's KV pool " + path + ": " + what +
                                            "; both workers must run on one host, as one user, in one PID namespace");
    };
    // The peer chose the descriptor: opening a pipe must not wait for its other end, nor a terminal become ours.
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return failed(std::strerror(errno));
    struct stat info{};
    const bool whole =
        ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && static_cast<std::uint64_t>(info.st_size) >= region.bytes && region.bytes > 0;
    // Memory that its owner could cut off would kill us as we read it.
    const int seals = ::fcntl(fd, F_GET_SEALS);
    const bool lasting = seals >= 0 && (seals & F_SEAL_SHRINK) != 0;
    void* base = whole && lasting ? ::mmap(nullptr, region.bytes, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    const int error = errno;
    ::close(fd);  // the mapping keeps the memory, also when its owner dies
    if (!whole) return failed("it is not a memory region of " + std::to_string(region.bytes) + " bytes");
    if (!lasting) return failed("it may shrink (no F_SEAL_SHRINK)");
    if (base == MAP_FAILED) return failed(std::strerror(error));
    return std::span(static_cast<const std::byte*>(base), region.bytes);
  }

  // Read by a copier.
  struct Job {
    JobId id = 0;
    std::shared_ptr<Mapping> peer;  // null: digest local memory
    CopyPlan plan;
    std::shared_ptr<std::atomic<bool>> cancelled;
  };
  // Kept by the loop.
  struct Waiting {
    Done done;
    std::shared_ptr<std::atomic<bool>> cancelled;
  };

  JobId submit(std::shared_ptr<Mapping> peer, CopyPlan plan, Done done) {
    Job job{next_job_++, std::move(peer), std::move(plan), std::make_shared<std::atomic<bool>>(false)};
    const JobId id = job.id;
    jobs_[id] = {std::move(done), job.cancelled};
    if (jobs_.size() > jobs_max_ || !queue_.try_push(job)) {
      post(id, Status(Code::kResourceExhausted, "more than " + std::to_string(jobs_max_) + " KV copies wait"));
    }
    return id;
  }

  // The only thing that two threads do together: hand a result to the loop.
  void post(JobId id, Result<Digest> result) {
    loop_.post([this, alive = alive_, id, result = std::move(result)]() mutable {
      if (!*alive) return;
      auto node = jobs_.extract(id);
      node.mapped().done(std::move(result));
    });
  }

  void work() {
    while (auto job = queue_.pop()) {
      if (stopping_) continue;
      post(job->id, run(*job));
    }
  }

  Result<Digest> run(const Job& job) const {
    if (*job.cancelled) return {Code::kCancelled, "cancelled"};
    const bool inside = job.peer ? plan_inside(job.plan, job.peer->parts(), own_) : runs_inside(job.plan.runs, own_);
    if (job.plan.runs.empty() || !inside) return {Code::kDataLoss, "a KV copy leaves its region"};
    return job.peer ? copy_and_digest(job.peer->parts(), own_, job.plan) : digest_runs(own_, job.plan.runs);
  }

  // constant
  net::Executor& loop_;
  const std::size_t jobs_max_;
  SourceRegion region_;
  std::vector<Bytes> own_;  // by part
  // owned by the loop
  std::map<JobId, Waiting> jobs_;
  JobId next_job_ = 1;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  // shared
  BoundedQueue<Job> queue_;
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> copiers_;
};

}  // namespace

Result<std::unique_ptr<Fabric>> create_shm_fabric(net::Executor& loop, std::span<const RankPool> ranks, std::size_t jobs_max) {
  BATON_CHECK(!ranks.empty());
  for (const RankPool& rank : ranks) {
    const device::SharedRegion* region = rank.pool->shared_region();
    if (region == nullptr || region->fd < 0) return {Code::kUnimplemented, "this device's KV pool is not shareable host memory"};
    BATON_RETURN_IF_ERROR(check_view(rank.pool->view(), region->bytes));
  }
  return std::unique_ptr<Fabric>(std::make_unique<ShmFabric>(loop, ranks, jobs_max));
}

}  // namespace baton::transfer
