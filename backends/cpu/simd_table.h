// The inner loops of the cpu kernels behind function pointers: the same source (simd_*.inc) is compiled once per
// instruction set, and simd() gives the table that was chosen at run time.
//
// This header is seen by translation units compiled for AVX-512: it includes nothing whose inline functions the linker
// could pick for the rest of the program. Loops are serial; callers cut work into pieces that do not depend on the
// number of threads. dst may be exactly one of the sources of the same element type.
#pragma once
#include <cstdint>

namespace sg::simd {

using Index = std::int64_t;

enum class Unary : int {
  neg,
  abs,
  exp,
  log,
  sqrt,
  rsqrt,
  square,
  sin,
  cos,
  acos,
  erf,
  tanh,
  sigmoid,
  softplus,
  silu,
  relu,
  gelu,
  leaky_relu,  // p: slope
  clamp,       // p: lo, q: hi
  round,
  floor,
  sign,
  count
};
enum class Binary : int { add, sub, mul, div, pow, minimum, maximum, relu_grad, count };
enum class Compare : int { equal, not_equal, less, less_equal, greater, greater_equal, count };

constexpr int kUnaryCount = static_cast<int>(Unary::count);
constexpr int kBinaryCount = static_cast<int>(Binary::count);
constexpr int kCompareCount = static_cast<int>(Compare::count);
constexpr int kOperandModes = 3;  // of (a, b) along a row: 0 both vectors, 1 b is one number, 2 a is one number
constexpr int kWhereModes = 8;    // bit i: operand i of (condition, a, b) is one number

// Two ops in one pass, t = a first b and then t second c, where second may have its operands the other way round.
enum class First : int { add, sub, mul, count };
enum class Second : int { add, sub, sub_from, mul, count };  // t + c, t - c, c - t, t * c
constexpr int kPairCount = static_cast<int>(First::count) * static_cast<int>(Second::count);
constexpr int pair_code(First f, Second s) {
  return static_cast<int>(f) * static_cast<int>(Second::count) + static_cast<int>(s);
}
constexpr int kPairModes = 4;  // bit 0: b is one number along a row, bit 1: c is; a is not

// y[0..n) = f(x[0..n); p, q)
template <class T>
using UnaryFn = void (*)(const T* x, T* y, Index n, double p, double q);
// y (rows, cols) dense; row r of an operand starts at its pointer + r * its row stride.
template <class T, class R>
using BinaryFn = void (*)(const T* a, Index a_row, const T* b, Index b_row, R* y, Index rows, Index cols);
template <class T>
using WhereFn = void (*)(const std::int32_t* c, Index c_row, const T* a, Index a_row, const T* b, Index b_row, T* y,
                         Index rows, Index cols);
template <class T>
using PairFn = void (*)(const T* a, Index a_row, const T* b, Index b_row, const T* c, Index c_row, T* y, Index rows,
                        Index cols);
// a b + c d, or a b - c d.
template <class T>
using TwoProductsFn = void (*)(const T* a, Index a_row, const T* b, Index b_row, const T* c, Index c_row, const T* d,
                               Index d_row, T* y, Index rows, Index cols);

template <class T>
struct Sum {
  using type = double;
};
template <>
struct Sum<std::int32_t> {
  using type = std::int64_t;
};
template <class T>
using SumOf = typename Sum<T>::type;

// What every element type has. A null pointer: the op is not defined for the type.
template <class T>
struct Common {
  UnaryFn<T> unary[kUnaryCount];
  BinaryFn<T, T> binary[kBinaryCount][kOperandModes];
  BinaryFn<T, std::int32_t> compare[kCompareCount][kOperandModes];
  WhereFn<T> where[kWhereModes];
  PairFn<T> pair[kPairCount][kPairModes];
  TwoProductsFn<T> two_products[2][kPairModes];  // their sum, their difference; bit 0: b is one number, bit 1: d is
  // x: rows of `cols` elements that start ld apart. f32 is summed in lanes over short blocks, blocks in double.
  void (*sum_rows)(const T* x, Index rows, Index ld, Index cols, SumOf<T>* acc);  // acc[r] += sum of row r
  // y[r] = sum of row r of a, of a * b; rows of b lie b_row apart.
  void (*row_sums)(const T* a, Index rows, Index cols, T* y);
  void (*row_products)(const T* a, Index a_row, const T* b, Index b_row, Index rows, Index cols, T* y);
  void (*sum_cols)(const T* x, Index rows, Index ld, Index cols, SumOf<T>* acc);  // acc[c] += sum of column c
  // The same for max and min, which give NaN where a NaN takes part.
  void (*max_rows)(const T* x, Index rows, Index ld, Index cols, T* acc);
  void (*max_cols)(const T* x, Index rows, Index ld, Index cols, T* acc);
  void (*min_rows)(const T* x, Index rows, Index ld, Index cols, T* acc);
  void (*min_cols)(const T* x, Index rows, Index ld, Index cols, T* acc);
  // Index of each row's extremum (cols >= 1), ties to the lowest, NaN only where there is no number.
  void (*argmax_rows)(const T* x, Index rows, Index cols, std::int32_t* out);
  void (*argmin_rows)(const T* x, Index rows, Index cols, std::int32_t* out);
};

// What real types have.
template <class T>
struct Real {
  // Rows (rows, cols), dense.
  void (*softmax)(const T* x, T* y, Index rows, Index cols);
  void (*log_softmax)(const T* x, T* y, Index rows, Index cols);
  void (*cross_entropy)(const T* x, const std::int32_t* labels, T* y, Index rows, Index cols);  // y (rows)
  void (*layer_norm)(const T* x, const T* gamma, const T* beta, T* y, Index rows, Index cols, double eps);
  void (*rms_norm)(const T* x, const T* gamma, T* y, Index rows, Index cols, double eps);
  void (*square_cols)(const T* x, Index rows, Index cols, const T* mean,
                      double* acc);  // acc[c] += sum_r (x - mean[c])^2
  // (x - mean[c]) scale[c] + beta[c]
  void (*normalize_cols)(const T* x, const T* mean, const T* scale, const T* beta, T* y, Index rows, Index cols);
  void (*accumulate)(const T* x, double* acc, Index n);  // acc += x

