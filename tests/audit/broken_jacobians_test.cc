// Graphs whose flows look right and whose Jacobians are wrong, as real code was: each named by a Jacobian contract or
// by check_estimator, and the corrected twin of each raises nothing. See broken_flows_test.cc for "Reference".
#include <cmath>

#include "core/contract.h"
#include "ops/estimator_check.h"
#include "ops/estimators.h"
#include "ops/shape_ops.h"
#include "tests/audit/toy.h"

namespace sg::test {
namespace {

constexpr std::int64_t kRows = 4, kDim = 3;

Tensor identity(double factor = 1) {
  Tensor g({DType::f64, {kDim, kDim}});
  for (std::int64_t i = 0; i < kDim; ++i) g.set(i * (kDim + 1), factor);
  return g;
}

// (|q|/|z|) R per row, R = I - (u+v)(u+v)^T / (1 + u.v) + 2 v u^T: the rotation of u onto v. (2410.06424, eq. 4)
Tensor rotations(const Tensor& z, const Tensor& q) {
  const std::int64_t n = z.shape()[0], d = z.shape()[1];
  Tensor g({DType::f64, {n, d, d}});
  for (std::int64_t r = 0; r < n; ++r) {
    double zz = 0, qq = 0, zq = 0;
    for (std::int64_t i = r * d; i < (r + 1) * d; ++i)
      zz += z.at(i) * z.at(i), qq += q.at(i) * q.at(i), zq += z.at(i) * q.at(i);
    const double a = std::sqrt(zz), b = std::sqrt(qq), cosine = zq / (a * b);
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < d; ++j) {
        const double ui = z.at(r * d + i) / a, uj = z.at(r * d + j) / a, vi = q.at(r * d + i) / b,
                     vj = q.at(r * d + j) / b;
        g.set((r * d + i) * d + j, b / a * ((i == j ? 1 : 0) - (ui + vi) * (uj + vj) / (1 + cosine) + 2 * vi * uj));
      }
  }
  return g;
}

struct Rows {
  Tensor z_rows = normals({kRows, kDim}, 21), q_rows = normals({kRows, kDim}, 22);
  Tape tape;
  Value z = tape.constant(z_rows), q = tape.constant(q_rows);
};

Value length(Value x) { return norm(x, {-1}, true); }

// Whatever estimator a bug has, its twin keeps this contract.
void expect_rotation(Value (*f)(Value, Value)) {
  Rows rows;
  expect_jacobian(f(rows.z, rows.q), rows.z, rotations(rows.z_rows, rows.q_rows), reference_backend());
  const auto report = check_estimator(f, reference_backend(), {.backends = {&backend("cpu")}, .jacobian_z = rotations});
  EXPECT_TRUE(report.ok) << report.to_string();
}

std::string broken_contract(Value (*f)(Value, Value), DeclaredJacobian wanted) {
  Rows rows;
  const auto e = error_of(
      [&] { expect_jacobian(f(rows.z, rows.q), rows.z, wanted(rows.z_rows, rows.q_rows), reference_backend()); });
  if (!e) return {};
  EXPECT_EQ(to_string(e->kind()), to_string(ErrorKind::contract));
  return e->message();
}

TEST(BrokenGraphs, RotationAsReleasedKeepsItsContract) { expect_rotation(rotation_trick); }

// Reference 3.5 item 2: the synchronised update is applied to z_q. The encoder gets (1 + nu) J^T g. (vqtorch, whose
// rule it is, adds nu (q - sg q).)
TEST(BrokenGraphs, SyncRuleAfterTheEstimatorGivesOnePlusNu) {
  const auto broken = [](Value z, Value q) {
    const Value z_q = straight_through(z, q);
    return z_q + 0.3 * (z_q - stop_gradient(z_q));
  };
  const std::string text = broken_contract(broken, [](const Tensor&, const Tensor&) { return identity(); });
  SG_EXPECT_CONTAINS(text, "d z_q[0,0] / d z[0,0] is 1.3, wanted 1");
  Rows rows;
  const Value z_q = straight_through(rows.z, rows.q) + 0.3 * (rows.q - stop_gradient(rows.q));
  expect_jacobian(z_q, rows.z, identity(), reference_backend());
  expect_jacobian(z_q, rows.q, identity(0.3), reference_backend());
}

// EdoardoBotta/RQ-VAE-Recommender 54: the rotated vector is returned without its scale, and is not the embedding.
Value unscaled_rotation(Value z, Value q) {
  const Value u = stop_gradient(z / length(z)), v = stop_gradient(q / length(q)),
              w = stop_gradient((u + v) / length(u + v));
  return z - w * (2.0 * dot(w, z)) + v * (2.0 * dot(u, z));
}
TEST(BrokenGraphs, Recommender54RotationWithoutTheScale) {
  SG_EXPECT_CONTAINS(broken_contract(unscaled_rotation, rotations), "of 144 entries differ");
  const auto report = check_estimator(unscaled_rotation, reference_backend(), {.jacobian_z = rotations});
  EXPECT_FALSE(report.check("forward").ok);
  SG_EXPECT_CONTAINS(report.check("forward").message, "q there is");
  EXPECT_FALSE(report.check("jacobian z").ok);
}

// Reference 3.5 item 4 (rotate_to): right Jacobian, no correction; the training value is only close to the code.
Value uncorrected_rotation(Value z, Value q) { return unscaled_rotation(z, q) * stop_gradient(length(q) / length(z)); }
TEST(BrokenGraphs, RotateToWithoutForwardCorrection) {
  EstimatorCheckOptions options{.jacobian_z = rotations};
  const auto report = check_estimator(uncorrected_rotation, reference_backend(), options);
  EXPECT_TRUE(report.check("jacobian z").ok) << report.check("jacobian z").message;
  EXPECT_FALSE(report.check("forward").ok);
  SG_EXPECT_CONTAINS(report.check("forward").message, "graft(q, gz)");
}

// cfifty/rotation_trick src/models/vq_vae.py: w = (u + v)/|u + v| is 0/0 where q = -z.
TEST(BrokenGraphs, RotationOfOppositeRowsIsNaN) {
  const auto corrected = [](Value z, Value q) { return graft(q, uncorrected_rotation(z, q)); };
  const auto report = check_estimator(corrected, reference_backend());
  EXPECT_TRUE(report.check("forward").ok) << report.check("forward").message;
  EXPECT_FALSE(report.check("degenerate rows").ok);
  SG_EXPECT_CONTAINS(report.check("degenerate rows").message, "the gradient in z is");
  EXPECT_TRUE(check_estimator(rotation_trick, reference_backend()).check("degenerate rows").ok);
}

// Fifty et al., code of Tables 3 and 4 (rot_vqgan.py): the unit vector is not stopped, so the Jacobian is
// lambda R (I - u u^T), and the radial part of the gradient is lost.
Value rotation_of_unit_vector(Value z, Value q) {
  const Value unit = z / length(z);
  const Value u = stop_gradient(unit), v = stop_gradient(q / length(q)), w = stop_gradient((u + v) / length(u + v));
  return (unit - w * (2.0 * dot(w, unit)) + v * (2.0 * dot(u, unit))) * stop_gradient(length(q));
}
TEST(BrokenGraphs, Table3RotationFromAnUnstoppedUnitVector) {
  SG_EXPECT_CONTAINS(broken_contract(rotation_of_unit_vector, rotations), "div");
  const auto without_radius = [](const Tensor& z, const Tensor& q) {
    Tensor g = rotations(z, q);
    for (std::int64_t r = 0; r < z.shape()[0]; ++r) {
      double zz = 0;
      for (std::int64_t j = 0; j < kDim; ++j) zz += z.at(r * kDim + j) * z.at(r * kDim + j);
      for (std::int64_t i = 0; i < kDim; ++i) {  // row - (row . u) u
        double along = 0;
        for (std::int64_t j = 0; j < kDim; ++j) along += g.at((r * kDim + i) * kDim + j) * z.at(r * kDim + j) / zz;
        for (std::int64_t j = 0; j < kDim; ++j)
          g.set((r * kDim + i) * kDim + j, g.at((r * kDim + i) * kDim + j) - along * z.at(r * kDim + j));
      }
    }
    return g;
  };
  Rows rows;
  expect_jacobian(rotation_of_unit_vector(rows.z, rows.q), rows.z, without_radius(rows.z_rows, rows.q_rows),
                  reference_backend());
}

// Fifty et al., code of the Table 7 ablation "R e + (q - R e)": the same unit vector and no scale, (1/|e|) R (I - u
// u^T).
TEST(BrokenGraphs, Table7AblationIsNotR) {
  const auto broken = [](Value z, Value q) {
    return graft(q, rotation_of_unit_vector(z, q) / stop_gradient(length(q)));
  };
  const auto only_r = [](const Tensor& z, const Tensor& q) {
    Tensor g = rotations(z, q);
    for (std::int64_t r = 0; r < z.shape()[0]; ++r) {
      double zz = 0, qq = 0;
      for (std::int64_t j = 0; j < kDim; ++j)
        zz += z.at(r * kDim + j) * z.at(r * kDim + j), qq += q.at(r * kDim + j) * q.at(r * kDim + j);
      for (std::int64_t i = r * kDim * kDim; i < (r + 1) * kDim * kDim; ++i) g.set(i, g.at(i) * std::sqrt(zz / qq));
    }
    return g;
  };
  SG_EXPECT_CONTAINS(broken_contract(broken, only_r), "differ");
  Rows rows;
  expect_jacobian(graft(rows.q, unscaled_rotation(rows.z, rows.q)), rows.z, only_r(rows.z_rows, rows.q_rows),
                  reference_backend());
}

// Reference 2.2, the reflection ablation: it also turns z onto q, so only the Jacobian tells it from the rotation.
TEST(BrokenGraphs, ReflectionInPlaceOfTheRotation) {
  SG_EXPECT_CONTAINS(broken_contract(reflection, rotations), "differ");
  EXPECT_TRUE(check_estimator(reflection, reference_backend()).ok);
}

// espnet PR6284, encodec 33: a revived code gets a row of the batch, the running sum does not, and the next step's
// average is the dead code again.
TEST(BrokenGraphs, EspnetPr6284RevivalWithoutTheSum) {
  for (const bool broken : {true, false}) {
    Tape tape;
    Variable count("quantizer.count", Tensor::of<double>({4}, {3, 0.01, 2, 0.02})),
        total("quantizer.sum", normals({4, kDim}, 5));
    const Value fresh = tape.constant(normals({4, kDim}, 6));
    const Value dead = less(tape.read(count), 0.1), dead_rows = reshape(dead, Shape{4, 1});
    const Value counts = where(dead, 0.1, tape.read(count));
    const Value sums = broken ? tape.read(total) : where(dead_rows, 0.1 * fresh, tape.read(total));
    const Value averages = sums / reshape(counts, Shape{4, 1});  // what the next step makes the codes of
    Tensor wanted({DType::f64, {4, kDim, kDim}});
    for (const std::int64_t row : {1, 3})
      for (std::int64_t i = 0; i < kDim; ++i) wanted.set((row * kDim + i) * kDim + i, 1);
    if (!broken) {
      expect_jacobian(averages, fresh, wanted, reference_backend());
      continue;
    }
    const auto e = error_of([&] { expect_jacobian(averages, fresh, wanted, reference_backend()); });
    ASSERT_TRUE(e);
    SG_EXPECT_CONTAINS(e->message(), "d z_q[1,0] / d z[1,0] is 0, wanted 1");
    SG_EXPECT_CONTAINS(e->message(), "unconnected");
  }
}

}  // namespace
}  // namespace sg::test
