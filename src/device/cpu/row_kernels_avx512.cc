#include "device/cpu/simd_avx512.h"
//
#include "device/cpu/row_kernels.inc"

namespace baton::device::cpu {

const RowKernels kRowKernelsAvx512 = kTable;

}  // namespace baton::device::cpu
