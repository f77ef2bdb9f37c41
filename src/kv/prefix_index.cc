#include "kv/prefix_index.h"

#include <bit>

#include "base/status.h"

namespace baton::kv {

PrefixIndex::PrefixIndex(std::int32_t capacity) : capacity_(capacity) {
  BATON_CHECK(capacity >= 0);
  slots_.resize(std::bit_ceil(static_cast<std::size_t>(capacity) * 2 + 1));
  mask_ = slots_.size() - 1;
}

std::size_t PrefixIndex::locate(const wire::BlockHash& hash) const {
  std::size_t i = home(hash);
  while (slots_[i].block >= 0 && slots_[i].hash != hash) i = (i + 1) & mask_;
  return i;
}

std::int32_t PrefixIndex::find(const wire::BlockHash& hash) const { return slots_[locate(hash)].block; }

void PrefixIndex::insert(const wire::BlockHash& hash, std::int32_t block) {
  Slot& slot = slots_[locate(hash)];
  BATON_CHECK(slot.block < 0 && size_ < capacity_);
  slot = {hash, block};
  ++size_;
}

void PrefixIndex::erase(const wire::BlockHash& hash) {
  std::size_t hole = locate(hash);
  BATON_CHECK(slots_[hole].block >= 0);
  // Closes the gap: every later entry of the run whose home does not lie between the hole and itself moves into the hole.
  for (std::size_t i = (hole + 1) & mask_; slots_[i].block >= 0; i = (i + 1) & mask_) {
    const std::size_t distance = (i - home(slots_[i].hash)) & mask_;
    if (distance >= ((i - hole) & mask_)) {
      slots_[hole] = slots_[i];
      hole = i;
    }
  }
  slots_[hole].block = -1;
  --size_;
}

}  // namespace baton::kv
