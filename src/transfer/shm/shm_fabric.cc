#include "transfer/shm/shm_fabric.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
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

class Mapping final : public PeerRegion {
 public:
  Mapping(const std::byte* base, std::size_t bytes) : base_(base), bytes_(bytes) {}
  ~Mapping() override { ::munmap(const_cast<std::byte*>(base_), bytes_); }
  const std::byte* base() const { return base_; }
  std::size_t bytes() const { return bytes_; }

 private:
  const std::byte* base_;
  std::size_t bytes_;
};

class ShmFabric final : public Fabric {
 public:
  ShmFabric(net::Executor& loop, device::KvPool& pool, const ShmFabricOptions& options)
      : loop_(loop), pool_(pool), region_(*pool.shared_region()), options_(options), queue_(options.jobs_max) {
    thread_ = std::thread([this] { work(); });
    if (options.cpu >= 0) {
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(options.cpu, &set);
      pthread_setaffinity_np(thread_.native_handle(), sizeof set, &set);  // a hint: where it is refused, the thread runs anywhere
    }
    pthread_setname_np(thread_.native_handle(), "kv-copier");
  }

  ~ShmFabric() override {
    *alive_ = false;
    stopping_ = true;
    queue_.close();
    thread_.join();
  }

  SourceRegion export_pool(Range heads) const override { return {::getpid(), region_.fd, region_.bytes, pool_.view(), heads}; }

  Result<std::shared_ptr<PeerRegion>> open(const SourceRegion& region) override {
    const std::string path = "/proc/" + std::to_string(region.pid) + "/fd/" + std::to_string(region.fd);
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
    return std::shared_ptr<PeerRegion>(std::make_shared<Mapping>(static_cast<const std::byte*>(base), region.bytes));
  }

  JobId fetch(std::shared_ptr<PeerRegion> peer, std::vector<ByteRun> runs, Done done) override {
    return submit(std::static_pointer_cast<Mapping>(std::move(peer)), std::move(runs), std::move(done));
  }
  JobId digest(std::vector<ByteRun> runs, Done done) override { return submit(nullptr, std::move(runs), std::move(done)); }

  void cancel(JobId job) override {
    if (auto it = jobs_.find(job); it != jobs_.end()) *it->second.cancelled = true;
  }
  std::size_t jobs_max() const override { return options_.jobs_max; }

 private:
  // Read by the copier.
  struct Job {
    JobId id = 0;
    std::shared_ptr<Mapping> peer;  // null: digest local memory
    std::vector<ByteRun> runs;
    std::shared_ptr<std::atomic<bool>> cancelled;
  };
  // Kept by the loop.
  struct Waiting {
    Done done;
    std::shared_ptr<std::atomic<bool>> cancelled;
  };

  JobId submit(std::shared_ptr<Mapping> peer, std::vector<ByteRun> runs, Done done) {
    Job job{next_job_++, std::move(peer), std::move(runs), std::make_shared<std::atomic<bool>>(false)};
    const JobId id = job.id;
    jobs_[id] = {std::move(done), job.cancelled};
    if (jobs_.size() > options_.jobs_max || !queue_.try_push(job)) {
      post(id, Status(Code::kResourceExhausted, "more than " + std::to_string(options_.jobs_max) + " KV copies wait"));
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
    const std::size_t source_bytes = job.peer ? job.peer->bytes() : region_.bytes;
    if (job.runs.empty() || !runs_inside(job.runs, source_bytes, region_.bytes)) return {Code::kDataLoss, "a KV copy leaves its region"};
    return job.peer ? copy_and_digest(job.peer->base(), region_.base, job.runs) : digest_runs(region_.base, job.runs);
  }

  // constant
  net::Executor& loop_;
  device::KvPool& pool_;
  const device::SharedRegion region_;
  const ShmFabricOptions options_;
  // owned by the loop
  std::map<JobId, Waiting> jobs_;
  JobId next_job_ = 1;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  // shared
  BoundedQueue<Job> queue_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<Fabric>> create_shm_fabric(net::Executor& loop, device::KvPool& pool, const ShmFabricOptions& options) {
  if (pool.shared_region() == nullptr || pool.shared_region()->fd < 0) {
    return {Code::kUnimplemented, "this device's KV pool is not shareable host memory"};
  }
  BATON_RETURN_IF_ERROR(check_view(pool.view(), pool.shared_region()->bytes));
  return std::unique_ptr<Fabric>(std::make_unique<ShmFabric>(loop, pool, options));
}

}  // namespace baton::transfer
