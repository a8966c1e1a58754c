// The Jacobian contract of every gradient estimator and quantizer, to 1e-10 in float64 on the reference backend: what
// reaches z, what reaches q, and, for choices among all codes, what reaches the codes. Each wanted matrix is written
// down from the formula in matrices.h's arithmetic, without the library. One test for each row of the table.
#include <gtest/gtest.h>

#include <cmath>

#include "backends/backends.h"
#include "core/gradcheck.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "tests/conformance/cases.h"
#include "tests/ops/matrices.h"

namespace sg::test {
namespace {

constexpr std::int64_t kRows = 5, kDim = 4, kCodes = 6;
const std::int32_t kChosen[kRows] = {2, 0, 5, 2, 3};

Tensor draw(std::uint64_t seed, Shape shape, double scale = 1) {
  Rng rng(seed);
  return normal_reals(shape, scale)(rng).cast(DType::f64);
}

using Inputs = std::span<const Value>;
using Tensors = std::span<const Tensor>;

struct Contract {
  struct Reach {
    std::size_t input;
    std::function<Matrix(Tensors)> jacobian;
  };
  std::string name;
  std::vector<Tensor> inputs;
  std::function<Value(Inputs)> z_q;
  std::vector<Reach> reaches;
};

// d z_q / d input as blocks, one per row, of a function of that row's z and q and its number.
using Block = std::function<Matrix(const Row& z, const Row& q, std::int64_t row)>;
std::function<Matrix(Tensors)> by_rows(Block block) {
  return [block = std::move(block)](Tensors x) {
    std::vector<Matrix> blocks;
    for (std::int64_t r = 0; r < x[0].shape()[0]; ++r) blocks.push_back(block(row_of(x[0], r), row_of(x[1], r), r));
    return block_diagonal(blocks);
  };
}

const Matrix kEye = identity(kDim), kZero = zero(kDim);
Matrix nothing(const Row&, const Row&, std::int64_t) { return kZero; }
Matrix all(const Row&, const Row&, std::int64_t) { return kEye; }
double ratio(const Row& z, const Row& q) { return length(q) / length(z); }

// Rows of z and q alone, where |q| is a third of |z|.
Contract of_rows(std::string name, std::function<Value(Value, Value)> f, Block in_z, Block in_q = nothing) {
  return {std::move(name),
          {draw(1, {kRows, kDim}), draw(2, {kRows, kDim}, 0.3)},
          [f = std::move(f)](Inputs x) { return f(x[0], x[1]); },
          {{0, by_rows(std::move(in_z))}, {1, by_rows(std::move(in_q))}}};
}

// The same with more inputs behind z and q.
Contract with(Contract contract, std::vector<Tensor> more, std::function<Value(Inputs)> f) {
  for (Tensor& t : more) contract.inputs.push_back(std::move(t));
  contract.z_q = std::move(f);
  return contract;
}

Block radius_in_q(double a) {
  return [a](const Row& z, const Row& q, std::int64_t) { return a * outer(unit(q - z), unit(q - z)); };
}
Block rest_of(Block in_q) {  // what the two add up to I with
  return [in_q = std::move(in_q)](const Row& z, const Row& q, std::int64_t r) { return kEye - in_q(z, q, r); };
}
Contract of_radius(double a) {
  return of_rows(
      fmt::format("radius_{}", a < 0      ? "minus_half"
                               : a == 0.5 ? "half"
                               : a == 1   ? "one"
                                          : "two"),
      [a](Value z, Value q) { return radius(z, q, a); }, rest_of(radius_in_q(a)), radius_in_q(a));
}

// z + |q-z| sg[f] with f = f(z, q, noise): f d^T in q.
Contract along(std::string name, Value (*estimator)(Value, Value, Value), double scale,
               std::function<Row(const Row& z, const Row& q, const Row& noise)> direction) {
  const Tensor noise = draw(3, {kRows, kDim}, scale);
  const Block in_q = [=](const Row& z, const Row& q, std::int64_t r) {
    return outer(unit(direction(z, q, row_of(noise, r))), unit(q - z));
  };
  return with(of_rows(std::move(name), {}, rest_of(in_q), in_q), {noise},
              [estimator](Inputs x) { return estimator(x[0], x[1], x[2]); });
}

Contract of_segments() {
  const Tensor next = draw(4, {kRows, kDim}), noise = draw(5, {kRows, kDim}, 0.3);
  Tensor t({DType::f64, {kRows, 1}});
  for (std::int64_t r = 0; r < kRows; ++r) t.set(r, 0.1 + 0.2 * static_cast<double>(r));
  const auto part = [=](double share, const Row& z, const Row& q, std::int64_t r) {
    return share * outer(unit(q - z + row_of(noise, r)), unit(q - z));
  };
  const Block in_first = [=](const Row& z, const Row& q, std::int64_t r) { return part(1 - t.at(r), z, q, r); };
  const Block in_next = [=](const Row& z, const Row&, std::int64_t r) { return part(t.at(r), z, row_of(next, r), r); };
  Contract c =
      with(of_rows(
               "sf_diveq", {},
               [=](const Row& z, const Row& q, std::int64_t r) { return kEye - in_first(z, q, r) - in_next(z, q, r); },
               in_first),
           {next, t, noise}, [](Inputs x) { return sf_diveq(x[0], x[1], x[2], x[3], x[4]); });
  c.reaches.push_back({2, by_rows(in_next)});
  return c;
}

// ---- choices among all codes: inputs z (N,D), codes (K,D); q is the row kChosen of the codes

Row softmax_of(Row logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (double& l : logits) total += l = std::exp(l - most);
  return 1 / total * logits;
}
Row mean_code(const Row& p, Tensors x) {
  Row m(kDim, 0.0);
  for (std::int64_t k = 0; k < kCodes; ++k) m = m + p[static_cast<std::size_t>(k)] * row_of(x[1], k);
  return m;
}
Row distance_logits_of(const Row& z, Tensors x) {
  Row l;
  for (std::int64_t k = 0; k < kCodes; ++k) l.push_back(-inner(z - row_of(x[1], k), z - row_of(x[1], k)));
  return l;
}

// d (p C) / d l_k of a softmax p of logits l: p_k (c_k - m), for each code k.
using LogitGradients = std::vector<Row>;
LogitGradients gradients_of(const Row& p, Tensors x) {
  LogitGradients g;
  const Row m = mean_code(p, x);
  for (std::int64_t k = 0; k < kCodes; ++k) g.push_back(p[static_cast<std::size_t>(k)] * (row_of(x[1], k) - m));
  return g;
}

// z_q of logits l(z, c_k), in z: sum_k (d z_q / d l_k) (d l_k / dz)^T; in the codes: I on the chosen row and
// (d z_q / d l_k) (d l_k / dc_k)^T on each.
struct Soft {
  std::string name;
  std::function<Value(Value z, Value q, Value codes)> f;
  std::function<LogitGradients(const Row& z, Tensors x, std::int64_t row)> in_logits;
  std::function<Row(const Row&z, const Row&code)> logit_in_z, logit_in_code;
};

Contract of_codes(Soft soft) {
  const auto in_z = [soft](Tensors x) {
    std::vector<Matrix> blocks;
    for (std::int64_t r = 0; r < kRows; ++r) {
      const Row z = row_of(x[0], r);
      const LogitGradients g = soft.in_logits(z, x, r);
      Matrix block = kZero;
      for (std::int64_t k = 0; k < kCodes; ++k)
        block = block + outer(g[static_cast<std::size_t>(k)], soft.logit_in_z(z, row_of(x[1], k)));
      blocks.push_back(block);
    }
    return block_diagonal(blocks);
  };
  const auto in_codes = [soft](Tensors x) {
    Matrix m(kRows * kDim, kCodes * kDim);
    for (std::int64_t r = 0; r < kRows; ++r) {
      const Row z = row_of(x[0], r);
      const LogitGradients g = soft.in_logits(z, x, r);
      for (std::int64_t k = 0; k < kCodes; ++k) {
        Matrix block = outer(g[static_cast<std::size_t>(k)], soft.logit_in_code(z, row_of(x[1], k)));
        if (k == kChosen[r]) block = block + kEye;
        for (std::size_t i = 0; i < kDim; ++i)
          for (std::size_t j = 0; j < kDim; ++j)
            m.at(static_cast<std::size_t>(r * kDim) + i, static_cast<std::size_t>(k * kDim) + j) = block.at(i, j);
      }
    }
    return m;
  };
  return {soft.name,
          {draw(6, {kRows, kDim}), draw(7, {kCodes, kDim})},
          [soft](Inputs x) {
            const Value chosen = x[0].tape->constant(Tensor::of<std::int32_t>({kRows}, kChosen));
            return soft.f(x[0], gather_rows(x[1], chosen), x[1]);
          },
          {{0, in_z}, {1, in_codes}}};
}

// l = -|z-c|^2: 2 (c-z) in z, 2 (z-c) in c.
Soft by_distances(std::string name, std::function<Value(Value, Value, Value)> f,
                  std::function<LogitGradients(const Row&, Tensors, std::int64_t)> in_logits) {
  return {std::move(name), std::move(f), std::move(in_logits), [](const Row& z, const Row& c) { return 2.0 * (c - z); },
          [](const Row& z, const Row& c) { return 2.0 * (z - c); }};
}

Contract of_gumbel() {
  const double tau = 0.7;
  const Tensor noise = draw(8, {kRows, kCodes});
  Contract c = of_codes(by_distances("gumbel_softmax", {}, [=](const Row& z, Tensors x, std::int64_t r) {
    LogitGradients g = gradients_of(softmax_of(1 / tau * (distance_logits_of(z, x) + row_of(noise, r))), x);
    for (Row& row : g) row = 1 / tau * row;
    return g;
  }));
  c.inputs.push_back(noise);
  c.z_q = [](Inputs x) {
    const Value chosen = x[0].tape->constant(Tensor::of<std::int32_t>({kRows}, kChosen));
    return soft_one_hot(x[0], gather_rows(x[1], chosen), x[1], 0.7, x[2]);
  };
  return c;
}

Contract of_decoupled() {
  const double tau = 1.5;
  return of_codes(by_distances(
      "decoupled", [=](Value z, Value q, Value codes) { return soft_one_hot(z, q, codes, tau); },
      [=](const Row& z, Tensors x, std::int64_t) {
        LogitGradients g = gradients_of(softmax_of(1 / tau * distance_logits_of(z, x)), x);
        for (Row& row : g) row = 1 / tau * row;
        return g;
      }));
}

Contract of_reinmax() {
  const double tau = 1.2;
  return of_codes(by_distances(
      "reinmax", [=](Value z, Value q, Value codes) { return reinmax(z, q, codes, tau); },
      [=](const Row& z, Tensors x, std::int64_t r) {
        Row onehot(kCodes, 0.0);
        onehot[static_cast<std::size_t>(kChosen[r])] = 1;
        const Row l = distance_logits_of(z, x);
        LogitGradients g = gradients_of(0.5 * (onehot + softmax_of(1 / tau * l)), x);
        const LogitGradients p0 = gradients_of(softmax_of(l), x);
        for (std::size_t k = 0; k < kCodes; ++k) g[k] = 2.0 * g[k] - 0.5 * p0[k];
        return g;
      }));
}

Contract of_ibq() {
  const double tau = 1.3;
  return of_codes({"ibq", [=](Value z, Value q, Value codes) { return index_backpropagation(z, q, codes, tau); },
                   [=](const Row& z, Tensors x, std::int64_t) {
                     Row l;
                     for (std::int64_t k = 0; k < kCodes; ++k) l.push_back(inner(z, row_of(x[1], k)) / tau);
                     return gradients_of(softmax_of(l), x);
                   },
                   [=](const Row&, const Row& code) { return 1 / tau * code; },
                   [=](const Row& z, const Row&) { return 1 / tau * z; }});
}

// ---- quantizers, as compositions

Block scaled_rows(std::function<double(double)> factor_of) {
  return [factor_of](const Row& z, const Row&, std::int64_t) {
    Row factors;
    for (const double x : z) factors.push_back(factor_of(x));
    return diagonal(factors);
  };
}

// FSQ 2309.15505 with L levels: f = tanh(z + s) h - o, h = (L-1)(1+1e-3)/2, o = 1/2 where L is even, s = atanh(o/h).
Contract of_fsq(int levels) {
  const double h = (levels - 1) * (1 + 1e-3) / 2, o = levels % 2 == 0 ? 0.5 : 0, s = std::atanh(o / h);
  const double half = std::floor(levels / 2);
  return of_rows(
      fmt::format("fsq_{}_levels", levels),
      [=](Value z, Value) {
        const Value f = tanh(z + s) * h - o;
        return graft(round(f), f) / half;
      },
      scaled_rows([=](double x) { return h / std::pow(std::cosh(x + s), 2) / half; }));
}

Contract of_simvq() {
  Contract c = of_rows("simvq_ste", {}, all);
  c.inputs = {draw(6, {kRows, kDim}), draw(7, {kCodes, kDim}), draw(9, {kDim, kDim})};
  c.z_q = [](Inputs x) {
    const Value chosen = x[0].tape->constant(Tensor::of<std::int32_t>({kRows}, kChosen));
    return straight_through(x[0], gather_rows(matmul(stop_gradient(x[1]), x[2]), chosen));
  };
  const auto zeros = [](std::size_t n) { return [n](Tensors) { return Matrix(kRows * kDim, n); }; };
  c.reaches = {{0, by_rows(all)}, {1, zeros(kCodes * kDim)}, {2, zeros(kDim * kDim)}};
  return c;
}

Contract of_centred() {
  const Tensor origin = draw(10, {kDim}, 2);
  Row o;
  for (std::int64_t i = 0; i < kDim; ++i) o.push_back(origin.at(i));
  return with(of_rows("centred_rotation", {},
                      [=](const Row& z, const Row& q, std::int64_t) {
                        return ratio(z - o, q - o) * rotation_of(z - o, q - o);
                      }),
              {origin}, [](Inputs x) { return centred_rotation(x[0], x[1], x[2]); });
}

Contract of_g_matrix() {
  const Tensor g = draw(11, {kRows, kDim, kDim});
  return with(of_rows("g_matrix", {},
                      [=](const Row&, const Row&, std::int64_t r) {
                        Matrix m(kDim, kDim);
                        for (std::int64_t i = 0; i < kDim * kDim; ++i)
                          m.data[static_cast<std::size_t>(i)] = g.at(r * kDim * kDim + i);
                        return m;
                      }),
              {g}, [](Inputs x) { return g_matrix(x[0], x[1], x[2]); });
}

Contract of_low_rank() {
  const Tensor u = draw(12, {kDim, 2}), v = draw(13, {kDim, 2});
  return with(of_rows("g_low_rank", {},
                      [=](const Row&, const Row&, std::int64_t) {
                        Matrix m = kEye;
                        for (std::int64_t i = 0; i < kDim; ++i)
                          for (std::int64_t j = 0; j < kDim; ++j)
                            m.at(static_cast<std::size_t>(i), static_cast<std::size_t>(j)) +=
                                inner(row_of(u, i), row_of(v, j));
                        return m;
                      }),
              {u, v}, [](Inputs x) { return g_low_rank(x[0], x[1], x[2], x[3]); });
}

std::vector<Contract> contracts() {
  const double nu = 0.7;
  const auto rotated = [](double power) -> Block {
    return
        [power](const Row& z, const Row& q, std::int64_t) { return std::pow(ratio(z, q), power) * rotation_of(z, q); };
  };
  return {
      of_rows("ste", straight_through, all),
      of_rows(
          "sync", [=](Value z, Value q) { return synchronized(z, q, nu); }, all,
          [=](const Row&, const Row&, std::int64_t) { return nu * kEye; }),
      // The rule applied to the estimator's output instead of q, as in lucidrains/vector-quantize-pytorch.
      of_rows(
          "sync_lucidrains_order",
          [=](Value z, Value q) {
            const Value x = straight_through(z, q);
            return x + nu * x - stop_gradient(nu * x);
          },
          [=](const Row&, const Row&, std::int64_t) { return (1 + nu) * kEye; }),
      of_g_matrix(),
      of_low_rank(),
      of_rows("rotation", rotation_trick, rotated(1)),
      of_rows("rotation_released", released_rotation,
              [](const Row& z, const Row& q, std::int64_t) {
                return ratio(z, q) * (rotation_of(z, q) * (kEye - outer(unit(z), unit(z))));
              }),
      of_rows("rotation_corrected", corrected_rotation, rotated(0)),
      of_rows(
          "rotation_inverse_distance", [](Value z, Value q) { return inverse_distance_rotation(z, q, 8); },
          [](const Row& z, const Row& q, std::int64_t) { return 1 / (8 * inner(q - z, q - z)) * rotation_of(z, q); }),
      of_rows(
          "two_parameter", [](Value z, Value q) { return two_parameter_rotation(z, q, 0.5, 0.25); }, rotated(0.5)),
      of_centred(),
      of_rows("reflection", reflection,
              [](const Row& z, const Row& q, std::int64_t) { return ratio(z, q) * reflection_of(z, q); }),
      of_radius(-0.5),
      of_radius(0.5),
      of_radius(1),
      of_radius(2),
      // The formula as it stands, without the noise's guard.
      of_rows(
          "diveq_detach",
          [](Value z, Value q) {
            const Value distance = norm(q - z, {-1}, true);
            return z + distance * stop_gradient((q - z) / distance);
          },
          rest_of(radius_in_q(1)), radius_in_q(1)),
      along("nsvq", nsvq, 1, [](const Row&, const Row&, const Row& noise) { return noise; }),
      along("diveq", diveq, 0.3, [](const Row& z, const Row& q, const Row& noise) { return q - z + noise; }),
      of_segments(),
      of_gumbel(),
      of_decoupled(),
      of_reinmax(),
      of_ibq(),
      of_rows(
          "bsq_sphere_sign",
          [](Value z, Value) {
            const Value u = z / norm(z, {-1}, true);
            return graft(sign(u) / std::sqrt(static_cast<double>(kDim)), u);
          },
          [](const Row& z, const Row&, std::int64_t) { return 1 / length(z) * (kEye - outer(unit(z), unit(z))); }),
      of_rows(
          "lfq_sign", [](Value z, Value) { return graft(sign(z), z); }, all),
      of_fsq(5),
      of_fsq(8),
      of_simvq(),
  };
}

class JacobianTable : public testing::TestWithParam<Contract> {};
INSTANTIATE_TEST_SUITE_P(, JacobianTable, testing::ValuesIn(contracts()),
                         [](const auto& info) { return info.param.name; });
void PrintTo(const Contract& c, std::ostream* out) { *out << c.name; }

TEST_P(JacobianTable, HoldsToTenDigits) {
  const Contract& c = GetParam();
  const GraphFn f = [&](Tape&, Inputs x) { return c.z_q(x); };
  double worst = 0;
  for (const auto& reach : c.reaches) {
    const double error =
        error_of_matrix(jacobian(f, c.inputs, reach.input, reference_backend()), reach.jacobian(c.inputs));
    EXPECT_LE(error, 1e-10) << c.name << " in input " << reach.input;
    worst = std::max(worst, error);
  }
  RecordProperty("max_error", fmt::format("{:.2g}", worst));
}

TEST_P(JacobianTable, PassesFrozenGradcheckToOrderTwo) {
  const Contract& c = GetParam();
  const auto result = gradcheck([&](Tape&, Inputs x) { return tanh(c.z_q(x)); }, c.inputs, reference_backend());
  EXPECT_TRUE(result.ok) << result.message;
}

// ---- S7: where the origin is

Tensor shifted(Tensor t, double by) {
  for (std::int64_t i = 0; i < t.elements(); ++i) t.set(i, t.at(i) + by * (i % kDim % 2 == 0 ? 1 : -0.5));
  return t;
}

double largest_difference(const Tensor& a, const Tensor& b) {
  double most = 0;
  for (std::int64_t i = 0; i < a.elements(); ++i) most = std::max(most, std::abs(a.at(i) - b.at(i)));
  return most;
}

TEST(JacobianTableOrigin, CentredRotationMovesWithItsOriginAndTheUncentredOneDoesNot) {
  // Shifts that are whole numbers of 2^-20, so that z + c, q + c and o + c are the shifted numbers exactly.
  const auto on_grid = [](Tensor t) {
    for (std::int64_t i = 0; i < t.elements(); ++i) t.set(i, std::round(t.at(i) * 0x1p20) * 0x1p-20);
    return t;
  };
  const Tensor z = on_grid(draw(1, {kRows, kDim})), q = on_grid(draw(2, {kRows, kDim}));
  const Tensor o = on_grid(draw(10, {kDim}));
  const auto centred = [&](double by) {
    const Tensor inputs[] = {shifted(z, by), shifted(q, by), shifted(o, by)};
    return jacobian([](Tape&, Inputs x) { return centred_rotation(x[0], x[1], x[2]); }, inputs, 0, reference_backend());
  };
  const auto uncentred = [&](double by) {
    const Tensor inputs[] = {shifted(z, by), shifted(q, by)};
    return jacobian([](Tape&, Inputs x) { return rotation_trick(x[0], x[1]); }, inputs, 0, reference_backend());
  };
  const Tensor at_home = centred(0);
  double size = 0;
  for (std::int64_t i = 0; i < at_home.elements(); ++i) size = std::max(size, std::abs(at_home.at(i)));
  for (const double by : {1.0, 64.0, 4096.0}) {
    EXPECT_LE(largest_difference(centred(by), at_home), 1e-12 * size) << by;
    EXPECT_GT(largest_difference(uncentred(by), uncentred(0)), 0.5) << by;
  }
  // Far from the origin the rotation is no rotation: it goes to I like 1 / distance.
  Tensor eye({DType::f64, {kRows * kDim, kRows * kDim}});
  for (std::int64_t i = 0; i < kRows * kDim; ++i) eye.set(i * kRows * kDim + i, 1);
  const double near = largest_difference(uncentred(4096), eye), far = largest_difference(uncentred(4 * 4096), eye);
  EXPECT_LT(near, 2e-3);
  EXPECT_NEAR(near / far, 4, 0.1);
}

}  // namespace
}  // namespace sg::test
