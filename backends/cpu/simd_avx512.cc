// The kernels for AVX-512 (F, BW, VL, DQ); an empty file where the build does not compile it for them.
#ifdef __AVX512F__
#define SG_TABLE table_avx512
#define SG_ISA_NAME "avx512"
#define SG_VECTOR_BYTES 64
#define SG_TILE_ROWS 14
#define SG_TILE_VECTORS 2
#include "backends/cpu/simd_kernels.inc"
#endif
