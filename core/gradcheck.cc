#include "core/gradcheck.h"

#include <algorithm>
#include <cmath>

#include "core/autodiff.h"
#include "core/contract.h"
#include "core/philox.h"
#include "core/program.h"

namespace sg {
namespace {

class Draws {  // numbers in [-1, 1], none near zero
 public:
  explicit Draws(std::uint32_t seed) : seed_(seed) {}
  Tensor tensor(const Shape& shape) {
    Tensor t({DType::f64, shape});
    for (std::int64_t i = 0; i < t.elements(); ++i) {
      const double u = uniform_block(random_block(seed_, 0, 77, count_++))[0];
      t.set(i, u < 0.5 ? -1 + 1.5 * u : 0.25 + 1.5 * (u - 0.5));
    }
    return t;
  }

 private:
  std::uint32_t seed_;
  std::uint64_t count_ = 0;
};

double inner(const Tensor& a, const Tensor& b) {
  double s = 0;
  for (std::int64_t i = 0; i < a.elements(); ++i) s += a.at(i) * b.at(i);
  return s;
}

bool is_frozen(const Tape& tape, const Instr& instr) {
  const GradKind kind = op_def(instr.op).grad;
  return !instr.inputs.empty() && !instr.outputs.empty() && tape.type(instr.outputs[0]).shape.elements() > 0 &&
         (kind == GradKind::barrier || kind == GradKind::piecewise);
}

// Everything that both sides of the comparison need, recorded on one tape.
struct Recorded {
  Tape tape;
  std::vector<Value> inputs;
  Value scalar1, scalar2;             // <u, f(x)> and <w, grad>
  std::vector<Value> grads1, grads2;  // per checked input
  std::vector<Tensor> at;
  std::vector<std::size_t> checked;

  void add_input(std::size_t i, const Tensor& x) {
    at.push_back(is_real(x.dtype()) ? x.cast(DType::f64) : x);
    inputs.push_back(tape.input(fmt::format("x{}", i), at.back().type()));
  }
  void feed(Program& p, const std::vector<Tensor>& values) const {
    for (std::size_t i = 0; i < inputs.size(); ++i) p.feed(fmt::format("x{}", i), values[i]);
  }
};

CompileOptions plain_options() {
  CompileOptions o;
  o.fuse = o.optimize = false;
  o.exact_forward = false;
  o.strict = false;
  return o;
}

// The tape with frozen instructions replaced by the values they have at the point.
Rewritten freeze(const Recorded& r, Backend& backend) {
  std::vector<Value> wanted;
  for (const Instr& instr : r.tape.instrs())
    if (is_frozen(r.tape, instr))
      for (std::int32_t v : instr.outputs) wanted.push_back(const_cast<Tape&>(r.tape).value(v));
  std::vector<Tensor> values;
  if (!wanted.empty()) {
    Program p = compile(r.tape, wanted, backend, plain_options());
    r.feed(p, r.at);
    p.run();
    for (const Value& v : wanted) values.push_back(p.fetch(v));
  }
  Rewriter w(r.tape);
  std::size_t next = 0;
  for (std::size_t i = 0; i < r.tape.instrs().size(); ++i) {
    const Instr& instr = r.tape.instrs()[i];
    if (!is_frozen(r.tape, instr)) {
      w.copy(static_cast<std::int32_t>(i));
      continue;
    }
    for (std::int32_t v : instr.outputs) w.replace(v, w.out().constant(values[next++]));
  }
  return w.finish();
}

}  // namespace

GradcheckResult gradcheck(const GraphFn& f, std::span<const Tensor> inputs, Backend& reference,
                          GradcheckOptions options) {
  if (options.order < 1 || options.order > 2)
    fail(ErrorKind::usage, "gradcheck: order {} given; 1 or 2 is supported", options.order);
  Recorded r;
  Draws draws(options.seed);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    r.add_input(i, inputs[i]);
    const bool wanted = options.wrt.empty() || (i < options.wrt.size() && options.wrt[i]);
    if (wanted && is_real(inputs[i].dtype())) r.checked.push_back(i);
  }
  if (r.checked.empty())
    fail(ErrorKind::usage, "gradcheck: none of the {} inputs is a real one to differentiate", inputs.size());
  auto weigh = [&](Value v) {
    const Value u = r.tape.constant(draws.tensor(v.shape()));
    const Value product = r.tape.emit1(op_with_role(Role::mul), {v, u});
    return sum_to_shape(product, Shape{}, Loc::current());
  };
  const Value y = f(r.tape, r.inputs);
  r.scalar1 = weigh(y);
  std::vector<Value> wrt;
  for (std::size_t i : r.checked) wrt.push_back(r.inputs[i]);
  r.grads1 = gradients(r.scalar1, wrt, IfUnreachable::zero);
  if (options.order == 2) {
    for (const Value& g : r.grads1) {
      const Value part = weigh(g);
      r.scalar2 = r.scalar2 ? add_cotangents(r.scalar2, part, Loc::current()) : part;
    }
    r.grads2 = gradients(r.scalar2, wrt, IfUnreachable::zero);
  }

