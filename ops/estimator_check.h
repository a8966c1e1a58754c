// What a gradient estimator has to fulfil, checked in one call: a user's test of a new estimator is ten lines.
//
//   const EstimatorReport report = check_estimator(half_trust, backend("reference"), {.backends = {&backend("cpu")}});
//   EXPECT_TRUE(report.ok) << report.to_string();
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/backend.h"
#include "core/tensor.h"
#include "ops/estimators.h"

namespace sg {

// The Jacobian that an estimator declares at rows z and codes q (N,D), f64: (D,D), (N,D,D) or (N*D,N*D).
using DeclaredJacobian = std::function<Tensor(const Tensor& z, const Tensor& q)>;

struct EstimatorCheckOptions {
  std::vector<Backend*> backends{};    // forward bits and degenerate rows are checked on these too
  DeclaredJacobian jacobian_z{};       // compared where given
  DeclaredJacobian jacobian_q{};       // compared where given; without it no gradient may reach q
  bool exact_forward = true;           // z_q has the bits of q; off: not asked for (NSVQ)
  bool translation_invariant = false;  // J(z + c, q + c) = J(z, q); reported in any case
  bool scale_invariant = false;        // J(s z, s q) = J(z, q); reported in any case
  std::int64_t rows = 5, dim = 4;
  std::uint32_t seed = 1;
  double tolerance = 1e-10;  // of Jacobians, relative to max(1, |wanted|)
};

struct EstimatorCheck {
  std::string name;  // "forward", "jacobian z", "jacobian q", "gradcheck 1", "gradcheck 2", "degenerate rows",
                     // "translation", "scale"
  bool ok = true;
  std::string message;  // what was found
};

struct EstimatorReport {
  std::vector<EstimatorCheck> checks;
  bool ok = true;                                            // all of them
  const EstimatorCheck& check(std::string_view name) const;  // Error{usage} where there is none
  std::string to_string() const;                             // one line each
};

// Throws nothing of its own; an Error that the estimator itself causes fails the check in which it occurs.
EstimatorReport check_estimator(const Estimator& estimator, Backend& reference,
                                const EstimatorCheckOptions& options = {});

}  // namespace sg
