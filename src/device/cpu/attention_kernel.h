#pragma once
// Attention of a block of query rows over a range of tiles of one KV head's paged context; compiled once for each instruction set.
//
// The numerics, the same for prefill and decode:
//   * the context is cut into tiles of kTileTokens from position 0;
//   * a score is one chain of multiply-adds over the head's dimensions in order, of the query times scale * log2(e) and the key;
//   * within a tile: m = the largest unmasked score, p = 2^(score - m), l = the sum of p (vector lanes over the tokens, then a tree), o =
//   one
//     chain of multiply-adds over the tokens in order for each dimension;
//   * tiles are merged in index order: with M = max(m, m'), o = o * 2^(m - M) + o' * 2^(m' - M), l likewise; the result is o / l.
// Masked tokens lie beyond the end of these chains or have p = 0 exactly, and a tile without unmasked tokens is not merged.

#include <cstddef>
#include <cstdint>

#include "device/cpu/isa.h"
#include "device/types.h"

namespace baton::device::cpu {

constexpr int kTileTokens = 256;  // the unit of the online softmax
constexpr int kPackTokens = 64;   // keys or values unpacked at a time: small enough for L1
constexpr int kQueryRows = 96;    // rows of a block: enough to repay the unpacking, few enough for L2
constexpr int kMaxHeadDim = 256;

// Rows are numbered position by position, the heads of the group innermost: row r is query r / group of the sequence, head r % group.
struct AttentionBlock {
  // Queries: those of row r at q + (r / group) * q_stride + (r % group) * q_head_stride; out likewise.
  const float* q = nullptr;
  long q_stride = 0, q_head_stride = 0;
  float* out = nullptr;
  long out_stride = 0, out_head_stride = 0;
  int group = 1;                   // query heads of the KV head
  int row_begin = 0, row_end = 0;  // at most kQueryRows
  int first_position = 0;          // of the sequence's first query in this step
  float scale = 1;
  // The head's keys and values in block b of the pool: k + table[b] * block_bytes; rows of consecutive tokens token_bytes apart.
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  DType dtype = DType::kBF16;
  int head_dim = 0;
  const std::int32_t* table = nullptr;
  int block_tokens = 0;  // a multiple of 16
  long block_bytes = 0, token_bytes = 0;

  int position(int row) const { return first_position + row / group; }
  // Tiles that the block's last row sees.
  int tiles() const { return position(row_end - 1) / kTileTokens + 1; }
};

// What one member needs, and what a split context needs for each (block, tile).
struct alignas(64) AttentionScratch {
  float q[kQueryRows * kMaxHeadDim];        // [row][dim], scaled
  float packed[kPackTokens * kMaxHeadDim];  // keys [dim][token], then values [token][dim]
  float p[kQueryRows * kTileTokens];        // scores, then weights
  float o_tile[kQueryRows * kMaxHeadDim];
  float o[kQueryRows * kMaxHeadDim];
  float m_tile[kQueryRows], l_tile[kQueryRows], m[kQueryRows], l[kQueryRows];
};
// A tile's result for later merging: m, l of each row, then o [row][dim].
inline std::size_t partial_floats(int rows, int head_dim) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(head_dim + 2);
}

struct AttentionKernels {
  // All tiles of the block, merged and written to out.
  void (*whole)(const AttentionBlock& block, AttentionScratch& scratch);
  // One tile; then all of them, merged to the same bits.
  void (*tile)(const AttentionBlock& block, int tile, AttentionScratch& scratch, float* partial);
  void (*merge)(const AttentionBlock& block, const float* partials, AttentionScratch& scratch);
};

const AttentionKernels& attention_kernels(Isa isa);
extern const AttentionKernels kAttentionScalar, kAttentionAvx2, kAttentionAvx512;

}  // namespace baton::device::cpu
