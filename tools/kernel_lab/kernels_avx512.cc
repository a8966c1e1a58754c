#define SG_LAB_ISA "avx512"
#include "tools/kernel_lab/kernels.inc"

const Kernels& kernels_avx512() { return kTable; }

}  // namespace sg::lab
