#include "device/cpu/linear_kernels.h"

#include "base/status.h"

namespace baton::device::cpu {

const LinearKernels& linear_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return linear_kernels_avx512();
  if (isa == Isa::kAvx2) return linear_kernels_avx2();
#endif
  BATON_CHECK_MSG(isa == Isa::kScalar, "no linear kernels for this instruction set");
  return linear_kernels_scalar();
}

}  // namespace baton::device::cpu
