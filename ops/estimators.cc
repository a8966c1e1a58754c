// Gradient estimators. Each ends in graft(q, gz) = gz + stop_gradient(q - gz), whose forward value is q (bit for bit
// under the exact-forward pass) and whose Jacobian in z is that of gz, a linear map of z with a stopped matrix.
//
// Rows without a direction: where |z| counts as zero the map is the identity (the straight-through estimator), where
// only |q| does it is zero, as lambda = |q|/|z| says. All guards choose a per-row factor and add nothing to a norm, so
// that the Jacobian of every other row is exact.
#include "ops/estimators.h"

#include <limits>

#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

// Norms up to this one count as zero. Its square is a normal number in f32; squares of shorter rows underflow there.
constexpr double kTinyNorm = 1e-18;

// A sum or difference of unit vectors up to this length is rounding noise without a direction.
double direction_noise(DType dtype) {
  return 64 *
         (dtype == DType::f64 ? std::numeric_limits<double>::epsilon() : double{std::numeric_limits<float>::epsilon()});
}

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

// 1 / length where it is above the threshold, else 0.
Value inverse_above(Value length, double threshold) {
  return where(greater(length, threshold), 1.0 / maximum(length, kTinyNorm), 0.0);
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

// The row scaled to length 1, or 0 where it is noise.
Value unit_or_zero(Value row) { return row * inverse_above(norm(row, {-1}, true), direction_noise(row.dtype())); }

Value identity_matrix(Tape& tape, std::int64_t size, DType dtype) {
  Tensor eye({dtype, {size, size}});
  for (std::int64_t i = 0; i < size; ++i) eye.set(i * size + i, 1.0);
  return tape.constant(eye);
}

}  // namespace

Value graft(Value forward, Value gradient) { return gradient + stop_gradient(forward - gradient); }

Value straight_through(Value z, Value q) {
  Scope scope(*z.tape, "ste");
  check_rows("straight_through", z, q);
  return graft(q, z);
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

Value rotation_trick(Value z, Value q) {
  Scope scope(*z.tape, "rotation");
  check_rows("rotation_trick", z, q);
  const Directions row = directions(z, q);
  const Value w = unit_or_zero(row.u + row.v);
  const Value rotated = z - w * (2.0 * dot(w, z)) + row.v * (2.0 * dot(row.u, z));
  return graft(q, row.lambda * rotated);
}

Value reflection(Value z, Value q) {
  Scope scope(*z.tape, "reflection");
  check_rows("reflection", z, q);
  const Directions row = directions(z, q);
  const Value r = unit_or_zero(row.u - row.v);
  return graft(q, row.lambda * (z - r * (2.0 * dot(r, z))));
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
  if (z.shape().rank() != 2) fail_on(fmt::format("g-dense: z is {}, must be (N,D)", to_string(z.type())), {{"z", z}});
  const std::int64_t n = z.shape()[0], d = z.shape()[1];
  const Directions row = directions(z, q);
  const Value w = unit_or_zero(row.u + row.v);
  const auto outer = [&](Value a, Value b) { return reshape(a, Shape{n, d, 1}) * reshape(b, Shape{n, 1, d}); };
  const Value r = identity_matrix(*z.tape, d, z.dtype()) - 2.0 * outer(w, w) + 2.0 * outer(row.v, row.u);
  return g_matrix(z, q, reshape(row.lambda, Shape{n, 1, 1}) * r);
}

}  // namespace sg
