#include "ops/estimator_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/autodiff.h"
#include "core/contract.h"
#include "core/gradcheck.h"
#include "core/philox.h"
#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"

namespace sg {
namespace {

constexpr std::string_view kForward = "forward", kJacobianZ = "jacobian z", kJacobianQ = "jacobian q",
                           kGradcheck1 = "gradcheck 1", kGradcheck2 = "gradcheck 2", kDegenerate = "degenerate rows",
                           kTranslation = "translation", kScale = "scale";

// An estimator with rows to try it on.
class Checker {
 public:
  Checker(const Estimator& estimator, Backend& reference, const EstimatorCheckOptions& options)
      : estimator_(estimator), reference_(reference), options_(options) {
    backends_.push_back(&reference);
    for (Backend* b : options.backends)
      if (b != &reference) backends_.push_back(b);
  }

  // f returns what it found; a wrong result or an Error of the estimator fails the check.
  template <class F>
  void add(std::string_view name, F&& f) {
    EstimatorCheck check{std::string(name), true, {}};
    try {
      check.message = f();
    } catch (const Error& e) {
      check.ok = false;
      check.message = e.message();
    }
    report_.ok = report_.ok && check.ok;
    report_.checks.push_back(std::move(check));
  }
  EstimatorReport take() { return std::move(report_); }

  std::string forward() const {
    if (!options_.exact_forward) return "not asked for";
    for (const DType dtype : {DType::f32, DType::f64})
      for (const auto& [z_scale, q_scale] : kScales) {
        const Tensor z = rows(0, z_scale).cast(dtype), q = rows(1, q_scale).cast(dtype);
        for (Backend* b : backends_) expect_bits(z, q, *b, fmt::format("|z| about {}, |q| about {}", z_scale, q_scale));
      }
    std::string names;
    for (const Backend* b : backends_) names += (names.empty() ? "" : ", ") + std::string(b->name());
    return "z_q has the bits of q on " + names;
  }

  // Declared and found, in z (input 0) or in q (input 1).
  std::string declared(std::size_t input, const DeclaredJacobian& wanted) const {
    for (const auto& [z_scale, q_scale] : kScales) {
      const Tensor z = rows(0, z_scale), q = rows(1, q_scale);
      Tape tape;
      const Value in[] = {tape.constant(z), tape.constant(q)};
      expect_jacobian(estimator_(in[0], in[1]), in[input], wanted(z, q), reference_, options_.tolerance);
    }
    return "as declared";
  }

  std::string nothing_reaches_q() const {
    Tape tape;
    const Value z = tape.constant(rows(0, 1)), q = tape.constant(rows(1, 1)), z_q = estimator_(z, q);
    if (gradient_flow(z_q, q).state == GradientFlow::State::live)
      fail(ErrorKind::contract, "a gradient reaches q, and no Jacobian in q is declared\n  {}",
           explain_gradient(z_q, q));
    return "no gradient reaches q";
  }

  std::string derivatives(int order) const {
    const Tensor inputs[] = {rows(0, 1), rows(1, 1)};
    GradcheckOptions o;
    o.order = order;
    o.seed = options_.seed;
    // tanh: z_q alone is linear in z as a rule, and its second derivative would say nothing.
    const auto result = gradcheck([&](Tape&, std::span<const Value> in) { return tanh(estimator_(in[0], in[1])); },
                                  inputs, reference_, o);
    if (!result.ok) throw Error(ErrorKind::contract, result.message);
    return fmt::format("analytic and numeric agree to {:.1e}", result.error);
  }

  // Rows for which a direction, a length or a difference is missing, and the others beside them.
  std::string degenerate() const {
    for (const DType dtype : {DType::f32, DType::f64}) {
      const double tiny = dtype == DType::f32 ? 1e-30 : 1e-200;
      const char* const kinds[] = {"z = 0", "q = 0", "z = q = 0", "q = -z", "q = z", "tiny z", "tiny q", "plain"};
      const std::int64_t n = std::size(kinds), d = options_.dim;
      Tensor z({dtype, {n, d}}), q({dtype, {n, d}});
      const Tensor a = rows(2, 1, n), b = rows(3, 1, n);
      for (std::int64_t i = 0; i < n * d; ++i) {
        const std::int64_t row = i / d;
        const double x = a.at(i), y = b.at(i);
        z.set(i, row == 0 || row == 2 ? 0 : row == 5 ? tiny * x : x);
        q.set(i, row == 1 || row == 2 ? 0 : row == 3 ? -x : row == 4 ? x : row == 6 ? tiny * y : y);
      }
      for (Backend* backend : backends_) {
        if (options_.exact_forward) expect_bits(z, q, *backend, "degenerate rows");
        run_on(
            z, q, *backend,
            [&](Value z_in, Value z_q) {
              const Value g = gradient(sum(square(z_q) + z_q), z_in, IfUnreachable::zero);
              return std::vector<Value>{z_q, g};
            },
            [&](const std::vector<Tensor>& got) {
              for (std::size_t k = 0; k < got.size(); ++k)
                for (std::int64_t i = 0; i < got[k].elements(); ++i)
                  if (!std::isfinite(got[k].at(i)))
                    fail(ErrorKind::contract, "{} is {} in column {} of a row with {}, {} on {}",
                         k == 0 ? "z_q" : "the gradient in z", got[k].at(i), i % d, kinds[i / d], to_string(dtype),
                         backend->name());
            });
      }
    }
    return "finite, forward and backward";
  }

