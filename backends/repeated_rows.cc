#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "backends/rewrites.h"
#include "core/row_space.h"
#include "ops/op_ids.h"

namespace sg {
namespace {

// Below, what is spared is less than what it costs to work by rows instead of on one long row.
constexpr std::int64_t kNarrow = 16;

// How many rows an operand of shape t has where those of s are its own, again and again; 0 where it is laid out otherwise.
std::int64_t period_under(const Shape& t, const Shape& s) {
  int first = 0;
  while (first < t.rank() && t[first] == 1) ++first;
  const int rank = t.rank() - first;
  if (rank < 2 || rank > s.rank() || t.elements() == 0) return 0;
  for (int k = 0; k < rank; ++k)
    if (t[t.rank() - 1 - k] != s[s.rank() - 1 - k]) return 0;
  return t.elements() < s.elements() ? t.elements() / t[-1] : 0;
}

// Whether the instruction makes a region of its own once its repeated operands are looked up.
bool takes_repeated_rows(const Tape& tape, const Instr& instr) {
  if (!op_def(instr.op).elementwise || cut_of(tape, instr) == 0) return false;
  const Shape& s = tape.type(instr.outputs[0]).shape;
  const Space space = space_of(s);
  bool any = false;
  for (const std::int32_t v : instr.inputs) {
    const TensorType& t = tape.type(v);
    if (layout_under(t.shape, s, space)) continue;
    if (!is_real(t.dtype) || period_under(t.shape, s) == 0) return false;
    any = true;
  }
  return any && space.columns >= kNarrow;
}

}  // namespace

Rewritten look_up_repeated_rows(const Tape& tape, const SupportedFn& fusible) {
  const auto instrs = tape.instrs();
  Rewriter r(tape);
  std::map<std::string, Value> numbers;
  const auto rows_of = [&](const Shape& s, std::int64_t period) {
    const Shape rows(std::vector<std::int64_t>(s.begin(), s.end() - 1));
    Value& known = numbers[fmt::format("{} {}", to_string(rows), period)];
    if (!known) {
      Tensor t({DType::i32, rows});
      for (std::int64_t k = 0; k < t.elements(); ++k) t.set(k, static_cast<double>(k % period));
      known = r.out().constant(t);
    }
    return known;
  };
  bool changed = false;
  for (std::size_t i = 0; i < instrs.size(); ++i) {
    const Instr& instr = instrs[i];
    if (!takes_repeated_rows(tape, instr) || !fusible(tape, instr)) {
      r.copy(static_cast<std::int32_t>(i));
      continue;
    }
    changed = true;
    const Shape& s = tape.type(instr.outputs[0]).shape;
    std::vector<Value> inputs = r.mapped_inputs(instr);
    r.at(static_cast<std::int32_t>(i));
    for (Value& v : inputs) {
      if (layout_under(v.shape(), s, space_of(s))) continue;
      const std::int64_t period = period_under(v.shape(), s);
      const Shape table{period, s[-1]};
      if (v.shape() != table) v = r.out().emit1(op_with_role(Role::alias), {v}, {{"shape", table.vec()}});
      v = r.out().emit1(OpId::gather_rows, {v, rows_of(s, period)});
    }
    r.replace(instr.outputs[0], r.out().emit(instr.op, inputs, instr.attrs)[0]);
  }
  if (!changed) return {};
  return r.finish();
}

}  // namespace sg
