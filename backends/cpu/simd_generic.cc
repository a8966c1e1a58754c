// The kernels for any processor: 16-byte vectors, which the compiler maps to what the target has (SSE2, NEON).
#define SG_TABLE table_generic
#define SG_ISA_NAME "generic"
#define SG_VECTOR_BYTES 16
#define SG_TILE_ROWS 6
#define SG_TILE_VECTORS 2
#include "backends/cpu/simd_kernels.inc"
