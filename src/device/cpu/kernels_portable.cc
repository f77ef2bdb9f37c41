#include "device/cpu/attention_kernel.h"
#include "device/cpu/row_kernels.h"

namespace baton::device::cpu {

const RowKernels& row_kernels(Isa) { return kRowKernelsScalar; }
const AttentionKernels& attention_kernels(Isa) { return kAttentionScalar; }

}  // namespace baton::device::cpu
