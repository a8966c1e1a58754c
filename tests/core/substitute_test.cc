// Recording a part of the graph again with some values exchanged: values, gradients, what is shared, what is refused.
#include "core/substitute.h"

#include "backends/backends.h"
#include "core/autodiff.h"
#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/gradient.h"
#include "ops/matmul.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

Tensor reals(Shape shape, std::initializer_list<double> values) { return Tensor::of<double>(shape, values); }
Tensor value_of(Value v) { return eval(v, reference_backend()); }

TEST(Substitute, RecordsTheSameFunctionOfAnotherValue) {
  Tape tape;
  const Value x = tape.constant(reals({2}, {1, 2})), y = tape.constant(reals({2}, {3, 5}));
  const Value f = square(x) + 3 * x;
  const Value g = substitute(f, {{x, y}});
  expect_values(value_of(g), {18, 40});
  expect_values(value_of(f), {4, 10});
}

TEST(Substitute, ExchangesAllAtOnce) {
  Tape tape;
  const Value x = tape.constant(reals({}, {7})), y = tape.constant(reals({}, {2}));
  const Value f = x - 10 * y;
  EXPECT_EQ(value_of(substitute(f, {{x, y}, {y, x}})).item(), 2 - 70);
}

TEST(Substitute, GivesGradientsOfTheNewGraph) {
  Tape tape;
  const Value x = tape.constant(reals({2}, {1, 2})), y = tape.constant(reals({2}, {3, 5})),
              w = tape.constant(reals({2}, {7, 9}));
  const Value loss = sum(w * square(x));
  const Value other = substitute(loss, {{x, y}});
  expect_values(value_of(gradient(other, y)), {42, 90});
  expect_values(value_of(gradient(other, w)), {9, 25});
  EXPECT_EQ(gradient_flow(other, x).state, GradientFlow::State::unconnected);
  expect_values(value_of(gradient(loss, x)), {14, 36});
}

TEST(Substitute, CopiesGradientsThatAreRecordedAlready) {
  Tape tape;
  const Value x = tape.constant(reals({}, {2})), y = tape.constant(reals({}, {5}));
  const Value g = gradient(x * x * x, x);
  EXPECT_EQ(value_of(substitute(g, {{x, y}})).item(), 75);
}

TEST(Substitute, SharesWhatDoesNotDependOnIt) {
  Tape tape;
  const Value x = tape.input("x", {DType::f64, {2}}), w = tape.input("w", {DType::f64, {2}});
  const Value shared = exp(w), f = tanh(x) * shared;
  sin(x);  // depends on x, but the output does not depend on it
  const auto before = tape.instrs().size();
  const Value y = tape.input("y", {DType::f64, {2}});
  const Value g = substitute(f, {{x, y}});
  EXPECT_EQ(tape.instrs().size(), before + 3) << "y, tanh and mul\n" << tape.to_string();
  EXPECT_EQ(count_ops(tape, "exp"), 1);
  EXPECT_EQ(count_ops(tape, "sin"), 1);
  EXPECT_EQ(tape.instrs()[static_cast<std::size_t>(tape.producer(g.id))].inputs[1], shared.id);
}

TEST(Substitute, CutsWhatLiesBehindAReplacedValue) {
  Tape tape;
  const Value x = tape.constant(reals({}, {3})), inner = exp(x), f = inner * inner + x;
  const Value one = tape.constant(reals({}, {1}));
  const Value g = substitute(f, {{inner, one}, {x, one}});
  EXPECT_EQ(value_of(g).item(), 2);
  EXPECT_EQ(count_ops(tape, "exp"), 1) << "nothing needs a second one";
}

TEST(Substitute, LetsAReplacementDependOnWhatItReplaces) {
  Tape tape;
  Variable weight("w", reals({2}, {2, 3}));
  const Value w = tape.read(weight), x = tape.constant(reals({2}, {5, 7}));
  const Value loss = sum(square(w * x));
  const Value stopped = substitute(loss, {{w, stop_gradient(w)}});
  EXPECT_EQ(value_of(stopped).item(), value_of(loss).item());
  EXPECT_EQ(gradient_flow(stopped, w).state, GradientFlow::State::blocked);
  expect_values(value_of(gradient(stopped, x)), {40, 126});
  const Value doubled = substitute(loss, {{w, 2 * w}});
  EXPECT_EQ(value_of(doubled).item(), 4 * value_of(loss).item());
}

// The exact gradient of 2410.06424: L(D(sg q)) trains the decoder, L(D_sg(z)) the encoder, each as if alone.
TEST(Substitute, SeparatesTheExactGradientOfTheEncoderFromTheDecoder) {
  Tape tape;
  Variable weight("decoder", reals({2, 2}, {1, 2, -1, 3}));
  const Value w = tape.read(weight), z = tape.constant(reals({3, 2}, {1, 2, 3, 4, 5, 6})),
              q = tape.constant(reals({3, 2}, {1, 1, 4, 4, 5, 7}));
  const Value at_q = mean(square(tanh(0.1 * matmul(q, w))));
  const Value at_z = substitute(at_q, {{q, z}, {w, stop_gradient(w)}});
  const Value alone = mean(square(tanh(0.1 * matmul(z, w))));
  const Value both = at_q + at_z;
  EXPECT_TRUE(same_bits(value_of(gradient(both, w)), value_of(gradient(at_q, w))));
  EXPECT_TRUE(same_bits(value_of(gradient(both, z)), value_of(gradient(alone, z))));
}

