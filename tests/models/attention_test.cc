// Attention against its definition in loops, its mask, its heads; dropout's share, scale and reproducibility.
#include "models/attention.h"

#include <cmath>

#include "core/autodiff.h"
#include "core/gradcheck.h"
#include "models/dropout.h"
#include "models/init.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/models/support.h"

namespace sg::models_test {
namespace {

Tensor random_tensor(Shape shape, const char* name) { return normal_init(shape, 0, 1, 3, name); }

TEST(Attention, IsTheDefinitionInLoops) {
  const std::int64_t b = 2, t = 3, s = 5, dk = 4, dv = 6;
  const Tensor q = random_tensor({b, t, dk}, "q"), k = random_tensor({b, s, dk}, "k"),
               v = random_tensor({b, s, dv}, "v");
  const Tensor bias = random_tensor({t, s}, "bias");
  std::vector<double> expected;
  for (std::int64_t n = 0; n < b; ++n)
    for (std::int64_t i = 0; i < t; ++i) {
      std::vector<double> weight;
      double total = 0;
      for (std::int64_t j = 0; j < s; ++j) {
        double score = 0;
        for (std::int64_t d = 0; d < dk; ++d) score += q.at((n * t + i) * dk + d) * k.at((n * s + j) * dk + d);
        weight.push_back(std::exp(score / 2 + bias.at(i * s + j)));
        total += weight.back();
      }
      for (std::int64_t d = 0; d < dv; ++d) {
        double out = 0;
        for (std::int64_t j = 0; j < s; ++j)
          out += weight[static_cast<std::size_t>(j)] / total * v.at((n * s + j) * dv + d);
        expected.push_back(out);
      }
    }
  Tape tape;
  const Value out = attention(tape.constant(q), tape.constant(k), tape.constant(v), tape.constant(bias));
  expect_near(exactly(tape, {out})[0], expected, 1e-12);
}

TEST(Attention, CausalBiasHidesLaterPositionsEntirely) {
  const std::int64_t t = 5, d = 3;
  const GraphFn f = [](Tape& tape, std::span<const Value> in) {
    return attention(in[0], in[0], in[0], causal_bias(tape, 5, in[0].dtype()));
  };
  const std::vector<Tensor> inputs{random_tensor({t, d}, "x")};
  const Tensor j = jacobian(f, inputs, 0, backend("reference"));
  for (std::int64_t out = 0; out < t; ++out)
    for (std::int64_t in = 0; in < t; ++in) {
      double most = 0;
      for (std::int64_t a = 0; a < d; ++a)
        for (std::int64_t c = 0; c < d; ++c) most = std::max(most, std::abs(j.at((out * d + a) * t * d + in * d + c)));
      if (in > out)
        EXPECT_EQ(most, 0) << out << " sees " << in;
      else
        EXPECT_GT(most, 0) << out << " does not see " << in;
    }
  EXPECT_TRUE(gradcheck(f, inputs, backend("reference")).ok);
}

struct Heads : Module {
  explicit Heads(bool bias) : Module(5), attend(*this, "attend", 6, 2, bias) {}
  MultiHeadAttention attend;
};

TEST(Attention, OneOfSeveralHeadsSeesItsOwnColumns) {
  const Heads model(true);
  Tape tape;
  const Value x = tape.constant(random_tensor({2, 4, 6}, "x"));
  const MultiHeadAttention::Heads heads = model.attend.project(x);
  EXPECT_EQ(heads.q.shape(), (Shape{2, 2, 4, 3}));
  const Value one = attention(slice_axis(heads.q, 1, 1, 2), slice_axis(heads.k, 1, 1, 2), slice_axis(heads.v, 1, 1, 2));
  const Value all = attention(heads.q, heads.k, heads.v);
  const Value whole = model.attend(x), merged = model.attend.merge(all);
  const auto values = run_once(tape, {one, slice_axis(all, 1, 1, 2), whole, merged});
  expect_same_bits(values[0], values[1]);
  expect_same_bits(values[2], values[3]);
  EXPECT_EQ(whole.shape(), (Shape{2, 4, 6}));
}

TEST(Attention, ErrorsNameWhatDisagrees) {
  Tape tape;
  const Value x = tape.constant(1.0, {DType::f32, {2, 4, 5}});
  const Heads model(false);
  expect_error(ErrorKind::shape, {"MultiHeadAttention 'attend'", "[2,4,5]", "6"}, [&] { model.attend(x); });
  expect_error(ErrorKind::attribute, {"7", "heads"}, [] {
    Module root;
    MultiHeadAttention(root, "attend", 16, 7);
  });
  expect_error(ErrorKind::shape, {"causal_bias"}, [&] { causal_bias(tape, 0); });
  expect_error(ErrorKind::shape, {"attention"}, [&] {
    const Value v = tape.constant(1.0, {DType::f32, {3}});
    attention(v, v, v);
  });
}

TEST(Dropout, KeepsTheMeanAndScalesWhatIsLeft) {
  Tape tape;
  const Value state = tape.constant(Tensor::of<std::int32_t>({2}, {7, 0}));
  const Value x = tape.constant(1.0, {DType::f32, {100, 100}});
  const Value y = dropout(x, 0.25, state), again = dropout(x, 0.25, state);
  const Value rows = dropout_shared(x, 0.5, state, {-1});
  const auto values = run_once(tape, {y, again, rows});
  double kept = 0;
  for (std::int64_t i = 0; i < 10000; ++i) {
    const double v = values[0].at(i);
    EXPECT_TRUE(v == 0 || v == static_cast<double>(static_cast<float>(1 / 0.75)));
    kept += v != 0;
  }
  EXPECT_NEAR(kept / 10000, 0.75, 0.02);
  EXPECT_NE(numbers(values[0]), numbers(values[1])) << "two places of a step must not drop alike";
  for (std::int64_t i = 0; i < 100; ++i)
    for (std::int64_t j = 1; j < 100; ++j) EXPECT_EQ(values[2].at(i * 100), values[2].at(i * 100 + j));
  EXPECT_EQ(dropout(x, 0.25, Value()), x) << "evaluation";
  EXPECT_EQ(dropout(x, 0, state), x);
  expect_error(ErrorKind::attribute, {"dropout", "1"}, [&] { dropout(x, 1, state); });
  expect_error(ErrorKind::attribute, {"axis 2"}, [&] { dropout_shared(x, 0.1, state, {2}); });
}

}  // namespace
}  // namespace sg::models_test
