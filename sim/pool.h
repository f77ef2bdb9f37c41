#pragma once
// The KV pools of one process's ranks, in plain memory. A row, of one (layer, head, kind) and token, is one word (model.h says which);
// where ranks outnumber KV heads several hold the same head, and each has a copy of its rows.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "device/kv_view.h"
#include "sim/model.h"
#include "transfer/messages.h"
#include "transfer/shm/copy_digest.h"

namespace baton::sim {

class Pool {
 public:
  Pool(const ModelShape& model, int block_tokens, std::int32_t blocks, int ranks);
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  const device::KvSpec& spec() const { return spec_; }  // of the whole model
  transfer::SourceRegion region(std::int32_t pid) const { return {pid, parts_}; }
  std::span<const transfer::RegionPart> parts() const { return parts_; }

  int copies(int head) const { return holders_[static_cast<std::size_t>(head)].count; }
  int copies_max() const { return copies_max_; }
  std::uint64_t& word(int copy, int layer, BlockId block, int head, device::KvKind kind, int token_in_block) {
    const auto at = static_cast<std::size_t>(holders_[static_cast<std::size_t>(head)].first + copy);
    const transfer::RegionPart& part = parts_[at];
    return memory_[at][static_cast<std::size_t>(part.view.offset(layer, block, head - part.heads.begin, kind, token_in_block)) / 8];
  }
  // The block that a byte of a part belongs to.
  BlockId block_at(std::int32_t part, std::int64_t offset) const {
    const device::KvView& view = parts_[static_cast<std::size_t>(part)].view;
    return BlockId(static_cast<std::int32_t>(offset % view.layer_stride / view.block_stride));
  }

  transfer::TargetBytes bytes() const { return bytes_; }
  transfer::SourceBytes const_bytes() const { return const_bytes_; }

 private:
  struct Holders {  // parts that hold a head: neighbours
    int first = 0, count = 0;
  };
  const device::KvSpec spec_;
  std::vector<transfer::RegionPart> parts_;
  std::vector<Holders> holders_;  // by head
  int copies_max_ = 1;
  std::vector<std::vector<std::uint64_t>> memory_;  // by part
  std::vector<std::span<std::byte>> bytes_;
  std::vector<std::span<const std::byte>> const_bytes_;
};

// Shared, because on a real machine a mapping outlives the process that made the memory.
using Memory = std::shared_ptr<Pool>;

}  // namespace baton::sim
