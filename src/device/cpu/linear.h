#pragma once
// Linear layers on a CPU: out = x * W^T + bias with f32 activations, in three arithmetics (ComputeType).

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/team.h"
#include "device/cpu/isa.h"
#include "device/cpu/split.h"
#include "device/cpu/weight_arena.h"
#include "device/ops.h"

namespace baton::device::cpu {

class CpuLinear : public Linear {
 public:
  // Bytes of work space that run() needs for so many tokens.
  virtual std::size_t scratch_bytes(std::int64_t tokens) const = 0;
  // x [tokens, in] and out [tokens, out], rows `stride` floats apart. Bits of a row do not depend on `tokens`, its index or the team.
  virtual void run(Team& team, const float* x, std::int64_t x_stride, std::int64_t tokens, float* out, std::int64_t out_stride,
                   std::byte* scratch) const = 0;
};

// Stacks `parts` (all with the same inputs; formats may differ) into one layer and packs them. `bias` is empty or has one number for each
// output. kInt8 is for block formats; F32, F16 and BF16 parts then compute as kBF16 where the instruction set has it, else as kF32. kBF16
// and kF32 expand block formats piece by piece as they multiply: they stay quantised in memory. Layers made with the same arena lie one
// after the other in memory, in the order in which a step should read them; null gives the layer memory of its own. kInvalidArgument names
// the part that does not fit; kResourceExhausted: no memory.
Result<std::unique_ptr<CpuLinear>> make_linear(Isa isa, std::span<const HostWeight> parts, std::span<const float> bias, ComputeType compute,
                                               std::shared_ptr<WeightArena> arena = nullptr);

// Simple-loop upper bounds on the calling thread's core and the team's others together; for MachineLimits.
double measure_read_bandwidth(Team& team);
double measure_f32_flops(Isa isa, Team& team);
double measure_bf16_flops(Isa isa, Team& team);
double measure_int8_ops(Isa isa, Team& team);

}  // namespace baton::device::cpu
