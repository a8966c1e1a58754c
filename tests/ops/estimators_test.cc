// The gradient estimators against their contracts, in float64: declared Jacobians to 1e-10, the same at order 2, the
// bits of q forward, nothing to q, rows without a direction.
#include "ops/estimator_table.h"

#include <fmt/format.h>

#include <cmath>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "core/gradcheck.h"
#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/reduce.h"
#include "tests/conformance/cases.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

constexpr std::int64_t kRows = 5, kDim = 4;
using Matrix = std::vector<double>;  // kDim x kDim, row-major
using Row = std::vector<double>;

double inner(const Row& a, const Row& b) {
  double s = 0;
  for (std::size_t i = 0; i < a.size(); ++i) s += a[i] * b[i];
  return s;
}
double length(const Row& a) { return std::sqrt(inner(a, a)); }

Row row_of(const Tensor& t, std::int64_t row) {
  Row r;
  for (std::int64_t i = 0; i < kDim; ++i) r.push_back(t.at(row * kDim + i));
  return r;
}

Row scaled(Row a, double factor) {
  for (double& x : a) x *= factor;
  return a;
}
Row plus(Row a, const Row& b, double factor = 1) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += factor * b[i];
  return a;
}

Matrix identity() {
  Matrix m(kDim * kDim, 0.0);
  for (std::size_t i = 0; i < kDim; ++i) m[i * kDim + i] = 1;
  return m;
}
Matrix with_outer(Matrix m, const Row& a, const Row& b, double factor) {
  for (std::size_t i = 0; i < kDim; ++i)
    for (std::size_t j = 0; j < kDim; ++j) m[i * kDim + j] += factor * a[i] * b[j];
  return m;
}

// (|q|/|z|) R with R the rotation of u onto v in their plane, from the paper's formula written another way:
// R = I - (u+v)(u+v)^T / (1 + u.v) + 2 v u^T.
Matrix rotation_matrix(const Row& z, const Row& q) {
  const Row u = scaled(z, 1 / length(z)), v = scaled(q, 1 / length(q)), w = plus(u, v);
  return scaled(with_outer(with_outer(identity(), w, w, -1 / (1 + inner(u, v))), v, u, 2), length(q) / length(z));
}
Matrix reflection_matrix(const Row& z, const Row& q) {
  const Row u = scaled(z, 1 / length(z)), v = scaled(q, 1 / length(q)), difference = plus(u, v, -1);
  const Row r = scaled(difference, 1 / length(difference));
  return scaled(with_outer(identity(), r, r, -2), length(q) / length(z));
}

Tensor rows(std::uint64_t seed, double scale = 1) {
  Rng rng(seed);
  return normal_reals({kRows, kDim}, scale)(rng).cast(DType::f64);
}

Tensor jacobian_in_z(const std::string& name, const Tensor& z, const Tensor& q) {
  const Tensor inputs[] = {z, q};
  return jacobian([&](Tape&, std::span<const Value> x) { return estimator_by_name(name)(x[0], x[1]); }, inputs, 0,
                  reference_backend());
}

// The Jacobian of all rows is block diagonal with these blocks.
void expect_blocks(const Tensor& jacobian, const std::vector<Matrix>& blocks, const std::string& what) {
  const std::int64_t n = kRows * kDim;
  ASSERT_EQ(jacobian.shape(), (Shape{n, n}));
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      const double wanted =
          i / kDim == j / kDim
              ? blocks[static_cast<std::size_t>(i / kDim)][static_cast<std::size_t>(i % kDim * kDim + j % kDim)]
              : 0;
      ASSERT_NEAR(jacobian.at(i * n + j), wanted, 1e-10 * std::max(1.0, std::abs(wanted)))
          << what << " at " << i << "," << j;
    }
}

