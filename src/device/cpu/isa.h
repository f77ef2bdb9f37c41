#pragma once
// Which instruction sets this machine has; each kernel file is compiled for one of them and chosen here at run time.

#include <optional>
#include <string_view>

namespace baton::device::cpu {

enum class Isa : unsigned char {
  kScalar,  // portable C++
  kAvx2,    // AVX2, FMA, F16C
  kAvx512,  // AVX-512 F, BW, DQ, VL, VNNI and BF16 (Zen 4, Sapphire Rapids and later)
};
std::string_view to_string(Isa isa);  // "scalar", "avx2", "avx512-bf16-vnni"
std::optional<Isa> isa_from_string(std::string_view name);
Isa best_isa();  // of this machine

}  // namespace baton::device::cpu
