// Dropout (Srivastava et al. 2014): x u / (1 - rate), u = 1 with probability 1 - rate, else 0, drawn for each element.
#pragma once
#include "core/tape.h"

namespace sg {

// random: i32 [2], the step's random state (ops/random.h); null: evaluation, x itself, as it is where rate is 0. Two
// calls in a step draw different numbers. Error{attribute}: rate is not in [0, 1).
Value dropout(Operand x, double rate, Value random);

// The same, each number shared by all of the given axes: layers or positions that are dropped as one. Axes count from
// the end where negative.
Value dropout_shared(Operand x, double rate, Value random, std::vector<std::int64_t> shared_axes);

}  // namespace sg