  // out[r] = argmin_k base[k] + sum_d z[r,d] panel[d,k], ties to the lowest k, 0 where no score is below infinity.
  // Code k is column k % width of panel k / width; a panel is (depth, width).
  void (*nearest)(const T* z, Index rows, Index depth, const T* panels, const T* base, Index panel_count,
                  std::int32_t* out);
  Index nearest_width;  // codes per panel
  Index nearest_rows;   // rows of a tile: calls work best on multiples
};

// The steps of a convolution by F(m x m, r x r) (simd_winograd.inc), for channels in blocks of `lanes`. n = m + r - 1;
// point q of n * n of a transformed tile lies q * point floats on.
struct WinogradTile {
  int m, r;
  // All points of one tile: of n * n pixels of data, of m * m pixels of a gradient.
  void (*data)(const float* const* pixels, Index blocks, float* out, Index point);
  void (*gradient)(const float* const* pixels, Index blocks, float* out, Index point);
  // `lanes` weights w[l * lane] of r x r taps -> out at every point; and a gradient's way back, lanes side by side.
  void (*weights)(const float* w, Index tap_row, Index tap_col, Index lane, float* out, Index point);
  void (*weight_gradient)(const float* d, Index point, float* w, Index tap_row, Index tap_col);
  // The m * m pixels of one tile, those that are not null; bias may be null.
  void (*output)(const float* products, Index point, Index blocks, const float* bias, const float* const* skip, bool relu,
                 float* const* pixels);
};

struct Winograd {
  Index lanes;  // 0: the set has none
  WinogradTile f4x3, f4x2;
  // One point: out (tiles, panel_count * 2 lanes) = data (tiles, depth) weights, these in panels (depth, 2 lanes).
  void (*product)(const float* data, Index data_row, const float* panels, float* out, Index out_row, Index tiles,
                  Index depth, Index panel_count);
  // One point: sums (channels, out_channels) += over tiles data (tile, channel) gradient (tile, out_channel).
  void (*tile_product)(const float* data, Index data_row, Index channels, const float* gradient, Index gradient_row,
                       Index out_channels, float* sums, Index tiles);
};

struct Table {
  const char* name;
  Common<float> f32;
  Common<double> f64;
  Common<std::int32_t> i32;
  Real<float> real32;
  Real<double> real64;
  // bf16, by its bits, to f32 and back (to nearest, ties to even); and f32 rounded to what bf16 holds. y may be x.
  void (*widen)(const std::uint16_t* x, float* y, Index n);
  void (*narrow)(const float* x, std::uint16_t* y, Index n);
  void (*round_to_bf16)(const float* x, float* y, Index n);
  Winograd winograd;
};

const Table& table_generic();
const Table& table_avx2();
const Table& table_avx512();

}  // namespace sg::simd
