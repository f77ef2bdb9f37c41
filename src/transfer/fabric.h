#pragma once
// Everything network-specific about a hand-off: how bytes get from P's pool into D's. The protocol (sender.h, receiver.h) knows no
// transport, and a fabric knows neither protocol nor layout: it is told byte runs (relayout.h).
//
// The target fetches; the source only keeps its memory readable. Everything is asynchronous: `done` runs on the loop given at creation,
// exactly once for each fetch() and digest(), also after cancel(). Only destroying the fabric drops callbacks: it waits for the job in
// progress, so that afterwards nothing touches the pool.

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/status.h"
#include "transfer/digest.h"
#include "transfer/messages.h"

namespace baton::transfer {

// `bytes` bytes from `source` (offset in a part of the peer's pool) to `target` (offset in a part of the local one).
struct ByteRun {
  std::int64_t source = 0, target = 0, bytes = 0;
  std::int32_t source_part = 0, target_part = 0;
};

// One copy: `runs` from the peer's pool into the local one, in the digest's order. Then `replicas` within the local one (`source` is local
// too), for heads that several of its parts hold. Where element types differ `bytes` counts source bytes, which become elements of type
// `to`, rounded to nearest even.
struct CopyPlan {
  std::vector<ByteRun> runs, replicas;
  device::DType from = device::DType::kBF16, to = device::DType::kBF16;
};

// A peer's region, readable from here. Shared by the fetches that read it, so that it outlives them.
class PeerRegion {
 public:
  virtual ~PeerRegion() = default;
};

class Fabric {
 public:
  virtual ~Fabric() = default;

  // What a Hello says of the local pool.
  virtual SourceRegion export_pool() const = 0;
  // Makes a peer's region readable; errors say what to do. May block for a system call, never for the peer.
  virtual Result<std::shared_ptr<PeerRegion>> open(const SourceRegion& region) = 0;

  using Done = std::function<void(Result<Digest>)>;
  using JobId = std::uint64_t;
  // Copies the runs in order and digests what has arrived, as the peer's elements, in the same order. Runs that leave either pool are
  // refused. After a failure or a cancel the target bytes are undefined. Jobs may overtake each other.
  virtual JobId fetch(std::shared_ptr<PeerRegion> peer, CopyPlan plan, Done done) = 0;
  // Digests local runs (their targets) in order.
  virtual JobId digest(std::vector<ByteRun> runs, Done done) = 0;
  // A job that has not started completes with kCancelled; one that runs, completes. Either way memory is quiet only after `done`.
  virtual void cancel(JobId job) = 0;

  // Jobs accepted and not yet completed are at most this many; beyond it `done` gets kResourceExhausted.
  virtual std::size_t jobs_max() const = 0;
};

}  // namespace baton::transfer
