#include "device/cpu/isa.h"

namespace baton::device::cpu {

std::string_view to_string(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512-bf16-vnni";
  }
  return "?";
}

std::optional<Isa> isa_from_string(std::string_view name) {
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512})
    if (name == to_string(isa)) return isa;
  return std::nullopt;
}

}  // namespace baton::device::cpu
