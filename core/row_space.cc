#include "core/row_space.h"

#include <algorithm>

namespace sg {

using Layout = RowProgram::Layout;

std::int64_t columns_of(const Shape& s) { return s.rank() == 0 ? 1 : s[-1]; }

Space space_of(const Shape& s) {
  const std::int64_t c = columns_of(s);
  return {c == 0 ? 0 : s.elements() / c, c};
}

std::int64_t segments_under(const Shape& t, const Shape& s) {
  if (t.rank() != s.rank() || t.rank() < 3 || t[-1] != s[-1] || t[-1] == 1) return 0;
  std::int64_t segments = 1;
  int axis = 0;
  while (axis < t.rank() - 1 && t[axis] == s[axis]) segments *= s[axis++];
  for (int k = axis; k < t.rank() - 1; ++k)
    if (t[k] != 1) return 0;
  return segments > 1 && t.elements() < s.elements() ? segments : 0;
}

std::int64_t segments_of_sum(const Shape& s, std::span<const std::int64_t> axes) {
  const auto first = static_cast<int>(axes.front());
  if (axes.back() != s.rank() - 2 || static_cast<int>(axes.size()) != s.rank() - 1 - first || s[-1] == 1) return 0;
  std::int64_t segments = 1;
  for (int k = 0; k < first; ++k) segments *= s[k];
  return segments;
}

bool agree(std::int64_t a, std::int64_t b) { return a > 0 && b > 0 && (a == b || a == 1 || b == 1); }

std::int64_t cut_of(const Tape& tape, const Instr& instr) {
  const OpDef& def = op_def(instr.op);
  const Shape& result = tape.type(instr.outputs[0]).shape;
  if (def.reduction) {
    const auto& axes = instr.attrs.ints("axes");
    return axes.empty() ? 1 : std::max<std::int64_t>(1, segments_of_sum(tape.type(instr.inputs[0]).shape, axes));
  }
  std::int64_t cut = 1;
  if (!def.elementwise && !def.moves) return cut;
  for (std::int32_t v : instr.inputs) {
    const std::int64_t n = std::max<std::int64_t>(1, segments_under(tape.type(v).shape, result));
    if (!agree(cut, n)) return 0;
    cut = std::max(cut, n);
  }
  return cut;
}

std::optional<Layout> layout_under(const Shape& t, const Shape& s, const Space& space) {
  if (t.elements() == 1) return Layout::scalar;
  if (t == s) return Layout::full;
  if (t.elements() == s.elements())
    return t.rank() <= s.rank() && columns_of(t) == space.columns ? std::optional(Layout::full) : std::nullopt;
  if (t.elements() == space.columns && columns_of(t) == space.columns) return Layout::column;
  if (t.elements() == space.rows && columns_of(t) == 1 && t.rank() == s.rank()) return Layout::row;
  if (segments_under(t, s) > 0) return Layout::segment;
  return std::nullopt;
}

bool cuts_rows(const Tape& tape, const Instr& instr) { return cut_of(tape, instr) != 1; }

}  // namespace sg
