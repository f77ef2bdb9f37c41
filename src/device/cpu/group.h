#pragma once
// The ranks of one tensor-parallel instance on this host: threads of one process, which read each other's activations where they lie. A
// collective publishes a pointer, meets, works on the rank's own slice of everybody's data, and meets again; so each sum is made once, in
// rank order, and all ranks get the same bits.

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/team.h"
#include "device/collective.h"

namespace baton::device::cpu {

class Group {
 public:
  // `deadline`: how long ranks wait for the last of them to come to a collective.
  Group(int size, Duration deadline);

  int size() const { return static_cast<int>(slots_.size()); }
  // The rank's own end, for its thread. The group and the team outlive it.
  std::unique_ptr<Collective> join(Rank rank, Team& team);

  // Whoever waits for the others returns, now and ever after; what its tensors hold then is worth nothing. The first failure counts.
  void fail(Status why);
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  Status status() const;

 private:
  class Member;
  struct alignas(64) Slot {
    std::atomic<std::uint64_t> met{0};  // meetings that the rank has come to
    std::byte* data = nullptr;          // what it brings to the present one,
    std::size_t bytes = 0;              // and how much: all of it, or a row
  };
  bool meet(int rank);

  std::vector<Slot> slots_;
  const Duration deadline_;
  std::atomic<bool> failed_{false};
  mutable std::mutex mutex_;
  Status status_;  // guarded by it
};

}  // namespace baton::device::cpu
