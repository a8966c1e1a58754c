// The gradient estimators of two rows, z and q, against their contracts, in float64: declared Jacobians to 1e-10, the
// same at order 2, the bits of q forward, a gradient in q only where it is declared, rows without a direction.
#include <fmt/format.h>

#include <cmath>
#include <set>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "core/gradcheck.h"
#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/estimator_table.h"
#include "ops/gradient.h"
#include "ops/reduce.h"
#include "tests/conformance/cases.h"
#include "tests/ops/matrices.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

constexpr std::int64_t kRows = 5, kDim = 4;

Tensor rows(std::uint64_t seed, double scale = 1) {
  Rng rng(seed);
  return normal_reals({kRows, kDim}, scale)(rng).cast(DType::f64);
}

Tensor jacobian_of(const std::string& name, const Tensor& z, const Tensor& q, std::size_t wrt = 0) {
  const Tensor inputs[] = {z, q};
  return jacobian([&](Tape&, std::span<const Value> x) { return estimator_by_name(name)(x[0], x[1]); }, inputs, wrt,
                  reference_backend());
}

struct Declared {
  Matrix z = zero(kDim), q = zero(kDim);
};

// Of one row, given the mean lengths of the batch's rows, with default arguments.
Declared declared(const std::string& name, const Row& z, const Row& q, double z_mean, double q_mean) {
  const Matrix eye = identity(kDim);
  const double lambda = length(q) / length(z);
  const Row d = unit(q - z), u = unit(z);
  if (name == "ste") return {eye};
  if (name == "sync") return {eye, 0.2 * eye};
  if (name == "rotation" || name == "g-dense") return {lambda * rotation_of(z, q)};
  if (name == "rotation-released") return {lambda * (rotation_of(z, q) * (eye - outer(u, u)))};
  if (name == "rotation-corrected" || name == "g-low-rank") return {rotation_of(z, q)};
  if (name == "rotation-inverse") return {1 / (8 * inner(q - z, q - z)) * rotation_of(z, q)};
  if (name == "two-parameter") return {std::sqrt(lambda) * rotation_of(z, q)};
  if (name == "reflection") return {lambda * reflection_of(z, q)};
  if (name == "g-scalar") return {q_mean / z_mean * eye};
  if (name == "g-diagonal") return {lambda * eye};
  if (name == "radius" || name == "diveq-detach") return {eye - outer(d, d), outer(d, d)};
  ADD_FAILURE() << "no declared Jacobian for " << name;
  return {};
}

std::vector<Declared> declared(const std::string& name, const Tensor& z, const Tensor& q) {
  double z_mean = 0, q_mean = 0;
  for (std::int64_t r = 0; r < kRows; ++r) z_mean += length(row_of(z, r)), q_mean += length(row_of(q, r));
  std::vector<Declared> all;
  for (std::int64_t r = 0; r < kRows; ++r) all.push_back(declared(name, row_of(z, r), row_of(q, r), z_mean, q_mean));
  return all;
}

Matrix in_z(const std::vector<Declared>& rows) {
  std::vector<Matrix> blocks;
  for (const Declared& row : rows) blocks.push_back(row.z);
  return block_diagonal(blocks);
}
Matrix in_q(const std::vector<Declared>& rows) {
  std::vector<Matrix> blocks;
  for (const Declared& row : rows) blocks.push_back(row.q);
  return block_diagonal(blocks);
}

std::string test_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

class Estimators : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(, Estimators, testing::ValuesIn(rows_only_estimator_names()), test_name);

TEST_P(Estimators, HaveTheirDeclaredJacobians) {
  for (const double ratio : {1.0, 100.0, 1e-3}) {
    const Tensor z = rows(1), q = rows(2, ratio);
    const auto wanted = declared(GetParam(), z, q);
    EXPECT_LE(error_of_matrix(jacobian_of(GetParam(), z, q, 0), in_z(wanted)), 1e-10) << "in z, |q|/|z| " << ratio;
    EXPECT_LE(error_of_matrix(jacobian_of(GetParam(), z, q, 1), in_q(wanted)), 1e-10) << "in q, |q|/|z| " << ratio;
  }
}

