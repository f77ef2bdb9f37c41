#pragma once
// KV pools for tests: host memory behind a memfd in any layout, with contents that say where they belong.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "base/rng.h"
#include "device/kv_view.h"
#include "transfer/messages.h"
#include "transfer/shm/copy_digest.h"
#include "transfer/shm/shm_fabric.h"

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

// Shards of a model's heads as check_region() wants them, but for that in any way: uneven, overlapping, repeated.
inline std::vector<Range> random_shards(Rng& rng, int heads, int ranks) {
  std::vector<Range> shards;
  Range last{0, 0};
  for (int r = 0; r < ranks; ++r) {
    Range next;
    next.begin = last.begin + static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(last.end - last.begin) + 1));
    if (rng.below(3) != 0) next.begin = last.end;
    next.begin = std::min(next.begin, heads - 1);
    const std::int32_t least = std::max(next.begin + 1, last.end);
    next.end = r + 1 == ranks ? heads : least + static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(heads - least) + 1));
    shards.push_back(last = next);
  }
  return shards;
}

// The pools of a worker's ranks.
class TestRanks {
 public:
  // `spec` of the whole model; each rank chooses its own layout.
  TestRanks(Rng& rng, const device::KvSpec& spec, const std::vector<Range>& shards) {
    for (const Range heads : shards) {
      device::KvSpec own = spec;
      own.kv_heads = heads.size();
      const Layout layout = random_layout(rng, own);
      pools_.push_back(std::make_unique<TestPool>(layout.view, layout.bytes));
      region_.parts.push_back({pools_.back()->shared_region()->fd, pools_.back()->shared_region()->bytes, layout.view, heads});
      bytes_.push_back({pools_.back()->shared_region()->base, pools_.back()->shared_region()->bytes});
    }
    region_.pid = ::getpid();
  }
  std::size_t size() const { return pools_.size(); }
  const TestPool& pool(std::size_t rank) const { return *pools_[rank]; }
  const device::KvSpec& spec() const { return region_.spec(); }
  const SourceRegion& region() const { return region_; }
  std::span<const RegionPart> parts() const { return region_.parts; }
  TargetBytes bytes() const { return bytes_; }
  std::vector<std::span<const std::byte>> const_bytes() const { return {bytes_.begin(), bytes_.end()}; }
  std::vector<RankPool> pools() const {
    std::vector<RankPool> out;
    for (std::size_t r = 0; r < pools_.size(); ++r) out.push_back({pools_[r].get(), region_.parts[r].heads});
    return out;
  }

 private:
  std::vector<std::unique_ptr<TestPool>> pools_;
  SourceRegion region_;
  std::vector<std::span<std::byte>> bytes_;
};

// Calls `row(where, layer, head, kind, token)` for every row of a sequence that lies in `blocks`, of every rank that holds it.
template <class F>
void each_row(const TestRanks& ranks, const std::vector<BlockId>& blocks, int layer, Range tokens, F row) {
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    const Range heads = ranks.parts()[r].heads;
    const int bt = ranks.spec().block_tokens;
    for (std::int32_t t = tokens.begin; t < tokens.end; ++t) {
      for (int h = heads.begin; h < heads.end; ++h) {
        for (auto kind : {device::KvKind::kKey, device::KvKind::kValue}) {
          row(ranks.pool(r).row(layer, blocks[static_cast<std::size_t>(t / bt)], h - heads.begin, kind, t % bt), h, kind, t);
        }
      }
    }
  }
}

// Writes (or compares) tokens of a sequence that lies in `blocks`, on every rank.
inline void write_rows(const TestRanks& ranks, const std::vector<BlockId>& blocks, std::uint64_t sequence, int layer, Range tokens) {
  each_row(ranks, blocks, layer, tokens, [&](std::byte* at, int head, device::KvKind kind, std::int32_t token) {
    const auto row = logical_row(sequence, layer, head, kind, token, ranks.spec().row_bytes());
    std::memcpy(at, row.data(), row.size());
  });
}
inline bool rows_equal(const TestRanks& ranks, const std::vector<BlockId>& blocks, std::uint64_t sequence, int layer, Range tokens) {
  bool equal = true;
  each_row(ranks, blocks, layer, tokens, [&](const std::byte* at, int head, device::KvKind kind, std::int32_t token) {
    const auto row = logical_row(sequence, layer, head, kind, token, ranks.spec().row_bytes());
    equal = equal && std::memcmp(at, row.data(), row.size()) == 0;
  });
  return equal;
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
