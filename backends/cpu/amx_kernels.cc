// Compiled with AMX and AVX-512 switched on: nothing here may be an inline function that other files have too.
#include "backends/cpu/amx_kernels.h"

#ifdef SG_AMX
#include <immintrin.h>

namespace sg::cpu::amx {
namespace {

struct TileConfig {
  std::uint8_t palette, start_row, reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// Sums in tiles 0 to 3, one tile of a (4) and one of b (5): a of the first two sums is loaded twice. At times a loop
// over all eight tiles waits for itself, as if there were no registers to rename them to: 4 products with their loads
// then take 4.2 times as long as without, with six tiles 2.5 times. At other times both take what the products take.
constexpr int kBytes = 64;  // of a row
constexpr int kLast = 5;

inline __mmask32 first(int n) { return n >= 32 ? ~__mmask32{0} : (__mmask32{1} << n) - 1; }

inline void transpose_16x16(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  // Each 128-bit lane of r[4 i + j] then has column 4 lane + j of rows 4 i to 4 i + 3.
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), b = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd),
                  c = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88),
                  d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
    t[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
    t[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
    t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// Numbers 0 to 15 (and 16 to 31) of two rows in turns.
inline __m512i pairs_low(__m512i a, __m512i b) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(b));
  return _mm512_or_si512(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(a)), _mm512_slli_epi32(wide, 16));
}
inline __m512i pairs_high(__m512i a, __m512i b) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(b, 1));
  return _mm512_or_si512(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(a, 1)), _mm512_slli_epi32(wide, 16));
}

}  // namespace

bool compiled() { return true; }

void configure(int rows) {
  TileConfig c{};
  c.palette = 1;
  for (int t = 0; t <= kLast; ++t) {
    c.row_bytes[t] = kBytes;
    c.rows[t] = static_cast<std::uint8_t>(t == kLast ? kRows : rows);
  }
  // The intrinsic names 8 bytes of it only.
  __asm__ volatile("" : : "r"(&c) : "memory");
  _tile_loadconfig(&c);
}

void release() { _tile_release(); }

void product(const Bits* a, Index stride, Index second, const Index* at, Index tiles, const Bits* b, int wide,
             float* sums) {
  const Index bytes = stride * Index{sizeof(Bits)};
  _tile_zero(0);
  _tile_zero(2);
  if (wide == 2) {
    _tile_zero(1);
    _tile_zero(3);
    for (Index i = 0; i < tiles; ++i, b += 2 * kTile) {
      const Bits* rows = a + at[i];
      _tile_loadd(5, b, kBytes);
      _tile_loadd(4, rows, bytes);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(4, rows + second, bytes);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(5, b + kTile, kBytes);
      _tile_dpbf16ps(3, 4, 5);
      _tile_loadd(4, rows, bytes);
      _tile_dpbf16ps(1, 4, 5);
    }
  } else {
    for (Index i = 0; i < tiles; ++i, b += kTile) {
      const Bits* rows = a + at[i];
      _tile_loadd(5, b, kBytes);
      _tile_loadd(4, rows, bytes);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(4, rows + second, bytes);
      _tile_dpbf16ps(2, 4, 5);
    }
  }
  constexpr Index kSums = kWide * sizeof(float);
  float* lower = sums + kRows * kWide;
  _tile_stored(0, sums, kSums);
  _tile_stored(2, lower, kSums);
  if (wide == 2) {
    _tile_stored(1, sums + 16, kSums);
    _tile_stored(3, lower + 16, kSums);
  }
}

void finish(const float* sums, Index rows, int columns, const Bits* bias, bool relu, Bits* out, const Index* where) {
  const __mmask32 mask = first(columns);
  const auto low = static_cast<__mmask16>(mask), high = static_cast<__mmask16>(mask >> 16);
  __m512 add0 = _mm512_setzero_ps(), add1 = add0;
  if (bias != nullptr) {
    const auto widen = [](__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); };
    add0 = widen(_mm256_maskz_loadu_epi16(low, bias)), add1 = widen(_mm256_maskz_loadu_epi16(high, bias + 16));
  }
  const __m512i minus_zero = _mm512_set1_epi16(static_cast<short>(0x8000)),
                minus_infinity = _mm512_set1_epi16(static_cast<short>(0xff80));
  for (Index r = 0; r < rows; ++r) {
    __m512 s0 = _mm512_maskz_loadu_ps(low, sums + r * kWide), s1 = _mm512_maskz_loadu_ps(high, sums + r * kWide + 16);
    if (bias != nullptr) s0 = _mm512_add_ps(s0, add0), s1 = _mm512_add_ps(s1, add1);
    auto rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(s1, s0));
    if (relu) {
      // Below 0, but no NaN.
      const __mmask32 below =
          _mm512_cmpgt_epu16_mask(rounded, minus_zero) & _mm512_cmple_epu16_mask(rounded, minus_infinity);
      rounded = _mm512_maskz_mov_epi16(~below, rounded);
    }
    _mm512_mask_storeu_epi16(out + where[r], mask, rounded);
  }
}