// Estimators whose Jacobian is stopped as a whole: it is a constant at order 2.
std::vector<std::string> linear_estimator_names() {
  std::vector<std::string> names;
  for (const auto& name : rows_only_estimator_names())
    if (name != "radius" && name != "diveq-detach") names.push_back(name);
  return names;
}
class LinearEstimators : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(, LinearEstimators, testing::ValuesIn(linear_estimator_names()), test_name);

// The gradient of sum(w . z_q^2) is 2 J^T (w z_q), and its own Jacobian is 2 J^T diag(w) J.
TEST_P(LinearEstimators, HaveTheirDeclaredSecondDerivatives) {
  const Tensor z = rows(3), q = rows(4), weights = rows(5);
  const Tensor inputs[] = {z, q, weights};
  const GraphFn gradient_in_z = [&](Tape&, std::span<const Value> x) {
    return gradient(sum(x[2] * square(estimator_by_name(GetParam())(x[0], x[1]))), x[0]);
  };
  std::vector<Matrix> blocks;
  for (std::int64_t r = 0; const Declared& row : declared(GetParam(), z, q)) {
    Matrix transposed(kDim, kDim);
    for (std::size_t i = 0; i < kDim; ++i)
      for (std::size_t j = 0; j < kDim; ++j) transposed.at(i, j) = row.z.at(j, i);
    blocks.push_back(2.0 * (transposed * (diagonal(row_of(weights, r++)) * row.z)));
  }
  EXPECT_LE(error_of_matrix(jacobian(gradient_in_z, inputs, 0, reference_backend()), block_diagonal(blocks)), 1e-10);
}

TEST_P(Estimators, PassFrozenGradcheckToOrderTwo) {
  const Tensor inputs[] = {rows(6), rows(7)};
  const auto result =
      gradcheck([&](Tape&, std::span<const Value> x) { return tanh(estimator_by_name(GetParam())(x[0], x[1])); },
                inputs, reference_backend());
  EXPECT_TRUE(result.ok) << result.message;
}

TEST_P(Estimators, ReachTheCodesOnlyWhereTheirRowSaysSo) {
  Tape tape;
  const Value z = tape.input("z", {DType::f64, {kRows, kDim}}), q = tape.input("q", {DType::f64, {kRows, kDim}});
  const BoundEstimator estimator = estimator_by_name(GetParam());
  const Value z_q = estimator(z, q);
  EXPECT_EQ(gradient_flow(sum(z_q), q).state,
            estimator.def.reaches_codes ? GradientFlow::State::live : GradientFlow::State::blocked);
  EXPECT_EQ(gradient_flow(sum(z_q), z).state, GradientFlow::State::live);
}

