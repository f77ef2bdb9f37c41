#include "gateway/prefix_index.h"

#include <algorithm>

namespace baton::gateway {

void PrefixIndex::insert(std::span<const wire::BlockHash> chain) {
  chain = chain.first(std::min(chain.size(), blocks_max_));
  for (auto hash = chain.rbegin(); hash != chain.rend(); ++hash) {
    if (const auto found = where_.find(*hash); found != where_.end()) {
      order_.splice(order_.begin(), order_, found->second);
      continue;
    }
    if (order_.size() == blocks_max_) {
      where_.erase(order_.back());
      order_.pop_back();
    }
    order_.push_front(*hash);
    where_[*hash] = order_.begin();
  }
}

std::size_t PrefixIndex::match(std::span<const wire::BlockHash> chain) const {
  std::size_t blocks = 0;
  while (blocks < chain.size() && where_.contains(chain[blocks])) ++blocks;
  return blocks;
}

void PrefixIndex::clear() {
  order_.clear();
  where_.clear();
}

}  // namespace baton::gateway