  const Rewritten frozen = options.freeze ? freeze(r, reference) : Rewritten{nullptr, {}};
  const Tape& moved = options.freeze ? *frozen.tape : r.tape;
  auto on_moved = [&](Value v) {
    return options.freeze ? Value{frozen.tape.get(), frozen.map[static_cast<std::size_t>(v.id)]} : v;
  };
  std::vector<Value> exact = r.grads1, shifted{on_moved(r.scalar1)};
  exact.insert(exact.end(), r.grads2.begin(), r.grads2.end());
  if (options.order == 2) shifted.push_back(on_moved(r.scalar2));
  Program analytic = compile(r.tape, exact, reference, plain_options());
  r.feed(analytic, r.at);
  analytic.run();
  Program numeric = compile(moved, shifted, reference, plain_options());

  GradcheckResult result;
  for (int direction = 0; direction < options.directions; ++direction) {
    std::vector<Tensor> tangents, plus = r.at, minus = r.at;
    for (std::size_t i : r.checked) {
      tangents.push_back(draws.tensor(r.at[i].shape()));
      for (std::int64_t e = 0; e < r.at[i].elements(); ++e) {
        plus[i].set(e, r.at[i].at(e) + options.step * tangents.back().at(e));
        minus[i].set(e, r.at[i].at(e) - options.step * tangents.back().at(e));
      }
    }
    auto values_at = [&](const std::vector<Tensor>& x) {
      r.feed(numeric, x);
      numeric.run();
      std::vector<double> v;
      for (const Value& s : shifted) v.push_back(numeric.fetch_scalar(s));
      return v;
    };
    const std::vector<double> up = values_at(plus), down = values_at(minus);
    for (int order = 1; order <= options.order; ++order) {
      const auto& grads = order == 1 ? r.grads1 : r.grads2;
      double a = 0;
      for (std::size_t k = 0; k < grads.size(); ++k) a += inner(analytic.fetch(grads[k]), tangents[k]);
      const double n =
          (up[static_cast<std::size_t>(order - 1)] - down[static_cast<std::size_t>(order - 1)]) / (2 * options.step);
      const double error = std::abs(a - n) / (1 + std::abs(n));
      const bool ok = error <= options.tolerance;  // false for NaN
      if (result.ok && (!ok || error >= result.error)) result = {ok, order, a, n, error, {}};
      if (!ok && result.message.empty())
        result.message = fmt::format(
            "gradcheck: order {} of direction {} differs: analytic {:.12g}, numeric {:.12g}, relative error {:.3g} > "
            "{:.3g}",
            order, direction, a, n, error, options.tolerance);
    }
  }
  return result;
}

Tensor jacobian(const GraphFn& f, std::span<const Tensor> inputs, std::size_t wrt, Backend& reference) {
  if (wrt >= inputs.size() || !is_real(inputs[wrt].dtype()))
    fail(ErrorKind::usage, "jacobian: input {} is not a real one of {} inputs", wrt, inputs.size());
  Tape tape;
  std::vector<Value> values;
  for (const Tensor& x : inputs) values.push_back(tape.constant(is_real(x.dtype()) ? x.cast(DType::f64) : x));
  return jacobian(f(tape, values), values[wrt], reference);
}

}  // namespace sg
