#include "device/cpu/attention_kernel.h"
#include "device/cpu/row_kernels.h"

namespace baton::device::cpu {

const RowKernels& row_kernels(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return kRowKernelsAvx512;
    case Isa::kAvx2:
      return kRowKernelsAvx2;
    case Isa::kScalar:
      break;
  }
  return kRowKernelsScalar;
}

const AttentionKernels& attention_kernels(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return kAttentionAvx512;
    case Isa::kAvx2:
      return kAttentionAvx2;
    case Isa::kScalar:
      break;
  }
  return kAttentionScalar;
}

}  // namespace baton::device::cpu
