#pragma once
// The fabric between processes of one host: D maps P's pool read-only through /proc/<pid>/fd/<fd> and copies on one thread of its own,
// digesting each piece while it is in the nearest cache. P's only part is to keep its memory; it cannot write into D's.
//
// Needs both processes to run as one user (or with ptrace rights) in one PID namespace; open() says so where they do not.

#include <memory>

#include "base/status.h"
#include "device/kv_view.h"
#include "net/event_loop.h"
#include "transfer/fabric.h"

namespace baton::transfer {

struct ShmFabricOptions {
  std::size_t jobs_max = 1024;  // queued and running
  int cpu = -1;                 // pins the copier thread; -1: wherever it likes
};

// `pool` must be host memory (KvPool::shared_region) and outlive the fabric. Callbacks run on `loop`.
Result<std::unique_ptr<Fabric>> create_shm_fabric(net::Executor& loop, device::KvPool& pool, const ShmFabricOptions& options);

}  // namespace baton::transfer
