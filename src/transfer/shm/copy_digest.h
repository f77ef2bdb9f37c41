#pragma once
// The inner loop of the shm fabric, apart so that it can be measured and tested alone.

#include <cstddef>
#include <span>

#include "transfer/digest.h"
#include "transfer/fabric.h"

namespace baton::transfer {

// Copies the runs in order and digests what arrived at the target, in one pass. The caller has checked the bounds.
Digest copy_and_digest(const std::byte* source, std::byte* target, std::span<const ByteRun> runs);
// Digests the runs' target bytes.
Digest digest_runs(const std::byte* target, std::span<const ByteRun> runs);
// Whether every run stays inside both regions.
bool runs_inside(std::span<const ByteRun> runs, std::size_t source_bytes, std::size_t target_bytes);

}  // namespace baton::transfer
