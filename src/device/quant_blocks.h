#pragma once
// What a block of GGUF's quantised formats holds, taken apart: unsigned codes, and a scale and a minimum for each run of 16 or 32 codes.
// dequantize() and the packers of the CPU's linear layers both start from here.

#include <cstddef>
#include <cstdint>

#include "device/types.h"

namespace baton::device {

// weight = d * (code - shift)   without minima,   d * code + m   with them. In f32 each is exact, but for the last addition of d * code +
// m.
struct CodeTraits {
  int bits;     // of the codes: 4, 5, 6 or 8
  int run;      // consecutive weights that share d and m: 16 or 32
  int shift;    // subtracted from the codes; 0 with minima
  bool minima;  // has m
};
// Of a block format.
CodeTraits code_traits(WeightFormat format);

struct BlockCodes {
  std::uint8_t q[256];
  float d[16], m[16];  // one per run
  // The K kinds' factors: d = super_d * scale, m = super_m * minimum, exact in f32.
  float super_d, super_m;
  std::int16_t scale[16], minimum[16];
};
// Takes one block apart; fills block_weights(format) codes.
void decode_block(WeightFormat format, const std::byte* block, BlockCodes& out);

inline bool is_block_format(WeightFormat format) {
  return format != WeightFormat::kF32 && format != WeightFormat::kF16 && format != WeightFormat::kBF16;
}

}  // namespace baton::device