TEST(Substitute, RunsOneForwardUnderSeveralEstimators) {
  Tape tape;
  const Value z = tape.constant(reals({2, 2}, {1, 2, 3, 4})), q = tape.constant(reals({2, 2}, {2, 4, -4, 3}));
  const Value z_q = straight_through(z, q);
  const Value loss = sum(square(z_q));
  const Value rotated = substitute(loss, {{z_q, rotation_trick(z, q)}});
  expect_values(value_of(gradient(loss, z)), {4, 8, -8, 6});
  expect_values(value_of(gradient(rotated, z)), {8, 16, 6, 8}, 1e-12);  // row 2: |q| = |z|, g = 2q turned back onto z
  EXPECT_EQ(value_of(rotated).item(), value_of(loss).item());
}

TEST(Substitute, KeepsTheNumbersOfRandomInstructions) {
  Tape tape;
  const Value state = tape.constant(Tensor::of<std::int32_t>({2}, {5, 0})),
              same = tape.constant(Tensor::of<std::int32_t>({2}, {5, 0}));
  const Value x = tape.constant(reals({}, {0})), y = tape.constant(reals({}, {1}));
  const Value noise = normal(state, {4}, DType::f64), f = noise + x;
  const Value again = substitute(f, {{x, y}});
  EXPECT_EQ(count_ops(tape, "normal"), 1);
  expect_values(value_of(again - f), {1, 1, 1, 1}, 1e-12);
  const Value copied = substitute(f, {{state, same}});
  EXPECT_EQ(count_ops(tape, "normal"), 2);
  EXPECT_TRUE(same_bits(value_of(copied), value_of(f)));
  const Value later = normal(state, {4}, DType::f64);
  EXPECT_FALSE(same_bits(value_of(later), value_of(noise))) << "a new instruction has a stream of its own";
}

TEST(Substitute, ReturnsTheOldOutputsWhereNothingWasReplaced) {
  Tape tape;
  const Value x = tape.input("x", {DType::f64, {2}}), y = tape.input("y", {DType::f64, {2}});
  const Value f = exp(x), g = exp(y);
  const Value outputs[] = {f, g, x};
  const Substitution exchange{x, y};
  const auto result = substitute(outputs, std::span(&exchange, 1));
  EXPECT_NE(result[0], f);
  EXPECT_EQ(result[1], g);
  EXPECT_EQ(result[2], y);
  EXPECT_EQ(substitute(g, {{x, y}}), g);
  EXPECT_EQ(substitute(g, {}), g);
}

TEST(Substitute, KeepsLineAndScopeAndTheOrderOfTheTape) {
  Tape tape;
  const Value x = tape.input("x", {DType::f64, {2}});
  Value f;
  const unsigned line = __LINE__ + 3;
  {
    const Scope scope(tape, "head");
    f = exp(x);
  }
  const Value g = substitute(f, {{x, stop_gradient(x)}});
  const Instr& copy = tape.instrs()[static_cast<std::size_t>(tape.producer(g.id))];
  EXPECT_EQ(tape.scope_path(copy.scope), "head");
  EXPECT_EQ(copy.loc.line(), line);
  EXPECT_EQ(tape.scope_path(tape.current_scope()), "");
  tape.verify();
}

TEST(Substitute, NeverAssignsTwice) {
  Tape tape;
  Variable v("v", reals({}, {1}));
  const Value x = tape.constant(reals({}, {3})), f = square(x);
  tape.assign(v, f);
  substitute(f, {{x, tape.constant(reals({}, {4}))}});
  EXPECT_EQ(count_ops(tape, "assign"), 1);
  tape.verify();
}

TEST(Substitute, RefusesOtherTypesTapesAndDoubts) {
  Tape tape, another;
  const Value x = tape.input("x", {DType::f64, {2}}), f = exp(x);
  const unsigned line = __LINE__ + 1;
  const auto e = error_of([&] { substitute(f, {{x, tape.input("longer", {DType::f64, {3}})}}); });
  ASSERT_TRUE(e);
  EXPECT_EQ(e->kind(), ErrorKind::shape);
  EXPECT_EQ(e->loc().line(), line);
  SG_EXPECT_CONTAINS(e->message(), "f64[3]");
  SG_EXPECT_CONTAINS(e->message(), "input 'x'");
  SG_EXPECT_ERROR(dtype, "f32[2]", substitute(f, {{x, tape.input("single", {DType::f32, {2}})}}));
  SG_EXPECT_ERROR(usage, "another tape", substitute(f, {{x, another.input("x", {DType::f64, {2}})}}));
  SG_EXPECT_ERROR(usage, "null", substitute(f, {{x, Value{}}}));
  SG_EXPECT_ERROR(usage, "null", substitute(Value{}, {{x, x}}));
  SG_EXPECT_ERROR(usage, "twice", substitute(f, {{x, x}, {x, stop_gradient(x)}}));
}

}  // namespace
}  // namespace sg::test
