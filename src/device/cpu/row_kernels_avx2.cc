#include "device/cpu/simd_avx2.h"
//
#include "device/cpu/row_kernels.inc"

namespace baton::device::cpu {

const RowKernels kRowKernelsAvx2 = kTable;

}  // namespace baton::device::cpu
