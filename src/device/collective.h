#pragma once
// Collectives among the ranks of one instance, on one host or on several. The sum runs in one order on every rank, so all get the same
// bits: in the order of the ranks on one host, and in that of the hosts over what each of them has summed so. How many hosts there are is
// thus part of the numerics id.

#include <memory>

#include "base/ids.h"
#include "base/status.h"
#include "device/types.h"

namespace baton::device {

class Collective {
 public:
  virtual ~Collective() = default;
  virtual Rank rank() const = 0;
  virtual int size() const = 0;
  // x := sum over ranks, in place, ordered with the context's stream. Every rank calls the same collectives in the same order. A rank that
  // does not come within the group's deadline fails the group: kDeadlineExceeded at the next synchronisation on the others.
  virtual void all_reduce(const Tensor& x) = 0;
  // On rank 0: out [T, sum of the ranks' columns] := the x [T, columns] of all ranks side by side, in rank order; each may have another
  // number of columns. The others' `out` is not used.
  virtual void gather_columns(const Tensor& x, const Tensor& out) = 0;
  // What each rank queued before is visible to all when it returns.
  virtual void barrier() = 0;
  // This rank cannot go on: the others' collectives return, and their next synchronisation says why.
  virtual void fail(const Status& why) = 0;
};

// The group of one: nothing to do.
std::unique_ptr<Collective> solo_collective();

}  // namespace baton::device
