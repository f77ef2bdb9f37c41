#pragma once
// Block hash -> block, of a fixed capacity: open addressing with linear probing, at most half full, so that neither insertion nor removal
// allocates.

#include <cstdint>
#include <vector>

#include "wire/prefix_hash.h"

namespace baton::kv {

class PrefixIndex {
 public:
  explicit PrefixIndex(std::int32_t capacity);
  // -1 if absent.
  std::int32_t find(const wire::BlockHash& hash) const;
  // The hash must be absent, and size() < capacity.
  void insert(const wire::BlockHash& hash, std::int32_t block);
  // The hash must be present.
  void erase(const wire::BlockHash& hash);
  std::int32_t size() const { return size_; }

 private:
  struct Slot {
    wire::BlockHash hash;
    std::int32_t block = -1;  // -1: empty
  };
  std::size_t home(const wire::BlockHash& hash) const { return static_cast<std::size_t>(hash.low) & mask_; }
  std::size_t locate(const wire::BlockHash& hash) const;  // its slot, or the empty one where it would go

  std::vector<Slot> slots_;  // a power of two of them
  std::size_t mask_ = 0;
  std::int32_t size_ = 0;
  std::int32_t capacity_ = 0;
};

}  // namespace baton::kv