std::vector<Matrix> declared(const std::string& name, const Tensor& z, const Tensor& q) {
  double z_mean = 0, q_mean = 0;
  for (std::int64_t r = 0; r < kRows; ++r) z_mean += length(row_of(z, r)), q_mean += length(row_of(q, r));
  std::vector<Matrix> blocks;
  for (std::int64_t r = 0; r < kRows; ++r) {
    const Row zr = row_of(z, r), qr = row_of(q, r);
    if (name == "ste") blocks.push_back(identity());
    if (name == "rotation" || name == "g-dense") blocks.push_back(rotation_matrix(zr, qr));
    if (name == "reflection") blocks.push_back(reflection_matrix(zr, qr));
    if (name == "g-scalar") blocks.push_back(scaled(identity(), q_mean / z_mean));
    if (name == "g-diagonal") blocks.push_back(scaled(identity(), length(qr) / length(zr)));
  }
  return blocks;
}

class Estimators : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(, Estimators, testing::ValuesIn(rows_only_estimator_names()), [](const auto& info) {
  std::string name = info.param;
  for (char& c : name)
    if (c == '-') c = '_';
  return name;
});

TEST_P(Estimators, HaveTheirDeclaredJacobian) {
  for (const double ratio : {1.0, 100.0, 1e-3}) {
    const Tensor z = rows(1), q = rows(2, ratio);
    const auto blocks = declared(GetParam(), z, q);
    ASSERT_EQ(blocks.size(), static_cast<std::size_t>(kRows)) << "no declared Jacobian for " << GetParam();
    expect_blocks(jacobian_in_z(GetParam(), z, q), blocks, GetParam());
  }
}

// Order 2: the gradient of sum(u . z_q^2) is 2 J^T (u z_q), and its own Jacobian is 2 J^T diag(u) J, as J is stopped.
TEST_P(Estimators, HaveTheirDeclaredSecondDerivatives) {
  const Tensor z = rows(3), q = rows(4), weights = rows(5);
  const Tensor inputs[] = {z, q, weights};
  const GraphFn gradient_in_z = [&](Tape&, std::span<const Value> x) {
    return gradient(sum(x[2] * square(estimator_by_name(GetParam())(x[0], x[1]))), x[0]);
  };
  const Tensor second = jacobian(gradient_in_z, inputs, 0, reference_backend());
  std::vector<Matrix> blocks;
  const auto first = declared(GetParam(), z, q);
  for (std::int64_t r = 0; r < kRows; ++r) {
    Matrix h(kDim * kDim, 0.0);
    for (std::int64_t k = 0; k < kDim; ++k) {
      const auto& j = first[static_cast<std::size_t>(r)];
      const Row row(j.begin() + k * kDim, j.begin() + (k + 1) * kDim);
      h = with_outer(h, row, row, 2 * weights.at(r * kDim + k));
    }
    blocks.push_back(h);
  }
  expect_blocks(second, blocks, GetParam() + " order 2");
}

TEST_P(Estimators, PassFrozenGradcheckToOrderTwo) {
  const Tensor inputs[] = {rows(6), rows(7)};
  GradcheckOptions options;
  options.wrt = {true, false};
  const auto result =
      gradcheck([&](Tape&, std::span<const Value> x) { return tanh(estimator_by_name(GetParam())(x[0], x[1])); },
                inputs, reference_backend(), options);
  EXPECT_TRUE(result.ok) << result.message;
}

TEST_P(Estimators, SendNothingToTheCodes) {
  Tape tape;
  const Value z = tape.input("z", {DType::f64, {kRows, kDim}}), q = tape.input("q", {DType::f64, {kRows, kDim}});
  const Value z_q = estimator_by_name(GetParam())(z, q);
  EXPECT_EQ(gradient_flow(sum(z_q), q).state, GradientFlow::State::blocked);
  EXPECT_EQ(gradient_flow(sum(z_q), z).state, GradientFlow::State::live);
}

