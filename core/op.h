// OpDef: everything that the framework knows about an op, one table row each. core knows no op by name: what passes
// need to know is a field here.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/attrs.h"
#include "core/shape.h"
#include "core/value.h"

namespace sg {

enum class OpId : std::uint16_t;  // enumerators in ops/op_ids.h, made from ops/op_list.inc

// smooth: has a derivative. piecewise: locally constant or integer-valued (round, argmin, compare), no gradient flows;
// gradcheck freezes it. barrier: gradient is stopped on purpose. none: no derivative by nature (a leaf, randomness).
enum class GradKind : std::uint8_t { smooth, piecewise, barrier, none };

// The few algebraic roles that passes and autodiff recognise.
enum class Role : std::uint8_t { plain, input, constant, read, assign, add, sub, mul, stop_gradient, alias, after, region, bundle };

struct Instr;

// What a VJP rule sees. It emits instructions on `tape` and returns one Value per input; a null Value means "no
// gradient for this input". Cotangents of outputs that nothing depends on are null Values. Rules of elementwise ops may
// return a cotangent of the broadcast shape: the engine sums it to the input's shape.
struct VjpCtx {
  Tape& tape;
  const Instr& instr;
  std::span<const Value> inputs;
  std::span<const Value> outputs;
  std::span<const Value> cotangents;   // one per output
  const std::vector<bool>& need;       // one per input: whether its gradient is asked for
  const Attrs& attrs;
};

using InferFn = std::vector<TensorType> (*)(std::span<const TensorType>, const Attrs&);
using VjpFn = std::vector<Value> (*)(const VjpCtx&);
using DecomposeFn = std::vector<Value> (*)(Tape&, std::span<const Value> inputs, const Attrs&);
using ScalarFn = double (*)(const double* in, const Attrs&);

constexpr int kVariadic = -1;

struct OpDef {
  std::string_view name;
  int arity = 0;                       // number of inputs, or kVariadic (at least one)
  GradKind grad = GradKind::smooth;
  bool elementwise = false;            // output[i] depends on input[i] only, after NumPy broadcasting
  bool reduction = false;              // reduces {axes, keep}
  bool accumulates = false;            // a reduction that is a sum
  bool moves = false;                  // output 0 holds only elements of input 0, arranged or repeated in another way; of arity 2: its rows by the numbers in input 1
  Role role = Role::plain;
  InferFn infer = nullptr;             // output types; throws Error{shape|dtype|attribute} with the op's part of the message
  VjpFn vjp = nullptr;                 // null: not smooth, or differentiated through `decompose`
  DecomposeFn decompose = nullptr;     // the op's meaning in simpler ops; null for primitives
  ScalarFn scalar = nullptr;           // elementwise ops: the meaning of one element, in double (reference, folding)
};

// The table and the few helpers that autodiff needs; defined in ops/op_table.cc.
const OpDef& op_def(OpId);
std::span<const OpDef> op_table();     // indexed by OpId
OpId op_with_role(Role);               // the op of a unique role (input, constant, read, assign, add, ...)
Value add_cotangents(Value a, Value b, Loc);          // a + b, same type
Value sum_to_shape(Value x, const Shape& shape, Loc); // sums the axes that broadcasting `shape` to x's shape added

}  // namespace sg