void sum_product(const Bits* a, Index stride, Index a_unit, const Bits* b, Index second, Index b_unit, Index units,
                 Index tiles, float* c) {
  const Index bytes = stride * Index{sizeof(Bits)};
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (Index u = 0; u < units; ++u, a += a_unit, b += b_unit) {
    const Bits *rows = a, *pairs = b;
    for (Index i = 0; i < tiles; ++i, rows += kDepth, pairs += kTile) {
      _tile_loadd(5, pairs, kBytes);
      _tile_loadd(4, rows, bytes);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(4, rows + kRows * stride, bytes);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(5, pairs + second, kBytes);
      _tile_dpbf16ps(3, 4, 5);
      _tile_loadd(4, rows, bytes);
      _tile_dpbf16ps(1, 4, 5);
    }
  }
  constexpr Index kSums = kWide * sizeof(float);
  _tile_stored(0, c, kSums);
  _tile_stored(1, c + 16, kSums);
  _tile_stored(2, c + kRows * kWide, kSums);
  _tile_stored(3, c + kRows * kWide + 16, kSums);
}

void pack(const Bits* from, Index stride, int depth, int columns, int wide, Bits* to) {
  const __mmask32 mask = first(columns);
  for (int r = 0; r < 16; ++r) {
    const int k = 2 * r;
    const __m512i a = k < depth ? _mm512_maskz_loadu_epi16(mask, from + k * stride) : _mm512_setzero_si512(),
                  b = k + 1 < depth ? _mm512_maskz_loadu_epi16(mask, from + (k + 1) * stride) : _mm512_setzero_si512();
    _mm512_storeu_si512(to + r * kDepth, pairs_low(a, b));
    if (wide == 2) _mm512_storeu_si512(to + kTile + r * kDepth, pairs_high(a, b));
  }
}

void pack_transposed(const Bits* from, Index stride, int depth, int columns, int wide, Bits* to) {
  const __mmask32 mask = first(depth);
  for (int t = 0; t < wide; ++t, to += kTile) {
    __m512i r[16];
    for (int i = 0; i < 16; ++i) {
      const int n = 16 * t + i;
      r[i] = n < columns ? _mm512_maskz_loadu_epi16(mask, from + n * stride) : _mm512_setzero_si512();
    }
    transpose_16x16(r);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * kDepth, r[i]);
  }
}

void pack_rows(const Bits* const* rows, int columns, Bits* low, Bits* high) {
  const __mmask32 mask = first(columns);
  for (int r = 0; r < 16; ++r) {
    const __m512i a = _mm512_maskz_loadu_epi16(mask, rows[2 * r]), b = _mm512_maskz_loadu_epi16(mask, rows[2 * r + 1]);
    _mm512_storeu_si512(low + r * kDepth, pairs_low(a, b));
    _mm512_storeu_si512(high + r * kDepth, pairs_high(a, b));
  }
}

void transpose(const Bits* const* rows, int columns, Bits* to, Index pitch) {
  const __mmask32 mask = first(columns);
  __m512i low[16], high[16];
  for (int i = 0; i < 16; ++i) {
    const __m512i a = _mm512_maskz_loadu_epi16(mask, rows[2 * i]), b = _mm512_maskz_loadu_epi16(mask, rows[2 * i + 1]);
    low[i] = pairs_low(a, b), high[i] = pairs_high(a, b);
  }
  transpose_16x16(low);
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * pitch, low[i]);
  transpose_16x16(high);
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + (16 + i) * pitch, high[i]);
}

void store_transposed(const float* from, int rows, int columns, bool add, float* to, Index stride) {
  for (int c = 0; c < columns; c += 16)
    for (int r = 0; r < rows; r += 16) {
      __m512i t[16];
      for (int i = 0; i < 16; ++i) t[i] = _mm512_loadu_si512(from + (r + i) * kWide + c);
      transpose_16x16(t);
      const auto mask = static_cast<__mmask16>(first(rows - r));
      for (int i = 0; i < 16 && c + i < columns; ++i) {
        float* out = to + (c + i) * stride + r;
        __m512 v = _mm512_castsi512_ps(t[i]);
        if (add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), v);
        _mm512_mask_storeu_ps(out, mask, v);
      }
    }
}

}  // namespace sg::cpu::amx

#else

namespace sg::cpu::amx {
bool compiled() { return false; }
void configure(int) {}
void release() {}
void product(const Bits*, Index, Index, const Index*, Index, const Bits*, int, float*) {}
void finish(const float*, Index, int, const Bits*, bool, Bits*, const Index*) {}
void sum_product(const Bits*, Index, Index, const Bits*, Index, Index, Index, Index, float*) {}
void pack(const Bits*, Index, int, int, int, Bits*) {}
void pack_transposed(const Bits*, Index, int, int, int, Bits*) {}
void pack_rows(const Bits* const*, int, Bits*, Bits*) {}
void transpose(const Bits* const*, int, Bits*, Index) {}
void store_transposed(const float*, int, int, bool, float*, Index) {}
}  // namespace sg::cpu::amx

#endif
