#include "device/cpu/weight_arena.h"

#include <sys/mman.h>

#include <algorithm>

namespace baton::device::cpu {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kLine = 64;
// Kernels prefetch past the end of what they read; a guard keeps that inside the mapping.
constexpr std::size_t kGuard = 8192;

std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

}  // namespace

WeightArena::~WeightArena() {
  for (const Chunk& chunk : chunks_) munmap(chunk.data, chunk.bytes);
}

std::byte* WeightArena::allocate(std::size_t bytes) {
  bytes = round_up(bytes, kLine);
  const std::lock_guard lock(mutex_);
  if (chunks_.empty() || chunks_.back().bytes - chunks_.back().used < bytes + kGuard) {
    // Mapped with a page to spare on both sides, then trimmed to whole huge pages.
    const std::size_t want = round_up(std::max(bytes + kGuard, chunk_bytes_), kHugePage);
    void* map = mmap(nullptr, want + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return nullptr;
    auto* const first = static_cast<std::byte*>(map);
    const std::size_t head = round_up(reinterpret_cast<std::size_t>(first), kHugePage) - reinterpret_cast<std::size_t>(first);
    if (head != 0) munmap(first, head);
    munmap(first + head + want, kHugePage - head);
    // A wish: small pages work too, and waste less where a chunk is small.
    if (std::max(bytes, chunk_bytes_) >= kHugePage) madvise(first + head, want, MADV_HUGEPAGE);
    chunks_.push_back({first + head, want, 0});
  }
  Chunk& chunk = chunks_.back();
  std::byte* out = chunk.data + chunk.used;
  chunk.used += bytes;
  return out;
}

}  // namespace baton::device::cpu
