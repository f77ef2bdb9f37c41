#pragma once
// The KV pool of one rank and how its bytes lie. Block size, strides and order are the device's choice; everyone else addresses logically,
// by (layer, kv head, token), so that any layout can feed any other.

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/ids.h"
#include "device/types.h"

namespace baton::device {

enum class KvKind : std::uint8_t { kKey, kValue };

struct KvSpec {
  int layers = 0;
  int kv_heads = 0;  // of this rank
  int head_dim = 0;
  DType dtype = DType::kBF16;
  int block_tokens = 0;  // 0: the device's own
  std::int32_t blocks = 0;

  std::size_t row_bytes() const { return static_cast<std::size_t>(head_dim) * size_of(dtype); }  // one head, one token, K or V
  std::size_t bytes_per_token() const { return row_bytes() * 2u * static_cast<std::size_t>(layers) * static_cast<std::size_t>(kv_heads); }
  std::size_t bytes() const { return bytes_per_token() * static_cast<std::size_t>(block_tokens) * static_cast<std::size_t>(blocks); }
};

// Byte addressing. Within (layer, block, head, kind) the rows of consecutive tokens are `token_stride` apart; where that equals row_bytes
// they form one contiguous run, which is what a hand-off wants to copy.
struct KvView {
  KvSpec spec;
  std::int64_t layer_stride = 0;
  std::int64_t block_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t kind_stride = 0;
  std::int64_t token_stride = 0;

  std::int64_t offset(int layer, BlockId block, int head, KvKind kind, int token_in_block) const {
    return layer * layer_stride + block.value * block_stride + head * head_stride + static_cast<int>(kind) * kind_stride +
           token_in_block * token_stride;
  }
  // The order that a host-memory pool uses: [layer][block][head][K, V][token][dim].
  static KvView dense(const KvSpec& spec);
};

// Memory that another process on this host may map: /proc/<pid>/fd/<fd>, which dies with its owner and leaves nothing behind.
struct SharedRegion {
  int fd = -1;
  std::byte* base = nullptr;
  std::size_t bytes = 0;
};

class KvPool {
 public:
  virtual ~KvPool() = default;
  virtual const KvView& view() const = 0;
  // The pool itself as shareable host memory, or nullptr where it is device memory (a hand-off then goes through staging or p2p.h).
  virtual const SharedRegion* shared_region() const = 0;
};

}  // namespace baton::device
