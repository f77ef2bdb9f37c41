#pragma once
// The fabric between processes of one host: D maps P's pool read-only through /proc/<pid>/fd/<fd> and copies on threads of its own,
// one a rank, digesting each piece while it is in the nearest cache. P's only part is to keep its memory; it cannot write into D's.
//
// Needs both processes to run as one user (or with ptrace rights) in one PID namespace; open() says so where they do not.

#include <memory>
#include <span>

#include "base/status.h"
#include "device/kv_view.h"
#include "net/event_loop.h"
#include "transfer/fabric.h"

namespace baton::transfer {

// What one rank holds.
struct RankPool {
  device::KvPool* pool = nullptr;  // host memory (KvPool::shared_region), outlives the fabric
  Range heads;
};

// `jobs_max`: queued and running. Callbacks run on `loop`.
Result<std::unique_ptr<Fabric>> create_shm_fabric(net::Executor& loop, std::span<const RankPool> ranks, std::size_t jobs_max = 1024);

}  // namespace baton::transfer
