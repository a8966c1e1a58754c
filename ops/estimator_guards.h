// What the files of estimators share: checks of their operands and the guards of rows without a direction.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "core/tape.h"

namespace sg::estimator {

// Lengths up to this one count as zero. Its square is a normal number in f32; squares of shorter rows underflow there.
inline constexpr double kTinyNorm = 1e-18;

// Error{shape}: `what`, followed by one line per operand.
[[noreturn]] void fail_on(std::string what, std::initializer_list<std::pair<std::string_view, Value>> operands);

// Error{shape} unless z and q are rows of one type.
void check_rows(std::string_view estimator, Value z, Value q);
// Error{shape} unless `value` (an origin, noise, codes) has the element type of z and this shape.
void check_operand(std::string_view estimator, std::string_view role, Value value, const Shape& shape, Value z);

// The row scaled to length 1; 0 where its length is at most `threshold`.
Value unit_or_zero(Value row, double threshold = kTinyNorm);

}  // namespace sg::estimator
