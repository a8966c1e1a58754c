// The bytecode of a row program as kernels/row_interpreter.cu reads it: RowProgram with its operands' places. Included
// by both sides.
#pragma once

namespace sg::cuda {

constexpr int kRowAxes = 6;
constexpr int kRowThreads = 256;

enum class RowType : int { f32, f64, i32, bf16 };  // as DType numbers them
enum class RowLayout : int { full, row, column, scalar, strided, number };  // what is of a segment is strided
enum class RowKind : int { elementwise, expand, reduce_row, reduce_columns, reduce_all, reduce_segments };

struct RowRegister {
  RowType type = RowType::f32;
  RowLayout layout = RowLayout::full;
  void* memory = nullptr;  // an input's, or where an output goes
  int input = 0;
  long long slot = -1;     // of 8 bytes in the block's scratch, where it is no input
  double number = 0;
  int axes = 0, has_columns = 0;  // of strided inputs: the row's digits, innermost first
  long long extent[kRowAxes] = {}, stride[kRowAxes] = {};
};

struct RowOp {
  RowKind kind = RowKind::elementwise;
  int op = 0;  // OpId
  int in[3] = {0, 0, 0}, out = 0;
  double p = 0, q = 0;  // slope; lo and hi
  long long fold = 0;   // of reductions over rows: first of the block's partial sums, and how many
  long long count = 0;
};

struct RowCode {
  const RowRegister* registers = nullptr;
  const RowOp* ops = nullptr;
  int register_count = 0, op_count = 0;
  long long rows = 1, columns = 1;  // of the whole
  long long tile = 0;               // columns of a piece of a program of one row; 0: a piece is a row
  long long pieces = 1, pieces_of_block = 1;
  long long segment = 0;            // rows of a segment where there are sums over one: a block takes whole ones
  double* scratch = nullptr;        // per block
  long long slots = 0;
  double* folds = nullptr;          // per block
  long long fold_count = 0;
};

}  // namespace sg::cuda
