// The rows x columns space of a region, and how the operands of its instructions lie in it, by shapes alone.
#pragma once
#include <cstdint>
#include <optional>
#include <span>

#include "core/row_program.h"

namespace sg {

struct Space {
  std::int64_t rows = 0, columns = 0;
  bool operator==(const Space&) const = default;
};

std::int64_t columns_of(const Shape& s);
Space space_of(const Shape& s);

// Into how many runs of rows an operand of shape `t` cuts a result of shape `s`: it has the leading axes of s, then
// extents of 1, then the columns. 0 where it has another form, or where it is one number per column or per element.
std::int64_t segments_under(const Shape& t, const Shape& s);

// The same for a sum over `axes` of a value of shape `s`, the last but the columns among them.
std::int64_t segments_of_sum(const Shape& s, std::span<const std::int64_t> axes);

// One cut serves a whole region: its pieces of work end where the runs of rows end. 1: no cut, 0: none is possible.
bool agree(std::int64_t a, std::int64_t b);

// Into how many segments an operand or the result of an instruction cuts the rows; 0 where two of them disagree.
std::int64_t cut_of(const Tape& tape, const Instr& instr);

// How an operand of shape `t` is laid out where the result has shape `s`, by broadcasting rules alone.
std::optional<RowProgram::Layout> layout_under(const Shape& t, const Shape& s, const Space& space);

}  // namespace sg
