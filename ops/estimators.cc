// Gradient estimators that are linear maps of z with a stopped matrix: gz = G z, z_q = graft(q, gz). All guards choose
// a per-row factor and add nothing to a norm, so that the Jacobian of every row with a direction is exact.
#include "ops/estimators.h"

#include <limits>

#include "ops/elementwise.h"
#include "ops/estimator_guards.h"
#include "ops/gradient.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {

namespace estimator {

[[noreturn]] void fail_on(std::string what, std::initializer_list<std::pair<std::string_view, Value>> operands) {
  for (const auto& [role, v] : operands) what += fmt::format("\n  {} {}", role, v.tape->describe(v.id));
  throw Error(ErrorKind::shape, what);
}

void check_rows(std::string_view estimator, Value z, Value q) {
  if (z.type() != q.type() || z.shape().rank() < 1)
    fail_on(fmt::format("{}: z is {}, q is {}; both must be rows of one type", estimator, to_string(z.type()),
                        to_string(q.type())),
            {{"z", z}, {"q", q}});
}

void check_operand(std::string_view estimator, std::string_view role, Value value, const Shape& shape, Value z) {
  const TensorType wanted{z.dtype(), shape};
  if (value.type() != wanted)
    fail_on(fmt::format("{}: {} is {}, must be {} for z {}", estimator, role, to_string(value.type()),
                        to_string(wanted), to_string(z.type())),
            {{role, value}, {"z", z}});
}

Value unit_or_zero(Value row, double threshold) {
  const Value length = norm(row, {-1}, true);
  return row * where(greater(length, threshold), 1.0 / maximum(length, kTinyNorm), 0.0);
}

}  // namespace estimator

namespace {

using estimator::check_operand;
using estimator::check_rows;
using estimator::fail_on;
using estimator::kTinyNorm;
using estimator::unit_or_zero;

// A sum or difference of unit vectors up to this length is rounding noise without a direction.
double direction_noise(DType dtype) {
  constexpr double kBf16Epsilon = 0x1p-7;
  return 64 * (dtype == DType::f64    ? std::numeric_limits<double>::epsilon()
               : dtype == DType::bf16 ? kBf16Epsilon
                                      : double{std::numeric_limits<float>::epsilon()});
}

// What the estimators know of each row's z and q, all of it stopped. Lengths are (N,1), vectors (N,D).
struct Directions {
  Value u, v;    // z/|z|, q/|q|; both 0 where one of them has no direction
  Value lambda;  // |q|/|z|; 1 where |z| counts as zero
};

// |q|/|z|, 1 where |z| counts as zero.
Value norm_ratio(Value z_norm, Value q_norm) {
  return where(greater(z_norm, kTinyNorm), q_norm / maximum(z_norm, kTinyNorm), 1.0);
}

Directions directions(Value z, Value q) {
  z = stop_gradient(z);
  q = stop_gradient(q);
  const Value z_norm = norm(z, {-1}, true), q_norm = norm(q, {-1}, true);
  const Value has_both = greater(minimum(z_norm, q_norm), kTinyNorm);
  const auto unit = [&](Value row, Value length) {
    return row * where(has_both, 1.0 / maximum(length, kTinyNorm), 0.0);
  };
  return {unit(z, z_norm), unit(q, q_norm), norm_ratio(z_norm, q_norm)};
}

// R of each row, as the function that applies it; the identity where there is no direction.
struct Rotation {
  Rotation(Value z, Value q) : row(directions(z, q)), w(unit_or_zero(row.u + row.v, direction_noise(z.dtype()))) {}
  Value operator()(Value x) const { return x - w * (2.0 * dot(w, x)) + row.v * (2.0 * dot(row.u, x)); }

  Directions row;
  Value w;  // the unit vector halfway between u and v, or 0
};

Value identity_matrix(Tape& tape, std::int64_t size, DType dtype) {
  Tensor eye({dtype, {size, size}});
  for (std::int64_t i = 0; i < size; ++i) eye.set(i * size + i, 1.0);
  return tape.constant(eye);
}

void check_matrix_of_rows(std::string_view estimator, Value z) {
  if (z.shape().rank() != 2)
    fail_on(fmt::format("{}: z is {}, must be (N,D)", estimator, to_string(z.type())), {{"z", z}});
}

}  // namespace

Value graft(Value forward, Value gradient) { return gradient + stop_gradient(forward - gradient); }

Value straight_through(Value z, Value q) {
  Scope scope(*z.tape, "ste");
  check_rows("straight_through", z, q);
  return graft(q, z);
}

Value synchronized(Value z, Value q, double nu) {
  Scope scope(*z.tape, "sync");
  check_rows("synchronized", z, q);
  return graft(q, z + nu * q);
}

Value g_matrix(Value z, Value q, Value g) {
  Scope scope(*z.tape, "g_matrix");
  check_rows("g_matrix", z, q);
  g = stop_gradient(g);
  if (g.shape().rank() == z.shape().rank() + 1) {
    const Shape rows = z.shape();
    const std::int64_t d = rows[-1];
    if (rows.rank() != 2 || g.shape() != Shape{rows[0], d, d})
      fail_on(fmt::format("g_matrix: G is {}, z is {}; a dense G has shape (N,D,D) where z is (N,D)",
                          to_string(g.type()), to_string(z.type())),
              {{"G", g}, {"z", z}});
    return graft(q, reshape(matmul(g, reshape(z, Shape{rows[0], d, 1})), rows));
  }
  const Value gz = g * z;
  if (gz.shape() != z.shape())
    fail_on(fmt::format("g_matrix: G is {}, z is {}; G must be [], (D), (N,D) or (N,D,D)", to_string(g.type()),
                        to_string(z.type())),
            {{"G", g}, {"z", z}});
  return graft(q, gz);
}

