// Products on AMX tiles and what prepares their operands: the inner loops of tile_conv.cc. Compiled for a processor
// with AMX (amx_kernels.cc) and called only where tiles_usable().
//
// A tile holds 16 rows of 64 bytes. A product adds, to 16 x 16 f32 sums, a tile of 16 rows of 32 bf16 times a tile of
// 16 rows of 16 pairs: row r, column n of that one are the numbers k = 2 r and 2 r + 1 of column n. Sums grow in the
// order of k, one product after the other. Denormal numbers count as zero, as in all of the processor's bf16
// instructions.
#pragma once
#include <cstdint>

namespace sg::cpu::amx {

using Bits = std::uint16_t;  // of a BFloat16
using Index = std::int64_t;

constexpr int kRows = 16;           // of a tile, at most
constexpr int kDepth = 32;          // numbers of one row: the k that one product sums over
constexpr int kWide = 32;           // columns that are computed together: two tiles
constexpr int kTile = 16 * kDepth;  // numbers of a tile

// Whether this build has the code. (Whether the processor has tiles, and the process may use them: cpu::has_amx().)
bool compiled();

// Tiles for `rows` rows of sums, 1 to 16, of the calling thread; release() before other code uses tiles.
void configure(int rows);
void release();

// sums[2 x rows][kWide] = a b. The i-th of `tiles` steps along the inner axis reads its rows of `a` from a + at[i], and
// those of the second tile `second` further; rows are `stride` apart. b: packed, tile after tile, `wide` (1 or 2) at a
// step; with 1 only the first 16 columns are written. The rows in configure() are those of one tile.
void product(const Bits* a, Index stride, Index second, const Index* at, Index tiles, const Bits* b, int wide,
             float* sums);

// Rows of sums (kWide apart) plus `bias` (may be null), rounded to nearest even, relu (keeps NaN) after that, to
// out + where[row].
void finish(const float* sums, Index rows, int columns, const Bits* bias, bool relu, Bits* out, const Index* where);

// c[32][kWide] = the sum over `units` of `tiles` steps each of a b; the steps of a unit are 32 apart in `a`, its rows
// `stride`, its units `a_unit`. b: tiles of the first 16 columns one after the other, those of the others `second`
// further; units are `b_unit` apart. configure(16).
void sum_product(const Bits* a, Index stride, Index a_unit, const Bits* b, Index second, Index b_unit, Index units,
                 Index tiles, float* c);

// Tiles of b from numbers (k, column) at from[k * stride + column], those from `depth` and `columns` on zero; `wide`
// tiles side by side.
void pack(const Bits* from, Index stride, int depth, int columns, int wide, Bits* to);
// The same from numbers at from[column * stride + k].
void pack_transposed(const Bits* from, Index stride, int depth, int columns, int wide, Bits* to);

// The same from rows[k][column], 32 of each, columns from `columns` on zero: columns 0 to 15 to `low`, the others to
// `high`.
void pack_rows(const Bits* const* rows, int columns, Bits* low, Bits* high);

// to[c * pitch + r] = rows[r][c] for 32 rows; c below 32, those from `columns` on zero.
void transpose(const Bits* const* rows, int columns, Bits* to, Index pitch);

// to[c * stride + r] = or += from[r * kWide + c] for r below `rows`, c below `columns`, both at most 32.
void store_transposed(const float* from, int rows, int columns, bool add, float* to, Index stride);

}  // namespace sg::cpu::amx
