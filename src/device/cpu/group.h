#pragma once
// The ranks of one tensor-parallel instance on this host: threads of one process, which read each other's activations where they lie. A
// collective publishes a pointer, meets, works on the rank's own slice of everybody's data, and meets again; so each sum is made once, in
// rank order, and all ranks get the same bits. Where the instance has other hosts, the first rank here then speaks with theirs, and the
// others get what comes of it.

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/team.h"
#include "device/collective.h"
#include "device/node_group.h"

namespace baton::device::cpu {

class Group {
 public:
  // `size`: ranks on this host. `deadline`: how long they wait for the last of them to come to a collective, or for the first of them while
  // it waits as long for `nodes` (null: there is no other host). Each node has as many ranks: those of node 0 come first.
  Group(int size, Duration deadline, std::shared_ptr<NodeGroup> nodes = nullptr);

  int size() const { return static_cast<int>(slots_.size()); }
  int nodes() const { return nodes_ ? nodes_->size() : 1; }
  // The end of the rank that is the `local`-th on this host, for its thread. The group and the team outlive it.
  std::unique_ptr<Collective> join(int local, Team& team);

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
  bool meet(int rank, Duration deadline);
  int first_rank() const { return nodes_ ? nodes_->node() * size() : 0; }

  std::vector<Slot> slots_;
  std::vector<Strip> strips_;               // by slot, for the first rank's use
  const std::shared_ptr<NodeGroup> nodes_;  // belongs to the first rank's thread
  const Duration deadline_;
  std::atomic<bool> failed_{false};
  mutable std::mutex mutex_;
  Status status_;  // guarded by it
};

}  // namespace baton::device::cpu
