#include "transfer/shm/copy_digest.h"

#include <algorithm>
#include <cstring>

namespace baton::transfer {
namespace {

// Small enough that what was copied is still in L1 when it is digested.
constexpr std::int64_t kPiece = 8 << 10;

// Runs are short (one block of one head) and scattered, so the hardware prefetcher starts anew on each: the next one is asked for while
// this one is being worked on.
inline void prefetch(const std::byte* p, std::int64_t bytes) {
  for (std::int64_t i = 0; i < std::min<std::int64_t>(bytes, kPiece); i += 64) __builtin_prefetch(p + i, 0, 3);
}

}  // namespace

Digest copy_and_digest(const std::byte* source, std::byte* target, std::span<const ByteRun> runs) {
  Digester digester;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const ByteRun& r = runs[i];
    if (i + 1 < runs.size()) prefetch(source + runs[i + 1].source, runs[i + 1].bytes);
    for (std::int64_t at = 0; at < r.bytes; at += kPiece) {
      const auto n = static_cast<std::size_t>(std::min(kPiece, r.bytes - at));
      std::memcpy(target + r.target + at, source + r.source + at, n);
      digester.update(target + r.target + at, n);
    }
  }
  return digester.finish();
}

Digest digest_runs(const std::byte* target, std::span<const ByteRun> runs) {
  Digester digester;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (i + 1 < runs.size()) prefetch(target + runs[i + 1].target, runs[i + 1].bytes);
    digester.update(target + runs[i].target, static_cast<std::size_t>(runs[i].bytes));
  }
  return digester.finish();
}

bool runs_inside(std::span<const ByteRun> runs, std::size_t source_bytes, std::size_t target_bytes) {
  return std::all_of(runs.begin(), runs.end(), [&](const ByteRun& r) {
    const auto fits = [&](std::int64_t offset, std::size_t bytes) {
      return offset >= 0 && r.bytes > 0 && static_cast<std::uint64_t>(offset) <= bytes &&
             static_cast<std::uint64_t>(r.bytes) <= bytes - static_cast<std::uint64_t>(offset);
    };
    return fits(r.source, source_bytes) && fits(r.target, target_bytes);
  });
}

}  // namespace baton::transfer
