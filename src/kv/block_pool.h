#pragma once
// Who owns which block of a KV pool. Bookkeeping only: the bytes belong to the device.
//
// Every block is exactly one of
//   free    nobody's, contents meaningless
//   held    by one or more owners (reference count > 0); it may also be published
//   cached  published in the prefix index and held by nobody; the least recently released one is evicted when free blocks run out
// so free + cached + held = total, always (check()). All calls are deterministic: the same calls give the same block ids. Nothing is
// allocated after construction, but for growth of the caller's vectors.

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "kv/prefix_index.h"
#include "wire/prefix_hash.h"

namespace baton::kv {

class BlockPool {
 public:
  explicit BlockPool(std::int32_t blocks);

  // Appends `count` blocks, each with one reference, to `out`; false, and nothing is changed, if fewer than that are available.
  [[nodiscard]] bool allocate(std::int32_t count, std::vector<BlockId>& out);
  // One more owner of a held block.
  void share(BlockId block);
  // One owner less. The last one's release makes a published block cached, any other free.
  void release(BlockId block);
  // Releases all, last block first: of a prefix, the tail is then evicted before the head, without which it cannot be found.
  void release(std::span<const BlockId> blocks);

  // Names the contents of a held, completely written block. False if another block bears the hash already (that one stays), or this one
  // has a name.
  bool publish(BlockId block, const wire::BlockHash& hash);
  // How many blocks of `chain`, from its start, are published; with no reference taken. `unheld`, if given: how many of those are cached.
  std::int32_t find(std::span<const wire::BlockHash> chain, std::int32_t* unheld = nullptr) const;
  // Takes a reference to each of those and appends them to `out`; returns how many.
  std::int32_t match(std::span<const wire::BlockHash> chain, std::vector<BlockId>& out);

  std::int32_t total() const { return static_cast<std::int32_t>(blocks_.size()); }
  std::int32_t free() const { return static_cast<std::int32_t>(free_.size()); }
  std::int32_t cached() const { return cached_; }
  std::int32_t held() const { return held_; }
  // What allocate() can give.
  std::int32_t available() const { return free() + cached_; }
  std::int32_t references(BlockId block) const { return at(block).references; }
  bool published(BlockId block) const { return at(block).published; }
  // Under which it is published, or null.
  const wire::BlockHash* name(BlockId block) const { return at(block).published ? &at(block).hash : nullptr; }

  // Verifies all of the above from scratch, O(total): for tests and the debug endpoint.
  Status check() const;

 private:
  struct Block {
    std::int32_t references = 0;
    std::int32_t older = -1, newer = -1;  // neighbours in the LRU list, while cached
    bool published = false;
    wire::BlockHash hash;
  };
  Block& at(BlockId block);
  const Block& at(BlockId block) const;
  void hold(std::int32_t block);  // a cached block leaves the LRU list
  void unlink(Block& b);

  std::vector<Block> blocks_;
  std::vector<std::int32_t> free_;  // a stack
  PrefixIndex index_;
  std::int32_t oldest_ = -1, newest_ = -1;  // ends of the LRU list
  std::int32_t cached_ = 0, held_ = 0;
};

}  // namespace baton::kv