TEST_P(Estimators, HaveTheBitsOfTheCodesForward) {
  ASSERT_TRUE(estimator_by_name(GetParam()).def.exact_forward);
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
    const Tensor z = Tensor::of<double>({7, 2}, {0, 0, 1, 2, 0, 0, 1, 2, 1, 2, tiny, tiny, tiny, tiny}).cast(dtype);
    const Tensor q = Tensor::of<double>({7, 2}, {1, 2, 0, 0, 0, 0, -1, -2, 1, 2, 3, 4, -tiny, tiny}).cast(dtype);
    for (const char* name : {"reference", "cpu"}) {
      Tape tape;
      const Value zv = tape.input("z", z.type()), qv = tape.input("q", q.type());
      const Value z_q = estimator_by_name(GetParam())(zv, qv);
      const Value wrt[] = {zv, qv};
      const auto g = gradients(sum(square(z_q) + z_q), wrt, IfUnreachable::zero);
      try {
        Program p = compile(tape, {z_q, g[0], g[1]}, backend(name));
        p.feed(zv, z);
        p.feed(qv, q);
        p.run();
        EXPECT_TRUE(same_bits(p.fetch(z_q), q)) << name;
        for (const std::size_t which : {0u, 1u}) {
          const Tensor got = p.fetch(g[which]);
          for (std::int64_t i = 0; i < got.elements(); ++i)
            EXPECT_TRUE(std::isfinite(got.at(i))) << name << " " << to_string(dtype) << " gradient in "
                                                  << "zq"[which] << " element " << i;
        }
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

TEST(RotationTrick, OfOppositeRowsIsTheReflection) {
  const Tensor z = Tensor::of<double>({1, 2}, {3, 4}), q = Tensor::of<double>({1, 2}, {-6, -8});
  const Row u{0.6, 0.8};
  EXPECT_LE(error_of_matrix(jacobian_of("rotation", z, q), 2.0 * (identity(2) - 2.0 * outer(u, u))), 1e-10);
}

TEST(RotationTrick, OfEqualRowsIsTheIdentity) {
  const Tensor z = Tensor::of<double>({1, 2}, {3, 4});
  EXPECT_LE(error_of_matrix(jacobian_of("rotation", z, z), identity(2)), 1e-10);
}

TEST(RotationTrick, TurnsZOntoQ) {
  const Tensor z = rows(11), q = rows(12, 3);
  const Tensor j = jacobian_of("rotation", z, q);
  for (std::int64_t i = 0; i < kRows * kDim; ++i) {
    double turned = 0;
    for (std::int64_t k = 0; k < kRows * kDim; ++k) turned += j.at(i * kRows * kDim + k) * z.at(k);
    EXPECT_NEAR(turned, q.at(i), 1e-10);
  }
}

TEST(RotationTrick, AgreesWithTheDenseMatrixFormNearOppositeRows) {
  Tensor z = rows(13), q({DType::f64, {kRows, kDim}});
  const Tensor nudge = rows(14);
  for (std::int64_t i = 0; i < z.elements(); ++i) q.set(i, -2 * z.at(i) + 1e-3 * nudge.at(i));
  const Tensor a = jacobian_of("rotation", z, q), b = jacobian_of("g-dense", z, q);
  for (std::int64_t i = 0; i < a.elements(); ++i) EXPECT_NEAR(a.at(i), b.at(i), 1e-10);
}

TEST(ReleasedRotation, PassesNothingAlongZ) {
  const Tensor z = rows(15), q = rows(16, 3);
  const Tensor j = jacobian_of("rotation-released", z, q);
  for (std::int64_t i = 0; i < kRows * kDim; ++i) {
    double along = 0;
    for (std::int64_t k = 0; k < kRows * kDim; ++k) along += j.at(i * kRows * kDim + k) * z.at(k);
    EXPECT_NEAR(along, 0, 1e-13);
  }
}

// Where neither a nor b is 1 the forward value is what the formula says, and the row says that it is not q.
TEST(TwoParameterRotation, IsExactOnlyWhereOneParameterIsOne) {
  EXPECT_TRUE(estimator_by_name("two-parameter:1:0.5").def.exact_forward);
  EXPECT_TRUE(estimator_by_name("two-parameter:0.5:1").def.exact_forward);
  EXPECT_FALSE(estimator_by_name("two-parameter:0.5:0.25").def.exact_forward);
  const Tensor z = rows(17), q = rows(18, 3);
  Tape tape;
  const Value zv = tape.constant(z), qv = tape.constant(q);
  const auto value = [&](const char* name) { return eval(estimator_by_name(name)(zv, qv), reference_backend()); };
  EXPECT_TRUE(same_bits(value("two-parameter:1:0.5"), q));
  const Tensor mixed = value("two-parameter:0.5:0.25");
  for (std::int64_t r = 0; r < kRows; ++r) {
    const Row zr = row_of(z, r), qr = row_of(q, r),
              half = std::sqrt(length(qr) / length(zr)) * (rotation_of(zr, qr) * zr);
    for (std::size_t i = 0; i < kDim; ++i) EXPECT_NEAR(row_of(mixed, r)[i], half[i] + 0.25 * (qr[i] - half[i]), 1e-12);
  }
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
      Matrix m(kDim, kDim);
      for (std::int64_t i = 0; i < kDim; ++i)
        for (std::int64_t j = 0; j < kDim; ++j) {
          double& cell = m.at(static_cast<std::size_t>(i), static_cast<std::size_t>(j));
          if (shape.rank() == 3)
            cell = g.at((r * kDim + i) * kDim + j);
          else if (i == j)
            cell = g.at(shape.rank() == 0 ? 0 : shape.rank() == 1 ? i : r * kDim + i);
        }
      blocks.push_back(m);
    }
    EXPECT_LE(error_of_matrix(jacobian(f, inputs, 0, reference_backend()), block_diagonal(blocks)), 1e-10)
        << to_string(shape);
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

TEST(GLowRank, HasTheJacobianOfItsFactorsAndFormsNoMatrix) {
  const Tensor z = rows(24), q = rows(25);
  Rng rng(26);
  for (const Shape& shape : {Shape{kDim, 3}, Shape{kRows, kDim, 3}}) {
    const Tensor u = normal_reals(shape)(rng).cast(DType::f64), v = normal_reals(shape)(rng).cast(DType::f64);
    const Tensor inputs[] = {z, q, u, v};
    std::vector<Matrix> blocks;
    for (std::int64_t r = 0; r < kRows; ++r) {
      Matrix m = identity(kDim);
      const std::int64_t start = shape.rank() == 3 ? r * kDim : 0;
      for (std::int64_t i = 0; i < kDim; ++i)
        for (std::int64_t j = 0; j < kDim; ++j)
          m.at(static_cast<std::size_t>(i), static_cast<std::size_t>(j)) +=
              inner(row_of(u, start + i), row_of(v, start + j));
      blocks.push_back(m);
    }
    const GraphFn f = [&](Tape& tape, std::span<const Value> x) {
      const Value z_q = g_low_rank(x[0], x[1], x[2], x[3]);
      for (std::int32_t i = 0; i < tape.value_count(); ++i)
        EXPECT_LE(tape.type(i).shape.elements(), kRows * kDim * 3) << tape.describe(i);
      return z_q;
    };
    EXPECT_LE(error_of_matrix(jacobian(f, inputs, 0, reference_backend()), block_diagonal(blocks)), 1e-10)
        << to_string(shape);
  }
  Tape tape;
  const Value zv = tape.input("z", {DType::f32, {3, 4}});
  SG_EXPECT_ERROR(shape, "U is f32[4,2], V is f32[4,1]",
                  g_low_rank(zv, zv, tape.input("u", {DType::f32, {4, 2}}), tape.input("v", {DType::f32, {4, 1}})));
}

TEST(EstimatorNames, AreFoundAndListed) {
  for (const auto& name : estimator_names()) EXPECT_EQ(estimator_by_name(name).def.name, name);
  for (const auto& name : estimator_names()) SG_EXPECT_ERROR(usage, name, estimator_by_name("nosuch"));
}

TEST(EstimatorNames, CarryArguments) {
  EXPECT_EQ(estimator_by_name("radius:0.5").arguments, (std::vector<double>{0.5}));
  EXPECT_EQ(estimator_by_name("two-parameter:0.25").arguments, (std::vector<double>{0.25, 1}));
  SG_EXPECT_ERROR(usage, "a is 9; it must be from -4 to 4", estimator_by_name("radius:9"));
  SG_EXPECT_ERROR(usage, "a is 'x', a number is needed", estimator_by_name("radius:x"));
  SG_EXPECT_ERROR(usage, "takes 1 argument", estimator_by_name("radius:1:2"));
  SG_EXPECT_ERROR(usage, "takes 0 arguments", estimator_by_name("ste:1"));
}

TEST(EstimatorTable, EveryRowSaysWhatItIs) {
  std::set<std::string> names;
  for (const EstimatorDef& def : estimator_table()) {
    EXPECT_TRUE(names.insert(def.name).second) << def.name;
    EXPECT_FALSE(def.formula.empty() || def.jacobian.empty() || def.source.empty()) << def.name;
    EXPECT_FALSE(def.rows_only && (def.assign || def.loss_term || def.losses || def.needs_origin)) << def.name;
  }
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
  EXPECT_LE(error_of_matrix(j, 0.5 * identity(kRows * kDim)), 1e-10);
}

}  // namespace
}  // namespace sg::test
