#include "core/contract.h"

#include <algorithm>
#include <cmath>

#include "core/autodiff.h"
#include "core/program.h"
#include "core/rewrite.h"

namespace sg {
namespace {

// Where g states the entry at (row i, output e) x (row j, input d): its index, or -1 where it states zero.
struct Layout {
  std::int64_t n, e, d;  // rows, columns of z_q, columns of z
  int rank;
  bool blocks;

  std::int64_t index(std::int64_t i, std::int64_t output, std::int64_t j, std::int64_t input) const {
    if (!blocks) return (i * e + output) * n * d + j * d + input;
    if (i != j) return -1;
    return ((rank == 3 ? i * e : 0) + output) * d + input;
  }
};

Layout layout_of(const Tensor& g, Value z_q, Value z, Loc loc) {
  const Shape &a = z_q.shape(), &b = z.shape();
  if (a.rank() != 2 || b.rank() != 2 || a[0] != b[0])
    throw Error(ErrorKind::shape,
                fmt::format("expect_jacobian: z is {}, z_q is {}; both must be rows (N,...), as many of each\n  at {}",
                            to_string(z.type()), to_string(z_q.type()), to_string(loc)),
                loc);
  const Layout l{a[0], a[1], b[1], g.shape().rank(), true};
  if (g.shape() == Shape{l.e, l.d} || g.shape() == Shape{l.n, l.e, l.d}) return l;
  if (g.shape() == Shape{l.n * l.e, l.n * l.d}) return {l.n, l.e, l.d, 2, false};
  throw Error(
      ErrorKind::shape,
      fmt::format("expect_jacobian: G is {}, wanted [{},{}] for all rows, [{},{},{}] for each, or [{},{}]\n  at {}",
                  to_string(g.shape()), l.e, l.d, l.n, l.e, l.d, l.n * l.e, l.n * l.d, to_string(loc)),
      loc);
}

}  // namespace

Tensor jacobian(Value y, Value x, Backend& reference) {
  SG_CHECK(y.tape != nullptr && y.tape == x.tape, "y and x are on one tape");
  const Tape& tape = *y.tape;
  if (!is_real(y.dtype()) || !is_real(x.dtype()))
    fail(ErrorKind::dtype, "jacobian: y is {}, x is {}; both must be real", to_string(y.type()), to_string(x.type()));
  Rewriter copy(tape);
  for (std::size_t i = 0; i < tape.instrs().size(); ++i)
    if (op_def(tape.instrs()[i].op).role != Role::assign) copy.copy(static_cast<std::int32_t>(i));
  const Value on_copy[] = {copy.mapped(y.id), copy.mapped(x.id)};
  copy.out().set_origin({0, -1, {}, false});
  const Value u = copy.out().input("cotangent of the Jacobian", y.type());
  const Value g = vjp(std::span(&on_copy[0], 1), std::span(&u, 1), std::span(&on_copy[1], 1), IfUnreachable::zero)[0];

  CompileOptions plain;
  plain.fuse = plain.optimize = plain.exact_forward = plain.strict = false;
  Program p = compile(copy.out(), {g}, reference, plain);
  const std::int64_t rows = y.shape().elements(), columns = x.shape().elements();
  Tensor result({DType::f64, {rows, columns}}), unit(y.type()), row(g.type());
  for (std::int64_t i = 0; i < rows; ++i) {
    unit.set(i, 1);
    p.feed(u, unit);
    p.run();
    p.fetch_into(g, row);
    for (std::int64_t j = 0; j < columns; ++j) result.set(i * columns + j, row.at(j));
    unit.set(i, 0);
  }
  return result;
}

void expect_jacobian(Value z_q, Value z, const Tensor& g, Backend& reference, double tolerance, Loc loc) {
  const Layout layout = layout_of(g, z_q, z, loc);
  if ((z_q.dtype() != DType::f64 || z.dtype() != DType::f64) && tolerance < 1e-6)
    throw Error(ErrorKind::dtype,
                fmt::format("expect_jacobian: z is {}, z_q is {}; a tolerance of {:.3g} needs both in f64\n  at {}",
                            to_string(z.type()), to_string(z_q.type()), tolerance, to_string(loc)),
                loc);
  const Tensor got = jacobian(z_q, z, reference);
  std::int64_t wrong = 0;
  double worst = 0;
  std::string first;
  for (std::int64_t r = 0; r < layout.n * layout.e; ++r)
    for (std::int64_t c = 0; c < layout.n * layout.d; ++c) {
      const std::int64_t i = r / layout.e, output = r % layout.e, j = c / layout.d, input = c % layout.d;
      const std::int64_t stated = layout.index(i, output, j, input);
      const double wanted = stated < 0 ? 0 : g.at(stated), found = got.at(r * layout.n * layout.d + c);
      const double error = std::abs(found - wanted) / std::max(1.0, std::abs(wanted));
      if (error <= tolerance) continue;  // not true for NaN
      if (wrong++ == 0)
        first = fmt::format("d z_q[{},{}] / d z[{},{}] is {:.10g}, wanted {:.10g}", i, output, j, input, found, wanted);
      if (!(error <= worst)) worst = error;
    }
  if (wrong == 0) return;
  throw Error(
      ErrorKind::contract,
      fmt::format("expect_jacobian: {}\n  {} of {} entries differ, the worst by {:.3g} (tolerance {:.3g}, relative "
                  "to max(1, |wanted|))\n  {}  z_q {}\n  z   {}\n  at {}",
                  first, wrong, got.elements(), worst, tolerance, explain_gradient(z_q, z), z_q.tape->describe(z_q.id),
                  z.tape->describe(z.id), to_string(loc)),
      loc);
}

}  // namespace sg
