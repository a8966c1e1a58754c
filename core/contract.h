// Jacobian contracts, for users' tests: what the gradient of one value in another shall be, stated as a matrix. They
// throw and print nothing, so that any test framework will do.
#pragma once
#include "core/backend.h"
#include "core/tape.h"

namespace sg {

// The surrogate Jacobian d y / d x at the values that the tape's constants and variables have now: f64
// [y elements, x elements], row-major. Zero where no gradient reaches x. Nothing is recorded on the tape.
// reference: a backend that computes in double. Error{usage} where y depends on an input, which would have to be fed.
Tensor jacobian(Value y, Value x, Backend& reference);

// d z_q / d z equals g to within tolerance * max(1, |wanted|). z (N,D) and z_q (N,E) on one tape; g is (E,D), the same
// for each row, or (N,E,D), one per row, or (N*E,N*D); in the first two, rows do not depend on each other.
// Error{contract}: the first entry that differs, wanted and got, how many differ and the largest error, and the path
// that the gradient takes, with each instruction that cuts it. Error{shape}: g fits no such form. Error{dtype}: values
// in f32 under a tolerance below 1e-6, which rounding alone would break.
void expect_jacobian(Value z_q, Value z, const Tensor& g, Backend& reference, double tolerance = 1e-10,
                     Loc loc = Loc::current());

}  // namespace sg
