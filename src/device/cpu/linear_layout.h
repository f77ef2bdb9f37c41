#pragma once
// How the linear layers' weights and activations lie in memory: one layout for every instruction set. LINEAR.md has the why.
//
// Weights: panels of 32 output rows, one after the other; a panel holds all of K in order, so that a pass over the weights reads strictly
// forward. Plain kinds: f32 [K][32], bf16 [ceil(K / 2)][32][2]. Block kinds: a record for each 32 of K,
//   4-bit codes  [4 i][2 groups][16 rows][4 j]  low nibble: k = 4 i + j, high nibble: k = 16 + 4 i + j
//   5, 6 bits    their low four bits as above, then a plane of the fifth bits: uint64 [8 i][2 groups], bit 4 row + j, k = 4 i + j;
//                then one of the sixth
//   8-bit codes  [8 i][2 groups][16 rows][4 j]  k = 4 i + j
//   scales       [32 / run][32 rows] half, then as many minima where the kind has them.
// The K kinds have factors of scales and minima there, in bytes (signed where there are no minima), and before every eighth record the
// other factors: d [32 rows] half, then m. Their products are exact in f32. weight = d * (code - shift), or d * code + m with minima. Rows
// past the last are zeros.
//
// Activations: tiles of T consecutive tokens. For the int8 kernels a record for each 32 of K: int8 [8 i][T][4 j], then f32 s[T], f32 z[T],
// int32 c[2][T]: x = s * q, z = s * sum(q), c[h] = -shift * sum(q over run h). For f32: [K][T], for bf16: [ceil(K / 2)][T][2].

#include <cstddef>
#include <cstdint>

namespace baton::device::cpu {

enum class PackKind : std::uint8_t {
  kU4Half,     // Q4_0
  kU4HalfMin,  // Q4_1
  kU5Half,     // Q5_0
  kU5HalfMin,  // Q5_1
  kU8Half,     // Q8_0
  kU4Super,    // Q4_K
  kU5Super,    // Q5_K
  kU6Super,    // Q6_K
  kF32,
  kBF16,
};

inline constexpr int kPanelRows = 32;
inline constexpr int kBlock = 32;
inline constexpr std::size_t kPlanes = kPanelRows * kBlock / 2;      // where a record has the planes of its fifth and sixth bits
inline constexpr std::size_t kPlaneBytes = kPanelRows * kBlock / 8;  // of one
inline constexpr int kSuperBlocks = 8;                               // records that share the second factors of their scales

struct PackTraits {
  int bits;  // of a stored code, 0 for plain kinds
  int run;   // consecutive weights that share d and m
  int shift;
  bool minima;
  bool super;  // scales are products

  constexpr bool plain() const { return bits == 0; }
  constexpr bool nibbles() const { return bits >= 4 && bits <= 6; }
  constexpr std::size_t code_bytes() const { return static_cast<std::size_t>(kPanelRows) * kBlock * bits / 8; }
  constexpr std::size_t scale_bytes() const { return static_cast<std::size_t>(kBlock / run) * kPanelRows * (super ? 1 : 2); }
  constexpr std::size_t record_bytes() const { return code_bytes() + scale_bytes() * (minima ? 2 : 1); }
  constexpr std::size_t super_bytes() const { return super ? static_cast<std::size_t>(kPanelRows) * (minima ? 4 : 2) : 0; }
};

constexpr PackTraits traits(PackKind kind) {
  switch (kind) {
    case PackKind::kU4Half:
      return {4, 32, 8, false, false};
    case PackKind::kU4HalfMin:
      return {4, 32, 0, true, false};
    case PackKind::kU5Half:
      return {5, 32, 16, false, false};
    case PackKind::kU5HalfMin:
      return {5, 32, 0, true, false};
    case PackKind::kU8Half:
      return {8, 32, 128, false, false};
    case PackKind::kU4Super:
      return {4, 32, 0, true, true};
    case PackKind::kU5Super:
      return {5, 32, 0, true, true};
    case PackKind::kU6Super:
      return {6, 16, 32, false, true};
    case PackKind::kF32:
    case PackKind::kBF16:
      break;
  }
  return {0, 1, 0, false, false};
}

// Bytes of a panel of `k` inputs.
constexpr std::size_t panel_bytes(PackKind kind, std::int64_t k) {
  if (kind == PackKind::kF32) return static_cast<std::size_t>(k) * kPanelRows * 4;
  if (kind == PackKind::kBF16) return static_cast<std::size_t>((k + 1) / 2) * kPanelRows * 4;
  const std::size_t blocks = static_cast<std::size_t>(k / kBlock);
  return blocks * traits(kind).record_bytes() + blocks / kSuperBlocks * traits(kind).super_bytes();
}

// How a kernel wants its activations.
enum class TileKind : std::uint8_t { kInt8, kF32, kBF16 };

inline constexpr std::size_t kInt8BlockBytes = kBlock + 16;  // of one token

// Bytes of one token of `k` inputs in a tile; a tile of T tokens takes T times as many.
constexpr std::size_t tile_token_bytes(TileKind kind, std::int64_t k) {
  if (kind == TileKind::kInt8) return static_cast<std::size_t>(k / kBlock) * kInt8BlockBytes;
  if (kind == TileKind::kF32) return static_cast<std::size_t>(k) * 4;
  return static_cast<std::size_t>((k + 1) / 2) * 4;
}

}  // namespace baton::device::cpu
