#pragma once
// Which prompt blocks a worker probably caches: the hashes of what it was sent, least recently used ones forgotten first. A guess that
// costs nothing when wrong: the worker's own prefix cache decides.

#include <cstddef>
#include <list>
#include <span>
#include <unordered_map>

#include "wire/prefix_hash.h"

namespace baton::gateway {

class PrefixIndex {
 public:
  explicit PrefixIndex(std::size_t blocks_max) : blocks_max_(blocks_max) {}

  // Remembers a chain (wire::prefix_chain). A chain's tail is forgotten before its head, without which it would be of no use.
  void insert(std::span<const wire::BlockHash> chain);
  // How many leading blocks of `chain` are remembered.
  std::size_t match(std::span<const wire::BlockHash> chain) const;
  void clear();
  std::size_t size() const { return order_.size(); }

 private:
  const std::size_t blocks_max_;
  std::list<wire::BlockHash> order_;  // most recently used first
  std::unordered_map<wire::BlockHash, std::list<wire::BlockHash>::iterator> where_;
};

}  // namespace baton::gateway
