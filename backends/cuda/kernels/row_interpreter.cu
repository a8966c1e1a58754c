// Row programs without a compiler: the same bytecode, op after op over a row (or a piece of a flat program) that a block
// keeps in scratch memory. Slow and simple: every value goes to memory and comes back.
//
// Column c of a piece belongs to one thread from its first op to its last, so elementwise ops need no barrier; values of
// a row are made by thread 0 between two barriers. Outputs are stored when the piece is done: they may lie over inputs.
// Sums over rows are made per block, each number by one thread, and added up by a second kernel in the blocks' order;
// those over a segment are made by one block and stored at the segment's end.
#include "row_code.h"

namespace sg::cuda {
namespace {

#define SG_ROW_FUNCTIONS(...) __VA_ARGS__
#include "row_functions.inc"
#undef SG_ROW_FUNCTIONS

enum Op : int {
#define SG_OP(name) k_##name,
#include "ops/op_list.inc"
#undef SG_OP
};

template <class T>
constexpr bool is_real = T(0.5) != T(0);

// Where a thread is.
struct Place {
  long long row, first, column;  // first: column of the piece's first element
};

struct Context {
  const RowCode& code;
  double* scratch;
  double* folds;
};

// Numbers in scratch take 8 bytes whatever they are.
template <class T>
__device__ T& at_slot(const Context& c, const RowRegister& r, long long i) {
  return *reinterpret_cast<T*>(c.scratch + r.slot + i);
}

__device__ long long offset_of(const RowRegister& r, const Context& c, const Place& at) {
  switch (r.layout) {
    case RowLayout::full:
      return at.row * c.code.columns + at.first + at.column;
    case RowLayout::row:
      return at.row;
    case RowLayout::column:
      return at.first + at.column;
    case RowLayout::strided: {
      long long offset = r.has_columns ? at.first + at.column : 0, rest = at.row;
      for (int k = 0; k < r.axes; ++k) {
        offset += rest % r.extent[k] * r.stride[k];
        rest /= r.extent[k];
      }
      return offset;
    }
    default:
      return 0;
  }
}

__device__ float number(double x, float) { return to_f32(x); }
__device__ double number(double x, double) { return x; }
__device__ int number(double x, int) { return to_i32(x); }

// T is the type in which values of the register's type are computed with.
template <class T>
__device__ T read(const Context& c, int i, const Place& at) {
  const RowRegister& r = c.code.registers[i];
  if (r.layout == RowLayout::number) return number(r.number, T());
  if (!r.input) return at_slot<T>(c, r, r.layout == RowLayout::full ? at.column : 0);
  const long long k = offset_of(r, c, at);
  if constexpr (sizeof(T) == 4)
    if (r.type == RowType::bf16) return T(value(static_cast<const bf16*>(r.memory)[k]));
  return static_cast<const T*>(r.memory)[k];
}

template <class T>
__device__ T unary(const RowOp& op, T x) {
  if constexpr (!is_real<T>) {
    return op.op == k_neg ? op_neg(x) : op_abs(x);
  } else {
    switch (op.op) {
      case k_neg:
        return op_neg(x);
      case k_abs:
        return op_abs(x);
      case k_exp:
        return op_exp(x);
      case k_log:
        return op_log(x);
      case k_sqrt:
        return op_sqrt(x);
      case k_rsqrt:
        return op_rsqrt(x);
      case k_square:
        return op_square(x);
      case k_sin:
        return op_sin(x);
      case k_cos:
        return op_cos(x);
      case k_acos:
        return op_acos(x);
      case k_erf:
        return op_erf(x);
      case k_tanh:
        return op_tanh(x);
      case k_sigmoid:
        return op_sigmoid(x);
      case k_softplus:
        return op_softplus(x);
      case k_silu:
        return op_silu(x);
      case k_relu:
        return op_relu(x);
      case k_gelu:
        return op_gelu(x);
      case k_leaky_relu:
        return op_leaky_relu(x, T(op.p));
      case k_clamp:
        return op_clamp(x, T(op.p), T(op.q));
      case k_round:
        return op_round(x);
      case k_floor:
        return op_floor(x);
      default:
        return op_sign(x);
    }
  }
}

template <class T>
__device__ T binary(const RowOp& op, T a, T b) {
  switch (op.op) {
    case k_add:
      return op_add(a, b);
    case k_sub:
      return op_sub(a, b);
    case k_mul:
      return op_mul(a, b);
    case k_minimum:
      return op_minimum(a, b);
    case k_maximum:
      return op_maximum(a, b);
    case k_div:
      return op_div(a, b);
    case k_relu_grad:
      return op_relu_grad(a, b);
    default:
      if constexpr (is_real<T>) return op_pow(a, b);
      return a;
  }
}

template <class T>
__device__ int compare(const RowOp& op, T a, T b) {
  switch (op.op) {
    case k_equal:
      return op_equal(a, b);
    case k_not_equal:
      return op_not_equal(a, b);
    case k_less:
      return op_less(a, b);
    case k_less_equal:
      return op_less_equal(a, b);
    case k_greater:
      return op_greater(a, b);
    default:
      return op_greater_equal(a, b);
  }
}

__device__ bool is_comparison(int op) { return op >= k_equal && op <= k_greater_equal; }
__device__ bool is_binary(int op) { return (op >= k_add && op <= k_maximum) || op == k_relu_grad; }

template <class T>
__device__ void write(const Context& c, const RowRegister& r, const Place& at, T x) {
  at_slot<T>(c, r, r.layout == RowLayout::full ? at.column : 0) = x;
}

// A result of T; what was computed in float is rounded where the register is bf16.
template <class T>
__device__ void finish(const Context& c, const RowOp& op, const Place& at, T x) {
  const RowRegister& r = c.code.registers[op.out];
  if constexpr (is_real<T> && sizeof(T) == 4)
    if (r.type == RowType::bf16) x = rounded(x);
  write(c, r, at, x);
}

template <class T>
__device__ void cast_to(const Context& c, const RowOp& op, const Place& at, T x) {
  const RowRegister& r = c.code.registers[op.out];
  switch (r.type) {
    case RowType::f32:
      return write(c, r, at, to_f32(x));
    case RowType::f64:
      return write(c, r, at, to_f64(x));
    case RowType::i32:
      return write(c, r, at, to_i32(x));
    case RowType::bf16:
      return write(c, r, at, to_bf16(x));
  }
}

template <class T>
__device__ void element(const Context& c, const RowOp& op, const Place& at) {
  if (op.kind == RowKind::expand) return write(c, c.code.registers[op.out], at, read<T>(c, op.in[0], at));
  if (op.op == k_cast) return cast_to(c, op, at, read<T>(c, op.in[0], at));
  if (op.op == k_where)
    return finish(c, op, at, op_where(read<int>(c, op.in[0], at), read<T>(c, op.in[1], at), read<T>(c, op.in[2], at)));
  if (is_comparison(op.op))
    return write(c, c.code.registers[op.out], at, compare(op, read<T>(c, op.in[0], at), read<T>(c, op.in[1], at)));
  if (is_binary(op.op))
    return finish(c, op, at, binary(op, read<T>(c, op.in[0], at), read<T>(c, op.in[1], at)));
  finish(c, op, at, unary(op, read<T>(c, op.in[0], at)));
}

// f with a number of the type in which values of that type are computed.
template <class F>
__device__ void with_type(RowType t, F f) {
  if (t == RowType::f64)
    f(double());
  else if (t == RowType::i32)
    f(int());
  else
    f(float());
}

template <class Op, class T>
__device__ void reduce(const Context& c, const RowOp& op, Place at, long long count) {
  __shared__ T shared[kRowThreads / 32];
  T total = Op::start(T());
  for (at.column = threadIdx.x; at.column < count; at.column += kRowThreads)
    total = Op::join(total, read<T>(c, op.in[0], at));
  total = over_block<Op, kRowThreads / 32>(total, shared);
  if (threadIdx.x == 0) finish(c, op, at, total);
  __syncthreads();
}

__device__ void reduce_row(const Context& c, const RowOp& op, const Place& at, long long count) {
  with_type(c.code.registers[op.in[0]].type, [&](auto zero) {
    using T = decltype(zero);
    if (op.op == k_sum)
      reduce<Sum, T>(c, op, at, count);
    else if (op.op == k_reduce_max)
      reduce<Max, T>(c, op, at, count);
    else
      reduce<Min, T>(c, op, at, count);
  });
}

// Into the number of the fold that belongs to the thread: one per column, or one per thread.
__device__ void add_to_fold(const Context& c, const RowOp& op, Place at, long long count) {
  const bool of_rows = c.code.registers[op.in[0]].layout == RowLayout::row;
  if (of_rows && threadIdx.x != 0) return;
  with_type(c.code.registers[op.in[0]].type, [&](auto zero) {
    using T = decltype(zero);
    using A = decltype(wide(zero));
    const long long n = of_rows ? 1 : count;
    for (at.column = threadIdx.x; at.column < n; at.column += kRowThreads) {
      const long long k = op.kind == RowKind::reduce_all ? threadIdx.x : at.column;
      A& sum = *reinterpret_cast<A*>(c.folds + op.fold + k);
      sum = op_add(sum, wide(read<T>(c, op.in[0], at)));
    }
  });
}

__device__ bool is_elementwise(const RowOp& op) { return op.kind == RowKind::elementwise || op.kind == RowKind::expand; }

__device__ RowType operand_type(const Context& c, const RowOp& op) {
  return c.code.registers[op.op == k_where && op.kind == RowKind::elementwise ? op.in[1] : op.in[0]].type;
}

__device__ void store(const Context& c, const RowRegister& r, const Place& at) {
  const long long to = offset_of(r, c, at), from = r.layout == RowLayout::full ? at.column : 0;
  switch (r.type) {
    case RowType::f32:
      static_cast<float*>(r.memory)[to] = at_slot<float>(c, r, from);
      return;
    case RowType::f64:
      static_cast<double*>(r.memory)[to] = at_slot<double>(c, r, from);
      return;
    case RowType::i32:
      static_cast<int*>(r.memory)[to] = at_slot<int>(c, r, from);
      return;
    case RowType::bf16:
      put(static_cast<bf16*>(r.memory)[to], at_slot<float>(c, r, from));
      return;
  }
}

// The sums of a segment are complete: to memory, and to zero for the next one. Each thread has those it made.
__device__ void finish_segment(const Context& c, const RowOp& op, long long segment) {
  const RowRegister& r = c.code.registers[op.out];
  const auto finish_as = [&](auto zero, auto* to) {
    using A = decltype(zero);
    for (long long k = threadIdx.x; k < op.count; k += kRowThreads) {
      A& sum = *reinterpret_cast<A*>(c.folds + op.fold + k);
      put(to[segment * op.count + k], sum);
      sum = 0;
    }
  };
  switch (r.type) {
    case RowType::f32:
      return finish_as(double(), static_cast<float*>(r.memory));
    case RowType::f64:
      return finish_as(double(), static_cast<double*>(r.memory));
    case RowType::i32:
      return finish_as(int(), static_cast<int*>(r.memory));
    case RowType::bf16:
      return finish_as(double(), static_cast<bf16*>(r.memory));
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kRowThreads) row_interpreter(const RowCode code) {
  const Context c{code, code.scratch + blockIdx.x * code.slots, code.folds + blockIdx.x * code.fold_count};
  for (int k = 0; k < code.op_count; ++k)
    for (long long i = threadIdx.x; i < code.ops[k].count; i += kRowThreads) c.folds[code.ops[k].fold + i] = 0;
  const long long begin = blockIdx.x * code.pieces_of_block;
  const long long end = begin + code.pieces_of_block < code.pieces ? begin + code.pieces_of_block : code.pieces;
  for (long long piece = begin; piece < end; ++piece) {
    Place at{code.tile > 0 ? 0 : piece, code.tile > 0 ? piece * code.tile : 0, 0};
    long long count = code.columns - at.first;
    if (code.tile > 0 && count > code.tile) count = code.tile;
    for (int k = 0; k < code.op_count; ++k) {
      const RowOp& op = code.ops[k];
      if (op.kind == RowKind::reduce_row) {
        reduce_row(c, op, at, count);
      } else if (!is_elementwise(op)) {
        add_to_fold(c, op, at, count);
      } else {
        const bool of_row = code.registers[op.out].layout == RowLayout::row;
        const long long n = of_row ? 1 : count;
        if (of_row) __syncthreads();
        with_type(operand_type(c, op), [&](auto zero) {
          for (at.column = threadIdx.x; at.column < n; at.column += kRowThreads) element<decltype(zero)>(c, op, at);
        });
        if (of_row) __syncthreads();
      }
    }
    for (int i = 0; i < code.register_count; ++i) {
      const RowRegister& r = code.registers[i];
      if (r.input || r.memory == nullptr || r.slot < 0) continue;
      const long long n = r.layout == RowLayout::full ? count : 1;
      for (at.column = threadIdx.x; at.column < n; at.column += kRowThreads) store(c, r, at);
    }
    if (code.segment > 0 && (piece + 1) % code.segment == 0)
      for (int k = 0; k < code.op_count; ++k)
        if (code.ops[k].kind == RowKind::reduce_segments) finish_segment(c, code.ops[k], piece / code.segment);
    __syncthreads();
  }
}

// One block per 32 columns of a fold, or for all of it: its numbers of all blocks, in their order.
extern "C" __global__ void __launch_bounds__(kRowThreads)
    row_interpreter_sums(const double* folds, int blocks, long long fold_count, long long fold, long long count,
                         int columns, int type, void* out) {
  const auto add = [&](auto zero, auto* to) {
    using A = decltype(zero);
    __shared__ A shared[kRowThreads / 32];
    const long long c = columns ? blockIdx.x * static_cast<long long>(kRowThreads) + threadIdx.x : 0;
    const long long own = columns ? c : threadIdx.x;
    A total = 0;
    if (own < count)
      for (int b = 0; b < blocks; ++b)
        total = op_add(total, *reinterpret_cast<const A*>(folds + b * fold_count + fold + own));
    if (!columns) total = over_block<Sum, kRowThreads / 32>(total, shared);
    if (columns ? c < count : threadIdx.x == 0) put(to[c], total);
  };
  switch (static_cast<RowType>(type)) {
    case RowType::f32:
      return add(double(), static_cast<float*>(out));
    case RowType::f64:
      return add(double(), static_cast<double*>(out));
    case RowType::i32:
      return add(int(), static_cast<int*>(out));
    case RowType::bf16:
      return add(double(), static_cast<bf16*>(out));
  }
}

}  // namespace sg::cuda
