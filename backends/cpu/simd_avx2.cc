// The kernels for AVX2 and FMA; an empty file where the build does not compile it for them.
#ifdef __AVX2__
#define SG_TABLE table_avx2
#define SG_ISA_NAME "avx2"
#define SG_VECTOR_BYTES 32
#define SG_TILE_ROWS 6
#define SG_TILE_VECTORS 2
#include "backends/cpu/simd_kernels.inc"
#endif
