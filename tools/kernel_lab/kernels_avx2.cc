#define SG_LAB_ISA "avx2"
#include "tools/kernel_lab/kernels.inc"

const Kernels& kernels_avx2() { return kTable; }

}  // namespace sg::lab
