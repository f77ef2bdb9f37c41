#include "device/cpu/isa.h"

namespace baton::device::cpu {

Isa best_isa() { return Isa::kScalar; }

}  // namespace baton::device::cpu
