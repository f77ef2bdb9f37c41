#pragma once
// The inner loop of a fabric in host memory, apart so that it can be measured and tested alone. The caller has checked the bounds.

#include <cstddef>
#include <span>
#include <vector>

#include "transfer/digest.h"
#include "transfer/fabric.h"

namespace baton::transfer {

// The parts of a pool.
using SourceBytes = std::span<const std::span<const std::byte>>;
using TargetBytes = std::span<const std::span<std::byte>>;

// Copies the plan's runs in order, digests what arrived, as the source's elements, in the same pass; then copies the replicas.
Digest copy_and_digest(SourceBytes source, TargetBytes target, const CopyPlan& plan);
// Digests the runs' targets.
Digest digest_runs(TargetBytes target, std::span<const ByteRun> runs);
// Whether every run, and replica, stays inside both pools.
bool plan_inside(const CopyPlan& plan, SourceBytes source, TargetBytes target);
bool runs_inside(std::span<const ByteRun> runs, TargetBytes target);

}  // namespace baton::transfer
