// Estimators that move z by a length that depends on |q-z| along a stopped direction: both z and q receive a gradient
// along q-z. Where q = z there is no such direction: the length is then the constant 0, z gets all and q nothing.
#include "ops/elementwise.h"
#include "ops/estimator_guards.h"
#include "ops/estimators.h"
#include "ops/gradient.h"
#include "ops/reduce.h"

namespace sg {
namespace {

using estimator::check_operand;
using estimator::check_rows;
using estimator::unit_or_zero;

// |x|^2 of each row (N,1), and where it is not too small to have a root with a derivative.
struct SquaredLength {
  explicit SquaredLength(Value x) {
    const Value squared = sum(square(x), {-1}, true);
    positive = greater(squared, estimator::kTinyNorm * estimator::kTinyNorm);
    safe = where(positive, squared, 1.0);
  }
  Value length() const { return where(positive, sqrt(safe), 0.0); }

  Value positive;
  Value safe;  // |x|^2, or the constant 1
};

// z + |q-z| sg[(q-z+e)/|q-z+e|], without the z.
Value step_towards(Value z, Value q, Value noise) {
  const Value to_q = q - z;
  return SquaredLength(to_q).length() * unit_or_zero(stop_gradient(to_q + noise));
}

}  // namespace

Value radius(Value z, Value q, double a) {
  Scope scope(*z.tape, "radius");
  check_rows("radius", z, q);
  const Value to_q = q - z;
  const SquaredLength squared(to_q);
  // r / sg[r]: 1 forward. As a power of a quotient it neither over- nor underflows where |q-z|^a does.
  const Value growth = pow(squared.safe / stop_gradient(squared.safe), a / 2);
  return graft(q, z + growth * stop_gradient(to_q));
}

Value nsvq(Value z, Value q, Value noise) {
  Scope scope(*z.tape, "nsvq");
  check_rows("nsvq", z, q);
  check_operand("nsvq", "the noise", noise, z.shape(), z);
  return z + SquaredLength(q - z).length() * unit_or_zero(stop_gradient(noise));
}

Value diveq(Value z, Value q, Value noise) {
  Scope scope(*z.tape, "diveq");
  check_rows("diveq", z, q);
  check_operand("diveq", "the noise", noise, z.shape(), z);
  return z + step_towards(z, q, noise);
}

Value sf_diveq(Value z, Value q, Value q_next, Value t, Value noise) {
  Scope scope(*z.tape, "sf-diveq");
  check_rows("sf_diveq", z, q);
  check_rows("sf_diveq", z, q_next);
  check_operand("sf_diveq", "the noise", noise, z.shape(), z);
  check_operand("sf_diveq", "t", t, Shape{z.shape()[0], 1}, z);
  t = stop_gradient(t);
  return z + (1.0 - t) * step_towards(z, q, noise) + t * step_towards(z, q_next, noise);
}

}  // namespace sg
