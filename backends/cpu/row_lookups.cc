#include "backends/cpu/row_lookups.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <vector>

#include "backends/cpu/kernels.h"
#include "core/row_space.h"
#include "ops/op_ids.h"

namespace sg::cpu {
namespace {

constexpr std::int64_t kWholeVectors = 16;  // columns that leave no vector of either width in part

std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }

// Whether an instruction that comes of v element by element folds the rows: its region goes by rows anyway.
bool are_folded(const Tape& tape, std::int32_t v) {
  const Shape& s = tape.type(v).shape;
  std::vector<char> made_of(ix(tape.value_count()), 0);
  made_of[ix(v)] = 1;
  const auto instrs = tape.instrs();
  for (std::size_t i = ix(tape.producer(v)) + 1; i < instrs.size(); ++i) {
    const Instr& instr = instrs[i];
    const OpDef& def = op_def(instr.op);
    if (std::none_of(instr.inputs.begin(), instr.inputs.end(), [&](std::int32_t in) { return made_of[ix(in)] != 0; }))
      continue;
    if (def.reduction) {
      const auto& axes = instr.attrs.ints("axes");
      if (axes.size() == 1 && axes[0] == tape.type(instr.inputs[0]).shape.rank() - 1) return true;
    } else if (def.elementwise || def.role == Role::alias) {
      const Shape& out = tape.type(instr.outputs[0]).shape;
      made_of[ix(instr.outputs[0])] = out.elements() == s.elements() && columns_of(out) == columns_of(s);
    }
  }
  return false;
}

bool worth_it(const Tape& tape, std::int32_t rows) {
  return columns_of(tape.type(rows).shape) % kWholeVectors == 0 || are_folded(tape, rows);
}

// How many rows an operand of shape t has where those of s are its own, again and again; 0 where it is laid out
// otherwise.
std::int64_t period_under(const Shape& t, const Shape& s) {
  int first = 0;
  while (first < t.rank() && t[first] == 1) ++first;
  const int rank = t.rank() - first;
  if (rank < 2 || rank > s.rank() || t.elements() == 0) return 0;
  for (int k = 0; k < rank; ++k)
    if (t[t.rank() - 1 - k] != s[s.rank() - 1 - k]) return 0;
  return t.elements() < s.elements() ? t.elements() / t[-1] : 0;
}

class RepeatedRows {
 public:
  explicit RepeatedRows(const Tape& tape) : tape_(tape), read_in_row_(ix(tape.value_count()), 0), rewriter_(tape) {
    for (const Instr& instr : tape.instrs())
      if (is_row_op(instr))
        for (const std::int32_t v : instr.inputs) read_in_row_[ix(v)] = 1;
  }

  Rewritten run() {
    bool changed = false;
    for (std::size_t i = 0; i < tape_.instrs().size(); ++i) {
      const bool wanted = is_wanted(tape_.instrs()[i]);
      changed = changed || wanted;
      if (wanted)
        rewrite(static_cast<std::int32_t>(i));
      else
        rewriter_.copy(static_cast<std::int32_t>(i));
    }
    return changed ? rewriter_.finish() : Rewritten{};
  }

 private:
  const Shape& shape(std::int32_t v) const { return tape_.type(v).shape; }
  bool is_row_op(const Instr& instr) const {
    return !instr.outputs.empty() && op_def(instr.op).role != Role::alias && has_row_kernel(tape_, instr);
  }

  // Alone, such an instruction is no slower as a step that broadcasts: it has to have neighbours to share a pass with.
  bool is_wanted(const Instr& instr) const {
    if (!op_def(instr.op).elementwise || !is_row_op(instr) || cut_of(tape_, instr) == 0) return false;
    const std::int32_t out = instr.outputs[0];
    const Space space = space_of(shape(out));
    bool repeats = false, neighbours = read_in_row_[ix(out)] != 0;
    for (const std::int32_t v : instr.inputs) {
      if (layout_under(shape(v), shape(out), space)) {
        neighbours = neighbours || (shape(v) == shape(out) && is_row_op(tape_.instrs()[ix(tape_.producer(v))]));
        continue;
      }
      if (!is_real(tape_.type(v).dtype) || period_under(shape(v), shape(out)) == 0) return false;
      repeats = true;
    }
    return repeats && neighbours && space.columns > 1 && worth_it(tape_, out);
  }

  void rewrite(std::int32_t i) {
    const Instr& instr = tape_.instrs()[ix(i)];
    const Shape& s = shape(instr.outputs[0]);
    std::vector<Value> inputs = rewriter_.mapped_inputs(instr);
    rewriter_.at(i);
    Tape& out = rewriter_.out();
    for (Value& v : inputs) {
      if (layout_under(v.shape(), s, space_of(s))) continue;
      const std::int64_t period = period_under(v.shape(), s);
      const Shape table{period, s[-1]};
      if (v.shape() != table) v = out.emit1(op_with_role(Role::alias), {v}, {{"shape", table.vec()}});
      v = out.emit1(OpId::gather_rows, {v, numbers(s, period)});
    }
    rewriter_.replace(instr.outputs[0], out.emit(instr.op, inputs, instr.attrs)[0]);
  }

  // For each row of s its number in the table.
  Value numbers(const Shape& s, std::int64_t period) {
    const Shape rows(std::vector<std::int64_t>(s.begin(), s.end() - 1));
    Value& known = numbers_[fmt::format("{} {}", to_string(rows), period)];
    if (!known) {
      Tensor t({DType::i32, rows});
      for (std::int64_t k = 0; k < t.elements(); ++k) t.set(k, static_cast<double>(k % period));
      known = rewriter_.out().constant(t);
    }
    return known;
  }

  const Tape& tape_;
  std::vector<char> read_in_row_;  // per value: by an instruction that a region can take
  Rewriter rewriter_;
  std::map<std::string, Value> numbers_;
};

}  // namespace

bool worth_looking_up(const Tape& tape, const Instr& gather) { return worth_it(tape, gather.outputs[0]); }

Rewritten look_up_repeated_rows(const Tape& tape) { return RepeatedRows(tape).run(); }

}  // namespace sg::cpu
