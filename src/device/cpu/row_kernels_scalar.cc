#include "device/cpu/simd_scalar.h"
//
#include "device/cpu/row_kernels.inc"

namespace baton::device::cpu {

const RowKernels kRowKernelsScalar = kTable;

}  // namespace baton::device::cpu
