#pragma once
// Collectives among the ranks of one instance. The sum runs in rank order on every rank, so all get the same bits.

#include <memory>

#include "base/ids.h"
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
  // out [size, ...] := x of each rank, in rank order.
  virtual void all_gather(const Tensor& x, const Tensor& out) = 0;
};

// The group of one: nothing to do.
std::unique_ptr<Collective> solo_collective();

}  // namespace baton::device
