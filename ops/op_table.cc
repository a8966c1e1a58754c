// The op table, built from op_list.inc, and the two helpers that autodiff needs but core cannot name ops for.
#include <array>

#include "core/tape.h"
#include "ops/op_ids.h"

namespace sg {

namespace defs {
#define SG_OP(name) OpDef name();
#include "ops/op_list.inc"
#undef SG_OP
}  // namespace defs

std::span<const OpDef> op_table() {
  static const std::array table{
#define SG_OP(name) defs::name(),
#include "ops/op_list.inc"
#undef SG_OP
  };
  return table;
}

const OpDef& op_def(OpId op) {
  const std::span<const OpDef> table = op_table();
  SG_CHECK(static_cast<std::size_t>(op) < table.size(), "op id {}", static_cast<int>(op));
  return table[static_cast<std::size_t>(op)];
}

OpId op_with_role(Role role) {
  const std::span<const OpDef> table = op_table();
  for (std::size_t i = 0; i < table.size(); ++i)
    if (table[i].role == role) return static_cast<OpId>(i);
  internal_error("op_with_role", fmt::format("no op has role {}", static_cast<int>(role)), Loc::current());
}

Value add_cotangents(Value a, Value b, Loc loc) { return a.tape->emit1(OpId::add, {a, b}, {}, loc); }

Value sum_to_shape(Value x, const Shape& shape, Loc loc) {
  if (x.shape() == shape) return x;
  const int added = x.shape().rank() - shape.rank();
  SG_CHECK(added >= 0, "{} is not broadcast from {}", to_string(x.shape()), to_string(shape));
  std::vector<std::int64_t> axes;
  for (int i = 0; i < x.shape().rank(); ++i)
    if (i < added || (shape[i - added] == 1 && x.shape()[i] != 1)) axes.push_back(i);
  const DType dtype = x.dtype();
  const auto cast_to = [&](Value v, DType to) {
    return v.dtype() == to ? v : v.tape->emit1(OpId::cast, {v}, {{"dtype", static_cast<std::int64_t>(to)}}, loc);
  };
  // Sums of bf16 are made in f32: past 256 terms of one size a sum kept in bf16 stops growing.
  const Value terms = cast_to(x, dtype == DType::bf16 ? DType::f32 : dtype);
  const Value sum = x.tape->emit1(OpId::sum, {terms}, {{"axes", std::move(axes)}, {"keep", std::int64_t{0}}}, loc);
  const Value total = cast_to(sum, dtype);
  if (total.shape() == shape) return total;
  return x.tape->emit1(OpId::reshape, {total}, {{"shape", shape.vec()}}, loc);
}

}  // namespace sg
