#pragma once
// KV pools for tests: host memory behind a memfd in any layout, with contents that say where they belong.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "base/rng.h"
#include "device/kv_view.h"
#include "transfer/messages.h"

namespace baton::transfer::testing {

class TestPool final : public device::KvPool {
 public:
  explicit TestPool(const device::KvView& view, std::size_t bytes) : view_(view) {
    region_.bytes = (bytes + 4095) / 4096 * 4096;
    region_.fd = ::memfd_create("test-kv", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    BATON_CHECK(region_.fd >= 0 && ::ftruncate(region_.fd, static_cast<off_t>(region_.bytes)) == 0);
    BATON_CHECK(::fcntl(region_.fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    void* p = ::mmap(nullptr, region_.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region_.fd, 0);
    BATON_CHECK(p != MAP_FAILED);
    region_.base = static_cast<std::byte*>(p);
  }
  ~TestPool() override {
    ::munmap(region_.base, region_.bytes);
    ::close(region_.fd);
  }
  const device::KvView& view() const override { return view_; }
  const device::SharedRegion* shared_region() const override { return &region_; }
  std::byte* row(int layer, BlockId block, int head, device::KvKind kind, int token_in_block) const {
    return region_.base + view_.offset(layer, block, head, kind, token_in_block);
  }

 private:
  device::KvView view_;
  device::SharedRegion region_;
};

// The five dimensions in a random order of strides, with random gaps: any layout a device might choose.
struct Layout {
  device::KvView view;
  std::size_t bytes = 0;
};
inline Layout random_layout(Rng& rng, const device::KvSpec& spec) {
  Layout out;
  out.view.spec = spec;
  struct Dim {
    std::int64_t device::KvView::* stride;
    std::int64_t count;
  };
  std::vector<Dim> dims = {{&device::KvView::layer_stride, spec.layers},
                           {&device::KvView::block_stride, spec.blocks},
                           {&device::KvView::head_stride, spec.kv_heads},
                           {&device::KvView::kind_stride, 2},
                           {&device::KvView::token_stride, spec.block_tokens}};
  for (std::size_t i = dims.size(); i > 1; --i) std::swap(dims[i - 1], dims[rng.below(i)]);
  std::int64_t stride = static_cast<std::int64_t>(spec.row_bytes());
  for (const Dim& d : dims) {
    if (rng.below(3) == 0) stride += static_cast<std::int64_t>(rng.below(5)) * 2;
    out.view.*d.stride = stride;
    stride *= d.count;
  }
  out.bytes = static_cast<std::size_t>(stride);
  return out;
}

// The bytes of one logical row of one sequence.
inline std::vector<std::byte> logical_row(std::uint64_t sequence, int layer, int head, device::KvKind kind, std::int32_t token,
                                          std::size_t bytes) {
  Rng rng(sequence, (static_cast<std::uint64_t>(layer) << 48) ^ (static_cast<std::uint64_t>(head) << 40) ^
                        (static_cast<std::uint64_t>(kind) << 36) ^ static_cast<std::uint64_t>(token));
  std::vector<std::byte> row(bytes);
  for (std::size_t i = 0; i < bytes; i += 8) {
    const std::uint64_t v = rng.next_u64();
    std::memcpy(row.data() + i, &v, std::min<std::size_t>(8, bytes - i));
  }
  return row;
}

// Writes (or compares) tokens of a sequence that lies in `blocks`; `heads` of the model are the pool's.
inline void write_rows(const TestPool& pool, Range heads, const std::vector<BlockId>& blocks, std::uint64_t sequence, int layer,
                       Range tokens) {
  const auto& spec = pool.view().spec;
  for (std::int32_t t = tokens.begin; t < tokens.end; ++t) {
    for (int h = heads.begin; h < heads.end; ++h) {
      for (auto kind : {device::KvKind::kKey, device::KvKind::kValue}) {
        const auto row = logical_row(sequence, layer, h, kind, t, spec.row_bytes());
        std::memcpy(pool.row(layer, blocks[static_cast<std::size_t>(t / spec.block_tokens)], h - heads.begin, kind, t % spec.block_tokens),
                    row.data(), row.size());
      }
    }
  }
}
inline bool rows_equal(const TestPool& pool, Range heads, const std::vector<BlockId>& blocks, std::uint64_t sequence, int layer,
                       Range tokens) {
  const auto& spec = pool.view().spec;
  for (std::int32_t t = tokens.begin; t < tokens.end; ++t) {
    for (int h = heads.begin; h < heads.end; ++h) {
      for (auto kind : {device::KvKind::kKey, device::KvKind::kValue}) {
        const auto row = logical_row(sequence, layer, h, kind, t, spec.row_bytes());
        const std::byte* have =
            pool.row(layer, blocks[static_cast<std::size_t>(t / spec.block_tokens)], h - heads.begin, kind, t % spec.block_tokens);
        if (std::memcmp(have, row.data(), row.size()) != 0) return false;
      }
    }
  }
  return true;
}

// `count` different blocks of a pool, in random order.
inline std::vector<BlockId> random_blocks(Rng& rng, std::int32_t pool_blocks, std::size_t count) {
  std::vector<std::int32_t> all(static_cast<std::size_t>(pool_blocks));
  std::iota(all.begin(), all.end(), 0);
  for (std::size_t i = all.size(); i > 1; --i) std::swap(all[i - 1], all[rng.below(i)]);
  std::vector<BlockId> out;
  for (std::size_t i = 0; i < count; ++i) out.push_back(BlockId(all[i]));
  return out;
}

}  // namespace baton::transfer::testing