TEST_P(Estimators, HaveTheBitsOfTheCodesForward) {
  for (const char* name : {"reference", "cpu"}) {
    Rng rng(8);
    const Tensor z_rows = normal_reals({kRows, kDim}, 30)(rng), q_rows = normal_reals({kRows, kDim}, 0.01)(rng);
    Tape tape;
    const Value z = tape.constant(z_rows), q = tape.constant(q_rows);
    EXPECT_TRUE(same_bits(eval(estimator_by_name(GetParam())(z, q), backend(name)), q_rows)) << name;
  }
}

// z = 0, q = 0, both, q = -z, q = z, and lengths whose squares underflow.
TEST_P(Estimators, AreFiniteOnDegenerateRows) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const double tiny = dtype == DType::f32 ? 1e-30 : 1e-200;
    const Tensor z = Tensor::of<double>({6, 2}, {0, 0, 1, 2, 0, 0, 1, 2, 1, 2, tiny, tiny}).cast(dtype);
    const Tensor q = Tensor::of<double>({6, 2}, {1, 2, 0, 0, 0, 0, -1, -2, 1, 2, 3, 4}).cast(dtype);
    for (const char* name : {"reference", "cpu"}) {
      Tape tape;
      const Value zv = tape.input("z", z.type()), qv = tape.input("q", q.type());
      const Value z_q = estimator_by_name(GetParam())(zv, qv), g = gradient(sum(square(z_q) + z_q), zv);
      try {
        Program p = compile(tape, {z_q, g}, backend(name));
        p.feed(zv, z);
        p.feed(qv, q);
        p.run();
        EXPECT_TRUE(same_bits(p.fetch(z_q), q)) << name;
        const Tensor got = p.fetch(g);
        for (std::int64_t i = 0; i < got.elements(); ++i)
          EXPECT_TRUE(std::isfinite(got.at(i))) << name << " " << to_string(dtype) << " element " << i;
      } catch (const Error& e) {
        if (e.kind() != ErrorKind::unsupported) throw;  // a backend need not have float64
      }
    }
  }
}

TEST_P(Estimators, RefuseRowsThatDiffer) {
  Tape tape;
  const Value z = tape.input("z", {DType::f32, {3, 4}}), q = tape.input("q", {DType::f32, {3, 5}});
  SG_EXPECT_ERROR(shape, "f32[3,5]", estimator_by_name(GetParam())(z, q));
}

Matrix block_at(const Tensor& jacobian, std::int64_t row, std::int64_t dim) {
  Matrix m;
  const std::int64_t n = jacobian.shape()[1];
  for (std::int64_t i = 0; i < dim; ++i)
    for (std::int64_t j = 0; j < dim; ++j) m.push_back(jacobian.at((row * dim + i) * n + row * dim + j));
  return m;
}

TEST(RotationTrick, OfOppositeRowsIsTheReflection) {
  const Tensor z = Tensor::of<double>({1, 2}, {3, 4}), q = Tensor::of<double>({1, 2}, {-6, -8});
  const Matrix j = block_at(jacobian_in_z("rotation", z, q), 0, 2);
  const double wanted[] = {2 * (1 - 2 * 0.36), 2 * (-2 * 0.48), 2 * (-2 * 0.48),
                           2 * (1 - 2 * 0.64)};  // 2 (I - 2 u u^T)
  for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(j[i], wanted[i], 1e-10);
}

TEST(RotationTrick, OfEqualRowsIsTheIdentity) {
  const Tensor z = Tensor::of<double>({1, 2}, {3, 4});
  const Matrix j = block_at(jacobian_in_z("rotation", z, z), 0, 2);
  const double wanted[] = {1, 0, 0, 1};
  for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(j[i], wanted[i], 1e-10);
}

TEST(RotationTrick, TurnsZOntoQ) {
  const Tensor z = rows(11), q = rows(12, 3);
  const Tensor j = jacobian_in_z("rotation", z, q);
  for (std::int64_t r = 0; r < kRows; ++r) {
    const Matrix block = block_at(j, r, kDim);
    for (std::int64_t i = 0; i < kDim; ++i) {
      double turned = 0;
      for (std::int64_t k = 0; k < kDim; ++k)
        turned += block[static_cast<std::size_t>(i * kDim + k)] * z.at(r * kDim + k);
      EXPECT_NEAR(turned, q.at(r * kDim + i), 1e-10);
    }
  }
}

