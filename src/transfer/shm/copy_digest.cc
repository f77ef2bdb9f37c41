#include "transfer/shm/copy_digest.h"

#include <algorithm>
#include <cstring>

#include "device/half.h"

namespace baton::transfer {
namespace {

using device::DType;

// Small enough that what was copied is still in L1 when it is digested.
constexpr std::int64_t kPiece = 8 << 10;

// Runs are short (one block of one head) and scattered, so the hardware prefetcher starts anew on each: the next one is asked for while
// this one is being worked on.
inline void prefetch(const std::byte* p, std::int64_t bytes) {
  for (std::int64_t i = 0; i < std::min<std::int64_t>(bytes, kPiece); i += 64) __builtin_prefetch(p + i, 0, 3);
}

float load(const std::byte* from, DType type) {
  if (type == DType::kF32) {
    float f;
    std::memcpy(&f, from, sizeof f);
    return f;
  }
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return type == DType::kF16 ? device::half_to_float(bits) : device::bf16_to_float(bits);
}
void store(float f, std::byte* to, DType type) {
  if (type == DType::kF32) {
    std::memcpy(to, &f, sizeof f);
    return;
  }
  const std::uint16_t bits = type == DType::kF16 ? device::float_to_half(f) : device::float_to_bf16(f);
  std::memcpy(to, &bits, sizeof bits);
}

// What arrived is digested before it becomes something else.
void convert_run(const std::byte* from, std::byte* to, std::int64_t bytes, const CopyPlan& plan, Digester& digester) {
  const std::size_t from_size = size_of(plan.from), to_size = size_of(plan.to);
  std::byte piece[kPiece];
  for (std::int64_t at = 0; at < bytes; at += kPiece) {
    const auto n = static_cast<std::size_t>(std::min(kPiece, bytes - at));
    std::memcpy(piece, from + at, n);
    digester.update(piece, n);
    for (std::size_t i = 0; i < n; i += from_size, to += to_size) store(load(piece + i, plan.from), to, plan.to);
  }
}

void copy_run(const std::byte* from, std::byte* to, std::int64_t bytes, Digester& digester) {
  for (std::int64_t at = 0; at < bytes; at += kPiece) {
    const auto n = static_cast<std::size_t>(std::min(kPiece, bytes - at));
    std::memcpy(to + at, from + at, n);
    digester.update(to + at, n);
  }
}

template <class Part>
bool fits(std::span<const Part> parts, std::int32_t part, std::int64_t offset, std::int64_t bytes) {
  if (part < 0 || static_cast<std::size_t>(part) >= parts.size() || offset < 0 || bytes <= 0) return false;
  const std::size_t size = parts[static_cast<std::size_t>(part)].size();
  return static_cast<std::uint64_t>(offset) <= size && static_cast<std::uint64_t>(bytes) <= size - static_cast<std::uint64_t>(offset);
}

template <class Part>
auto* at(std::span<const Part> parts, std::int32_t part, std::int64_t offset) {
  return parts[static_cast<std::size_t>(part)].data() + offset;
}

}  // namespace

Digest copy_and_digest(SourceBytes source, TargetBytes target, const CopyPlan& plan) {
  Digester digester;
  for (std::size_t i = 0; i < plan.runs.size(); ++i) {
    const ByteRun& r = plan.runs[i];
    if (i + 1 < plan.runs.size()) {
      const ByteRun& next = plan.runs[i + 1];
      prefetch(at(source, next.source_part, next.source), next.bytes);
    }
    const std::byte* from = at(source, r.source_part, r.source);
    std::byte* to = at(target, r.target_part, r.target);
    if (plan.from == plan.to) {
      copy_run(from, to, r.bytes, digester);
    } else {
      convert_run(from, to, r.bytes, plan, digester);
    }
  }
  for (const ByteRun& r : plan.replicas) {
    std::memcpy(at(target, r.target_part, r.target), at(target, r.source_part, r.source), static_cast<std::size_t>(r.bytes));
  }
  return digester.finish();
}

Digest digest_runs(TargetBytes target, std::span<const ByteRun> runs) {
  Digester digester;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (i + 1 < runs.size()) prefetch(at(target, runs[i + 1].target_part, runs[i + 1].target), runs[i + 1].bytes);
    digester.update(at(target, runs[i].target_part, runs[i].target), static_cast<std::size_t>(runs[i].bytes));
  }
  return digester.finish();
}

bool plan_inside(const CopyPlan& plan, SourceBytes source, TargetBytes target) {
  const auto from_size = static_cast<std::int64_t>(size_of(plan.from)), to_size = static_cast<std::int64_t>(size_of(plan.to));
  return std::ranges::all_of(plan.runs,
                             [&](const ByteRun& r) {
                               return r.bytes > 0 && r.bytes % from_size == 0 && fits(source, r.source_part, r.source, r.bytes) &&
                                      fits(target, r.target_part, r.target, r.bytes / from_size * to_size);
                             }) &&
         std::ranges::all_of(plan.replicas, [&](const ByteRun& r) {
           return fits(target, r.source_part, r.source, r.bytes) && fits(target, r.target_part, r.target, r.bytes);
         });
}

bool runs_inside(std::span<const ByteRun> runs, TargetBytes target) {
  return std::ranges::all_of(runs, [&](const ByteRun& r) { return fits(target, r.target_part, r.target, r.bytes); });
}

}  // namespace baton::transfer
