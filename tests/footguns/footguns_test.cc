// What a user of another library would trip over, silent mismatches first, then what is an error here. Each test says
// what one would expect and what happens.
#include <cmath>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

Tensor numbers(Shape shape, std::initializer_list<float> values) { return Tensor::of<float>(shape, values); }

// Expected: an earlier result keeps its numbers. In tinygrad's JIT the buffer is overwritten by the next call.
TEST(Footguns, FetchedTensorsAreCopies) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {}});
  const Value y = x * 2.0;
  Program p = compile(tape, {y}, cpu_backend());
  p.feed(x, numbers({}, {2}));
  p.run();
  const Tensor first = p.fetch(y);
  p.feed(x, numbers({}, {3}));
  p.run();
  EXPECT_EQ(first.item(), 4);
  EXPECT_EQ(p.fetch(y).item(), 6);
}

// Expected: feeding copies; changing the tensor afterwards changes nothing.
TEST(Footguns, FedTensorsAreCopies) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {}});
  const Value y = x * 2.0;
  Program p = compile(tape, {y}, cpu_backend());
  Tensor t = numbers({}, {2});
  p.feed(x, t);
  t.set(0, 100);
  p.run();
  EXPECT_EQ(p.fetch(y).item(), 4);
}

// Expected: fresh random numbers each step. A graph that is replayed would repeat them unless the state is advanced.
TEST(Footguns, RandomNumbersRepeatUntilTheirStateIsAdvanced) {
  Variable state("state", Tensor::of<std::int32_t>({2}, {1, 0}));
  Tape still;
  const Value frozen = uniform(still.read(state), {4});
  Program repeat = compile(still, {frozen}, cpu_backend());
  repeat.run();
  const Tensor once = repeat.fetch(frozen);
  repeat.run();
  EXPECT_TRUE(same_bits(repeat.fetch(frozen), once));
  Tape moving;
  const Value fresh = uniform(moving.read(state), {4});
  advance_random_state(moving, state);
  Program advance = compile(moving, {fresh}, cpu_backend());
  advance.run();
  const Tensor before = advance.fetch(fresh);
  advance.run();
  EXPECT_FALSE(same_bits(advance.fetch(fresh), before));
}

// Expected by many: read after assign gives the new value. It is the value at the start of the step, on every line.
TEST(Footguns, ReadAfterAssignIsStillTheStartOfTheStep) {
  Variable v("v", numbers({}, {5}));
  Tape tape;
  tape.assign(v, tape.read(v) + 1.0);
  const Value after = tape.read(v) * 1.0;
  Program p = compile(tape, {after}, cpu_backend());
  p.run();
  EXPECT_EQ(p.fetch_scalar(after), 5);
  EXPECT_EQ(v.value().item(), 6);
}

// Expected: both halves agree. max shares its gradient among ties, so that the sum of the gradient is 1.
TEST(Footguns, MaxSharesItsGradientAmongTies) {
  Tape tape;
  const Value x = tape.constant(numbers({4}, {3, 1, 3, 0}));
  expect_values(eval(gradient(max(x), x), cpu_backend()), {0.5, 0, 0.5, 0});
}

// The gradient of the straight-through value does not reach the codebook; a loss on it trains nothing there.
TEST(Footguns, CodebookLossOnTheStraightThroughValueIsAnError) {
  Tape tape;
  Variable codebook("codebook", Tensor({DType::f32, {4, 2}}));
  const Value z = tape.input("z", {DType::f32, {3, 2}});
  const Value q = gather_rows(tape.read(codebook), nearest_code(z, tape.read(codebook)));
  const Value z_q = straight_through(z, q);
  SG_EXPECT_ERROR(unreachable_gradient, "straight-through",
                  gradient(mean(square(z_q - stop_gradient(z))), tape.read(codebook)));
  EXPECT_EQ(gradient(mean(square(q - stop_gradient(z))), tape.read(codebook)).shape(), (Shape{4, 2}));
}

// Expected: floor division or an error; C++ would have picked the integer 0.
TEST(Footguns, IntegerNumbersBesideRealValuesAreReal) {
  Tape tape;
  const Value x = tape.constant(numbers({}, {1}));
  EXPECT_EQ(eval(x / 2, cpu_backend()).item(), 0.5);
}

// round is half to even, not away from zero.
TEST(Footguns, RoundIsHalfToEven) {
  for (const auto name : backend_names()) {
    Tape tape;
    expect_values(eval(round(tape.constant(numbers({4}, {0.5f, 1.5f, 2.5f, -0.5f}))), backend(name)), {0, 2, 2, 0});
  }
}

// The derivative of sqrt at 0 is infinite, and so is that of a norm: this is said, not hidden by an epsilon.
TEST(Footguns, NormAtZeroHasNoFiniteGradient) {
  Tape tape;
  const Value x = tape.constant(numbers({2}, {0, 0}));
  const Tensor g = eval(gradient(norm(x, {}), x), cpu_backend());
  EXPECT_FALSE(std::isfinite(g.at(0)));
}

// NaN in nearest_code's input must not give an index out of range.
TEST(Footguns, NearestCodeOfNanIsStillACode) {
  for (const auto name : backend_names()) {
    Tape tape;
    const Value z = tape.constant(numbers({2, 2}, {NAN, 1, 0, 0})),
                codes = tape.constant(numbers({3, 2}, {5, 5, 1, 1, 0, 0}));
    const Tensor picks = eval(nearest_code(z, codes), backend(name));
    EXPECT_GE(picks.at(0), 0) << name;
    EXPECT_LT(picks.at(0), 3) << name;
    EXPECT_EQ(picks.at(1), 2) << name;
  }
}

// --- errors ---

TEST(Footguns, MixingTapesIsAnError) {
  Tape a, b;
  SG_EXPECT_ERROR(usage, "tape", a.input("x", {}) + b.input("x", {}));
}

TEST(Footguns, MixingDtypesIsAnError) {
  Tape tape;
  SG_EXPECT_ERROR(dtype, "f64", tape.input("x", {DType::f32, {2}}) + tape.input("y", {DType::f64, {2}}));
}

TEST(Footguns, NumberWhereAValueIsNeededIsAnError) { SG_EXPECT_ERROR(usage, "number", exp(2.0)); }

TEST(Footguns, NullValueIsAnError) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {2}});
  EXPECT_THROW(x + Value{}, Error);
}

TEST(Footguns, ReshapeToAnotherSizeIsAnError) {
  Tape tape;
  SG_EXPECT_ERROR(shape, "", reshape(tape.input("x", {DType::f32, {6}}), Shape{4, 2}));
}

}  // namespace
}  // namespace sg::test