Value g_low_rank(Value z, Value q, Value u, Value v) {
  Scope scope(*z.tape, "g_low_rank");
  check_rows("g_low_rank", z, q);
  check_matrix_of_rows("g_low_rank", z);
  const std::int64_t n = z.shape()[0], d = z.shape()[1], r = u.shape().rank() > 0 ? u.shape()[-1] : 0;
  const bool per_row = u.shape().rank() == 3;
  if (u.type() != v.type() || u.dtype() != z.dtype() || u.shape() != (per_row ? Shape{n, d, r} : Shape{d, r}))
    fail_on(fmt::format("g_low_rank: U is {}, V is {}, z is {}; U and V must be alike, (D,r) or (N,D,r)",
                        to_string(u.type()), to_string(v.type()), to_string(z.type())),
            {{"U", u}, {"V", v}, {"z", z}});
  u = stop_gradient(u);
  v = stop_gradient(v);
  const Value moved = per_row ? reshape(matmul(u, matmul(v, reshape(z, Shape{n, d, 1}), true)), z.shape())
                              : matmul(matmul(z, v), u, false, true);
  return graft(q, z + moved);
}

Value scaled_by_batch(Value z, Value q) {
  Scope scope(*z.tape, "g-scalar");
  check_rows("g-scalar", z, q);
  return g_matrix(z, q, norm_ratio(mean(norm(z, {-1})), mean(norm(q, {-1}))));
}

Value scaled_by_row(Value z, Value q) {
  Scope scope(*z.tape, "g-diagonal");
  check_rows("g-diagonal", z, q);
  return g_matrix(z, q, broadcast(norm_ratio(norm(z, {-1}, true), norm(q, {-1}, true)), z.shape()));
}

Value rotation_by_matrix(Value z, Value q) {
  Scope scope(*z.tape, "g-dense");
  check_rows("g-dense", z, q);
  check_matrix_of_rows("g-dense", z);
  const std::int64_t n = z.shape()[0], d = z.shape()[1];
  const Rotation r(z, q);
  const auto outer = [&](Value a, Value b) { return reshape(a, Shape{n, d, 1}) * reshape(b, Shape{n, 1, d}); };
  const Value matrix = identity_matrix(*z.tape, d, z.dtype()) - 2.0 * outer(r.w, r.w) + 2.0 * outer(r.row.v, r.row.u);
  return g_matrix(z, q, reshape(r.row.lambda, Shape{n, 1, 1}) * matrix);
}

Value rotation_by_low_rank(Value z, Value q) {
  Scope scope(*z.tape, "g-low-rank");
  check_rows("g-low-rank", z, q);
  check_matrix_of_rows("g-low-rank", z);
  const Rotation r(z, q);
  const auto pair = [&](Value a, Value b) {
    const Shape column{z.shape()[0], z.shape()[1], 1};
    return concat({reshape(a, column), reshape(b, column)}, 2);
  };
  return g_low_rank(z, q, pair(-2.0 * r.w, 2.0 * r.row.v), pair(r.w, r.row.u));
}

Value rotation_trick(Value z, Value q) {
  Scope scope(*z.tape, "rotation");
  check_rows("rotation_trick", z, q);
  const Rotation r(z, q);
  return graft(q, r.row.lambda * r(z));
}

Value released_rotation(Value z, Value q) {
  Scope scope(*z.tape, "rotation-released");
  check_rows("released_rotation", z, q);
  const Rotation r(z, q);
  return graft(q, r.row.lambda * r(z - r.row.u * dot(r.row.u, z)));
}

Value corrected_rotation(Value z, Value q) {
  Scope scope(*z.tape, "rotation-corrected");
  check_rows("corrected_rotation", z, q);
  return graft(q, Rotation(z, q)(z));
}

Value inverse_distance_rotation(Value z, Value q, double c) {
  Scope scope(*z.tape, "rotation-inverse");
  check_rows("inverse_distance_rotation", z, q);
  const Value squared = sum(square(stop_gradient(q - z)), {-1}, true);
  constexpr double kTinySquare = kTinyNorm * kTinyNorm;
  const Value gamma = where(greater(squared, kTinySquare), 1.0 / (c * maximum(squared, kTinySquare)), 1.0);
  return graft(q, gamma * Rotation(z, q)(z));
}

Value two_parameter_rotation(Value z, Value q, double a, double b) {
  Scope scope(*z.tape, "two-parameter");
  check_rows("two_parameter_rotation", z, q);
  const Rotation r(z, q);
  const Value gz = pow(r.row.lambda, a) * r(z);
  if (a == 1 || b == 1) return graft(q, gz);
  return gz + b * stop_gradient(q - gz);
}

Value centred_rotation(Value z, Value q, Value origin) {
  Scope scope(*z.tape, "centred");
  check_rows("centred_rotation", z, q);
  check_operand("centred_rotation", "the origin", origin, Shape{z.shape()[-1]}, z);
  origin = stop_gradient(origin);
  const Value from = z - origin;
  const Rotation r(from, q - origin);
  return graft(q, r.row.lambda * r(from));
}

Value reflection(Value z, Value q) {
  Scope scope(*z.tape, "reflection");
  check_rows("reflection", z, q);
  const Directions row = directions(z, q);
  const Value r = unit_or_zero(row.u - row.v, direction_noise(z.dtype()));
  return graft(q, row.lambda * (z - r * (2.0 * dot(r, z))));
}

}  // namespace sg