TEST(RotationTrick, AgreesWithTheDenseMatrixFormNearOppositeRows) {
  Tensor z = rows(13), q({DType::f64, {kRows, kDim}});
  const Tensor nudge = rows(14);
  for (std::int64_t i = 0; i < z.elements(); ++i) q.set(i, -2 * z.at(i) + 1e-3 * nudge.at(i));
  const Tensor a = jacobian_in_z("rotation", z, q), b = jacobian_in_z("g-dense", z, q);
  for (std::int64_t i = 0; i < a.elements(); ++i) EXPECT_NEAR(a.at(i), b.at(i), 1e-10);
}

TEST(GMatrix, HasExactlyTheJacobianItIsGiven) {
  const Tensor z = rows(21), q = rows(22);
  Rng rng(23);
  for (const Shape& shape : {Shape{}, Shape{kDim}, Shape{kRows, kDim}, Shape{kRows, kDim, kDim}}) {
    const Tensor g = normal_reals(shape)(rng).cast(DType::f64);
    const Tensor inputs[] = {z, q, g};
    const GraphFn f = [](Tape&, std::span<const Value> x) { return g_matrix(x[0], x[1], x[2]); };
    std::vector<Matrix> blocks;
    for (std::int64_t r = 0; r < kRows; ++r) {
      Matrix m(kDim * kDim, 0.0);
      for (std::int64_t i = 0; i < kDim; ++i)
        for (std::int64_t j = 0; j < kDim; ++j) {
          double& cell = m[static_cast<std::size_t>(i * kDim + j)];
          if (shape.rank() == 3)
            cell = g.at((r * kDim + i) * kDim + j);
          else if (i == j)
            cell = g.at(shape.rank() == 0 ? 0 : shape.rank() == 1 ? i : r * kDim + i);
        }
      blocks.push_back(m);
    }
    expect_blocks(jacobian(f, inputs, 0, reference_backend()), blocks, to_string(shape));
    Tape tape;
    const Value gv = tape.input("g", g.type()), zv = tape.input("z", z.type()), qv = tape.input("q", q.type());
    EXPECT_NE(gradient_flow(sum(g_matrix(zv, qv, gv)), gv).state, GradientFlow::State::live) << "G is stopped";
  }
}

TEST(GMatrix, RefusesAGOfAnotherShape) {
  Tape tape;
  const Value z = tape.input("z", {DType::f32, {3, 4}}), q = tape.input("q", {DType::f32, {3, 4}});
  SG_EXPECT_ERROR(shape, "", g_matrix(z, q, tape.input("a", {DType::f32, {4, 4, 4}})));
  SG_EXPECT_ERROR(shape, "", g_matrix(z, q, tape.input("b", {DType::f32, {5}})));
}

TEST(EstimatorNames, AreFoundAndListed) {
  for (const auto& name : estimator_names()) EXPECT_EQ(estimator_by_name(name).def.name, name);
  for (const auto& name : estimator_names()) SG_EXPECT_ERROR(usage, name, estimator_by_name("nosuch"));
}

// A new estimator is one function; it needs no engine and no VJP.
Value half_trust(Value z, Value q) {
  const Value gz = 0.5 * z;
  return gz + stop_gradient(q - gz);
}

TEST(Estimator, WrittenByAUserWorksAtOnce) {
  const Tensor inputs[] = {rows(31), rows(32)};
  const Tensor j =
      jacobian([](Tape&, std::span<const Value> x) { return half_trust(x[0], x[1]); }, inputs, 0, reference_backend());
  expect_blocks(j, std::vector<Matrix>(kRows, scaled(identity(), 0.5)), "half_trust");
}

}  // namespace
}  // namespace sg::test
