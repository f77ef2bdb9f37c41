#include "kv/block_pool.h"

#include <string>

#include "base/mutant.h"

namespace baton::kv {

BlockPool::BlockPool(std::int32_t blocks) : blocks_(static_cast<std::size_t>(blocks)), index_(blocks) {
  BATON_CHECK(blocks >= 0);
  free_.reserve(blocks_.size());
  for (std::int32_t i = blocks; i > 0; --i) free_.push_back(i - 1);  // block 0 goes first
}

BlockPool::Block& BlockPool::at(BlockId block) {
  BATON_CHECK(block.value >= 0 && block.value < total());
  return blocks_[static_cast<std::size_t>(block.value)];
}

const BlockPool::Block& BlockPool::at(BlockId block) const { return const_cast<BlockPool*>(this)->at(block); }

void BlockPool::unlink(Block& b) {
  (b.older < 0 ? oldest_ : blocks_[static_cast<std::size_t>(b.older)].newer) = b.newer;
  (b.newer < 0 ? newest_ : blocks_[static_cast<std::size_t>(b.newer)].older) = b.older;
  b.older = b.newer = -1;
  --cached_;
}

void BlockPool::hold(std::int32_t block) {
  Block& b = blocks_[static_cast<std::size_t>(block)];
  if (b.references == 0) {
    unlink(b);
    ++held_;
  }
  ++b.references;
}

bool BlockPool::allocate(std::int32_t count, std::vector<BlockId>& out) {
  BATON_CHECK(count >= 0);
  if (count > available()) return false;
  for (std::int32_t i = 0; i < count; ++i) {
    std::int32_t block;
    if (!free_.empty()) {
      block = free_.back();
      free_.pop_back();
    } else {
      block = oldest_;
      Block& b = blocks_[static_cast<std::size_t>(block)];
      unlink(b);
      if (!BATON_MUTANT(evicted_block_found)) index_.erase(b.hash);
      b.published = false;
    }
    blocks_[static_cast<std::size_t>(block)].references = 1;
    ++held_;
    out.push_back(BlockId(block));
  }
  return true;
}

void BlockPool::share(BlockId block) {
  Block& b = at(block);
  BATON_CHECK(b.references > 0);
  ++b.references;
}

void BlockPool::release(BlockId block) {
  Block& b = at(block);
  BATON_CHECK(b.references > 0);
  if (--b.references > 0) return;
  --held_;
  if (!b.published) {
    free_.push_back(block.value);
    return;
  }
  b.older = newest_;
  (newest_ < 0 ? oldest_ : blocks_[static_cast<std::size_t>(newest_)].newer) = block.value;
  newest_ = block.value;
  ++cached_;
}

void BlockPool::release(std::span<const BlockId> blocks) {
  for (std::size_t i = blocks.size(); i > 0; --i) release(blocks[i - 1]);
}

bool BlockPool::publish(BlockId block, const wire::BlockHash& hash) {
  Block& b = at(block);
  BATON_CHECK(b.references > 0);
  if (b.published || index_.find(hash) >= 0) return false;
  index_.insert(hash, block.value);
  b.published = true;
  b.hash = hash;
  return true;
}

std::int32_t BlockPool::find(std::span<const wire::BlockHash> chain, std::int32_t* unheld) const {
  std::int32_t count = 0, cached = 0;
  for (const wire::BlockHash& hash : chain) {
    const std::int32_t block = index_.find(hash);
    if (block < 0) break;
    ++count;
    if (blocks_[static_cast<std::size_t>(block)].references == 0) ++cached;
  }
  if (unheld != nullptr) *unheld = cached;
  return count;
}

std::int32_t BlockPool::match(std::span<const wire::BlockHash> chain, std::vector<BlockId>& out) {
  std::int32_t count = 0;
  for (const wire::BlockHash& hash : chain) {
    const std::int32_t block = index_.find(hash);
    if (block < 0) break;
    hold(block);
    out.push_back(BlockId(block));
    ++count;
  }
  return count;
}

Status BlockPool::check() const {
  const auto bad = [](std::string what) { return Status(Code::kInternal, "block pool: " + std::move(what)); };
  std::vector<int> seen(blocks_.size(), 0);
  for (const std::int32_t block : free_) {
    if (block < 0 || block >= total() || seen[static_cast<std::size_t>(block)]++ != 0) {
      return bad("block " + std::to_string(block) + " is twice on the free list, or no block");
    }
    const Block& b = blocks_[static_cast<std::size_t>(block)];
    if (b.references != 0 || b.published) return bad("free block " + std::to_string(block) + " is held or published");
  }
  std::int32_t cached = 0, before = -1;
  for (std::int32_t block = oldest_; block >= 0; block = blocks_[static_cast<std::size_t>(block)].newer) {
    const Block& b = blocks_[static_cast<std::size_t>(block)];
    if (seen[static_cast<std::size_t>(block)]++ != 0) return bad("block " + std::to_string(block) + " is twice cached, or cached and free");
    if (b.references != 0 || !b.published || b.older != before) return bad("cached block " + std::to_string(block) + " is inconsistent");
    before = block;
    ++cached;
  }
  if (before != newest_ || cached != cached_)
    return bad("the LRU list has " + std::to_string(cached) + " blocks, not " + std::to_string(cached_));
  std::int32_t held = 0, published = 0;
  for (std::int32_t i = 0; i < total(); ++i) {
    const Block& b = blocks_[static_cast<std::size_t>(i)];
    if (b.references < 0) return bad("block " + std::to_string(i) + " has negative references");
    if (b.references > 0) ++held;
    if ((b.references > 0) == (seen[static_cast<std::size_t>(i)] != 0))
      return bad("block " + std::to_string(i) + " is lost or in two states");
    if (b.published) {
      ++published;
      if (index_.find(b.hash) != i) return bad("published block " + std::to_string(i) + " is not what its hash finds");
    }
  }
  if (held != held_) return bad("counts " + std::to_string(held_) + " held blocks, has " + std::to_string(held));
  if (published != index_.size())
    return bad("the index has " + std::to_string(index_.size()) + " entries for " + std::to_string(published));
  if (free() + cached_ + held_ != total()) return bad("free + cached + held is not the total");
  return {};
}

}  // namespace baton::kv
