#pragma once
// The inner loops of the linear layers, one table of functions per instruction set (linear_scalar.cc, linear_avx2.cc, linear_avx512.cc).
// Layouts: linear_layout.h. Orders of summation, the same for every tile size: LINEAR.md.

#include <cstddef>
#include <cstdint>

#include "device/cpu/isa.h"
#include "device/cpu/linear_layout.h"

namespace baton::device::cpu {

// One panel of weights times one tile of activations.
struct TileArgs {
  const std::byte* weights = nullptr;  // of the panel
  const std::byte* x = nullptr;        // of the tile
  std::int64_t k = 0;                  // inputs: of blocks for int8, in plain inputs else (bf16: the last may be half a pair)
  int tokens = 0;                      // of the tile, 1 .. max
  int rows = kPanelRows;               // of the panel that exist
  float* out = nullptr;                // out[token * out_stride + row]
  std::int64_t out_stride = 0;
  const float* bias = nullptr;  // kPanelRows of them, or null; added last
  std::int64_t prefetch = 0;    // bytes: fetch what lies so far after the weights into the caches; 0: nothing
  bool resume = false;          // float kernels: `out` holds the sums of the inputs before these
};

struct LinearKernels {
  int int8_tokens, float_tokens;  // the largest tiles
  // Writes the tile of `tokens` rows of x, `stride` floats apart; `shift` and `run` as in the weights' traits.
  void (*int8_activations)(const float* x, std::int64_t stride, int tokens, std::int64_t k, int shift, int run, std::byte* tile);
  void (*f32_activations)(const float* x, std::int64_t stride, int tokens, std::int64_t k, std::byte* tile);
  void (*bf16_activations)(const float* x, std::int64_t stride, int tokens, std::int64_t k, std::byte* tile);
  void (*int8_tile)(PackKind kind, const TileArgs& args);
  void (*f32_tile)(const TileArgs& args);   // weights: an f32 panel
  void (*bf16_tile)(const TileArgs& args);  // weights: a bf16 panel
  // Expands `blocks` records of a panel into an f32 or bf16 panel; exactly what dequantize() gives (rounded to bf16 for the latter).
  void (*expand_f32)(PackKind kind, const std::byte* records, std::int64_t blocks, float* out);
  void (*expand_bf16)(PackKind kind, const std::byte* records, std::int64_t blocks, std::uint16_t* out);
};

const LinearKernels& linear_kernels_scalar();
const LinearKernels& linear_kernels_avx2();
const LinearKernels& linear_kernels_avx512();
// Of the given instruction set, which the machine must have.
const LinearKernels& linear_kernels(Isa isa);

}  // namespace baton::device::cpu
