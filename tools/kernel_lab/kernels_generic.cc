#define SG_LAB_ISA "generic"
#include "tools/kernel_lab/kernels.inc"

const Kernels& kernels_generic() { return kTable; }

}  // namespace sg::lab
