#pragma once
// Memory of packed weights: allocated once at load, freed as a whole, in large chunks on 2 MB pages. Layers that are packed one after the
// other lie one after the other, so that a decode step reads forward through memory.

#include <cstddef>
#include <mutex>
#include <vector>

namespace baton::device::cpu {

class WeightArena {
 public:
  // Memory is taken from the system in chunks of at least this many bytes; pages that are never written cost nothing.
  explicit WeightArena(std::size_t chunk_bytes = std::size_t{64} << 20) : chunk_bytes_(chunk_bytes) {}
  ~WeightArena();
  WeightArena(const WeightArena&) = delete;
  WeightArena& operator=(const WeightArena&) = delete;

  // Zeroed, on a cache line, valid as long as the arena; null where the system has no memory. Thread-safe.
  std::byte* allocate(std::size_t bytes);

 private:
  struct Chunk {
    std::byte* data;
    std::size_t bytes, used;
  };
  const std::size_t chunk_bytes_;
  std::mutex mutex_;
  std::vector<Chunk> chunks_;  // guarded by mutex_
};

}  // namespace baton::device::cpu