  // The largest difference between the Jacobians at (z,q) and at the moved rows, relative to the larger entry.
  std::string moved(bool declared_invariant, std::string_view formula, double factor, double shift) const {
    const Tensor z = rows(0, 1), q = rows(1, 1);
    Tensor z_moved = z, q_moved = q;
    const Tensor direction = rows(4, shift, 1);
    for (std::int64_t i = 0; i < z.elements(); ++i) {
      const double c = direction.at(i % options_.dim);
      z_moved.set(i, factor * z.at(i) + c);
      q_moved.set(i, factor * q.at(i) + c);
    }
    const Tensor a = jacobian_in_z(z, q), b = jacobian_in_z(z_moved, q_moved);
    double largest = 0, difference = 0;
    for (std::int64_t i = 0; i < a.elements(); ++i) {
      largest = std::max({largest, std::abs(a.at(i)), std::abs(b.at(i))});
      difference = std::max(difference, std::abs(a.at(i) - b.at(i)));
    }
    const double relative = largest == 0 ? 0 : difference / largest;
    const bool invariant = relative <= options_.tolerance;
    if (declared_invariant && !invariant)
      fail(ErrorKind::contract,
           "declared invariant, but {} does not hold: entries of J differ by up to {:.3g} of {:.3g}", formula,
           difference, largest);
    return invariant ? fmt::format("invariant: {}", formula)
                     : fmt::format("not invariant: entries of J differ by up to {:.3g} of {:.3g}", difference, largest);
  }

 private:
  // Norms of equal size, of a small codebook at its start, and of the opposite.
  static constexpr std::pair<double, double> kScales[] = {{1, 1}, {30, 0.01}, {0.01, 10}};

  // Rows of N(0, scale^2), for each `which` another draw.
  Tensor rows(std::uint32_t which, double scale, std::int64_t count = 0) const {
    Tensor t({DType::f64, {count > 0 ? count : options_.rows, options_.dim}});
    for (std::int64_t i = 0; i < t.elements(); ++i)
      t.set(i, scale * normal_block(random_block(options_.seed, 0, which, static_cast<std::uint64_t>(i)))[0]);
    return t;
  }

  Tensor jacobian_in_z(const Tensor& z, const Tensor& q) const {
    const Tensor inputs[] = {z, q};
    return jacobian([&](Tape&, std::span<const Value> in) { return estimator_(in[0], in[1]); }, inputs, 0, reference_);
  }

  // Records z_q, runs what `values` makes of it, hands the results to `look`. A backend need not have float64.
  template <class Values, class Look>
  void run_on(const Tensor& z, const Tensor& q, Backend& backend, Values&& values, Look&& look) const {
    Tape tape;
    const Value z_in = tape.input("z", z.type()), q_in = tape.input("q", q.type());
    const std::vector<Value> wanted = values(z_in, estimator_(z_in, q_in));
    std::vector<Tensor> got;
    try {
      Program p = compile(tape, wanted, backend);
      p.feed(z_in, z);
      p.feed(q_in, q);
      p.run();
      for (const Value& v : wanted) got.push_back(p.fetch(v));
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::unsupported && z.dtype() == DType::f64) return;
      throw;
    }
    look(got);
  }

  void expect_bits(const Tensor& z, const Tensor& q, Backend& backend, const std::string& what) const {
    run_on(
        z, q, backend, [](Value, Value z_q) { return std::vector<Value>{z_q}; },
        [&](const std::vector<Tensor>& got) {
          if (got[0].type() != q.type())
            fail(ErrorKind::contract, "z_q is {}, q is {}", to_string(got[0].type()), to_string(q.type()));
          if (std::memcmp(got[0].data(), q.data(), q.bytes()) == 0) return;
          for (std::int64_t i = 0; i < q.elements(); ++i)
            if (got[0].at(i) != q.at(i) || std::signbit(got[0].at(i)) != std::signbit(q.at(i)))
              fail(ErrorKind::contract, "z_q[{},{}] is {:.9g}, q there is {:.9g} ({}, {} on {}); end in graft(q, gz)",
                   i / options_.dim, i % options_.dim, got[0].at(i), q.at(i), what, to_string(q.dtype()),
                   backend.name());
        });
  }

  const Estimator& estimator_;
  Backend& reference_;
  const EstimatorCheckOptions& options_;
  std::vector<Backend*> backends_;
  EstimatorReport report_;
};

}  // namespace

EstimatorReport check_estimator(const Estimator& estimator, Backend& reference, const EstimatorCheckOptions& options) {
  Checker checker(estimator, reference, options);
  checker.add(kForward, [&] { return checker.forward(); });
  if (options.jacobian_z) checker.add(kJacobianZ, [&] { return checker.declared(0, options.jacobian_z); });
  checker.add(kJacobianQ, [&] {
    return options.jacobian_q ? checker.declared(1, options.jacobian_q) : checker.nothing_reaches_q();
  });
  checker.add(kGradcheck1, [&] { return checker.derivatives(1); });
  checker.add(kGradcheck2, [&] { return checker.derivatives(2); });
  checker.add(kDegenerate, [&] { return checker.degenerate(); });
  checker.add(kTranslation,
              [&] { return checker.moved(options.translation_invariant, "J(z+c, q+c) = J(z, q)", 1, 3); });
  checker.add(kScale, [&] { return checker.moved(options.scale_invariant, "J(s z, s q) = J(z, q)", 7, 0); });
  return checker.take();
}

const EstimatorCheck& EstimatorReport::check(std::string_view name) const {
  for (const EstimatorCheck& c : checks)
    if (c.name == name) return c;
  fail(ErrorKind::usage, "check_estimator: no check is named '{}'\n{}", name, to_string());
}

std::string EstimatorReport::to_string() const {
  std::string text;
  for (const EstimatorCheck& c : checks)
    text += fmt::format("{:<7} {:<16} {}\n", c.ok ? "ok" : "FAILED", c.name, c.message);
  return text;
}

}  // namespace sg
