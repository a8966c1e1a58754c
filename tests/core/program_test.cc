// Compiled programs: what the passes leave, feeds and fetches, assignments, exact forward, check_finite, deep tapes.
#include "core/program.h"

#include <cmath>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/estimator_table.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/op_ids.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/conformance/cases.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

class Programs : public testing::TestWithParam<std::string> {
 protected:
  Backend& on() const { return backend(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(, Programs, testing::Values("reference", "cpu"), [](const auto& info) { return info.param; });

Tensor numbers(Shape shape, std::initializer_list<float> values) { return Tensor::of<float>(shape, values); }

// Without fusion, so that the ops can be found on the compiled tape.
CompileOptions unfused() {
  CompileOptions options;
  options.fuse = false;
  return options;
}

Tensor drawn(Shape shape, double scale = 1, std::uint64_t seed = 5) {
  Rng rng(seed);
  return normal_reals(shape, scale)(rng);
}

TEST_P(Programs, DropDeadCode) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {4}});
  const Value wanted = tanh(x);
  sum(exp(x));
  Program p = compile(tape, {wanted}, on(), unfused());
  EXPECT_EQ(count_ops(p.compiled_tape(), "exp"), 0);
  EXPECT_EQ(count_ops(p.compiled_tape(), "tanh"), 1);
}

TEST_P(Programs, KeepAssignmentsThatNothingFetches) {
  Variable v("v", numbers({2}, {1, 2}));
  Tape tape;
  tape.assign(v, tape.read(v) * 3.0);
  Program p = compile(tape, {}, on());
  p.run();
  expect_values(v.value(), {3, 6});
}

TEST_P(Programs, ComputeCommonSubexpressionsOnce) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {4}});
  const Value y = exp(x * 2.0) + sin(exp(x * 2.0));
  Program p = compile(tape, {y}, on(), unfused());
  EXPECT_EQ(count_ops(p.compiled_tape(), "exp"), 1);
}

TEST_P(Programs, NeverMergeDifferentNumbersOrDraws) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {1000}}), state = tape.input("state", {DType::i32, {2}});
  const float f = 0.1f, next = std::nextafter(f, 1.0f);
  const Value difference = x * next - x * f, draws = uniform(state, {8}) - uniform(state, {8});
  Program p = compile(tape, {difference, draws}, on());
  p.feed(x, Tensor::full({DType::f32, {1000}}, 1e6));
  p.feed(state, Tensor::of<std::int32_t>({2}, {1, 2}));
  p.run();
  EXPECT_NE(p.fetch(difference).at(0), 0);
  EXPECT_NE(p.fetch(draws).at(0), 0);
}

TEST_P(Programs, FoldConstants) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {4}});
  const Value two = tape.constant(2, {DType::f32, {}});
  const Value y = x + sqrt(two * two + 12.0);
  Program p = compile(tape, {y}, on(), unfused());
  EXPECT_EQ(count_ops(p.compiled_tape(), "sqrt"), 0);
  p.feed(x, numbers({4}, {0, 1, 2, 3}));
  p.run();
  expect_values(p.fetch(y), {4, 5, 6, 7});
}

TEST_P(Programs, FeedRunFetch) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {2, 2}});
  const Value y = x * x;
  Program p = compile(tape, {y, x}, on());
  p.feed("x", numbers({2, 2}, {1, 2, 3, 4}));
  p.run();
  expect_values(p.fetch(y), {1, 4, 9, 16});
  expect_values(p.fetch(x), {1, 2, 3, 4});
  p.feed(x, numbers({2, 2}, {-1, 0, 0, 5}));
  p.run();
  expect_values(p.fetch(y), {1, 0, 0, 25});
}

TEST_P(Programs, FetchTheSameValueTwiceAndItsAliases) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {2, 2}});
  const Value y = x + 1.0, flat = reshape(y, Shape{4}), stopped = stop_gradient(y);
  Program p = compile(tape, {y, y, flat, stopped}, on());
  p.feed(x, numbers({2, 2}, {1, 2, 3, 4}));
  p.run();
  for (const Value v : {y, flat, stopped}) expect_values(p.fetch(v), {2, 3, 4, 5});
  EXPECT_EQ(p.fetch(flat).shape(), Shape{4});
}

TEST_P(Programs, AreUnchangedByWhatIsRecordedAfterwards) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {}});
  const Value y = x * 2.0;
  Program p = compile(tape, {y}, on());
  exp(y);
  p.feed(x, numbers({}, {3}));
  p.run();
  EXPECT_EQ(p.fetch_scalar(y), 6);
}

TEST_P(Programs, RefuseWrongFeedsAndFetches) {
  Tape tape, other;
  const Value x = tape.input("x", {DType::f32, {2}}), foreign = other.input("x", {DType::f32, {2}});
  const Value y = exp(x), unfetched = sin(x);
  Program p = compile(tape, {y}, on());
  SG_EXPECT_ERROR(usage, "'x'", p.run());
  SG_EXPECT_ERROR(shape, "f32[3]", p.feed(x, Tensor({DType::f32, {3}})));
  SG_EXPECT_ERROR(dtype, "i32", p.feed(x, Tensor({DType::i32, {2}})));
  SG_EXPECT_ERROR(usage, "'nosuch'", p.feed("nosuch", Tensor({DType::f32, {2}})));
  SG_EXPECT_ERROR(usage, "not an input", p.feed(y, Tensor({DType::f32, {2}})));
  SG_EXPECT_ERROR(usage, "tape", p.feed(foreign, Tensor({DType::f32, {2}})));
  SG_EXPECT_ERROR(usage, "not run", p.fetch(y));
  p.feed(x, Tensor({DType::f32, {2}}));
  p.run();
  SG_EXPECT_ERROR(usage, "fetches", p.fetch(unfetched));
  SG_EXPECT_ERROR(usage, "tape", p.fetch(foreign));
  SG_EXPECT_ERROR(shape, "one number", p.fetch_scalar(y));
  Tensor wrong({DType::f32, {3}});
  SG_EXPECT_ERROR(shape, "fetch_into", p.fetch_into(y, wrong));
  SG_EXPECT_ERROR(usage, "tape", compile(tape, {foreign}, on()));
}

TEST_P(Programs, MayFeedWhatNothingUses) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {2}}), unused = tape.input("unused", {DType::f32, {2}});
  const Value y = exp(x);
  Program p = compile(tape, {y}, on());
  p.feed(x, Tensor({DType::f32, {2}}));
  p.feed(unused, Tensor({DType::f32, {2}}));
  p.feed("unused", Tensor({DType::f32, {2}}));
  p.run();
  expect_values(p.fetch(y), {1, 1});
}

TEST_P(Programs, AssignmentsAreSeenByTheNextRunOnly) {
  Variable v("v", numbers({}, {1}));
  Tape tape;
  const Value before = tape.read(v);
  tape.assign(v, before + 1.0);
  const Value after = before * 10.0;
  Program p = compile(tape, {before, after}, on());
  for (const double wanted : {1, 2, 3}) {
    p.run();
    EXPECT_EQ(p.fetch_scalar(before), wanted) << "the value at the start of the step";
    EXPECT_EQ(p.fetch_scalar(after), wanted * 10);
    EXPECT_EQ(v.value().item(), wanted + 1);
  }
}

TEST_P(Programs, SwapTwoVariables) {
  Variable a("a", numbers({3}, {1, 2, 3})), b("b", numbers({3}, {7, 8, 9}));
  Tape tape;
  const Value old_a = tape.read(a), old_b = tape.read(b);
  tape.assign(a, old_b);
  tape.assign(b, old_a);
  Program p = compile(tape, {}, on());
  p.run();
  expect_values(a.value(), {7, 8, 9});
  expect_values(b.value(), {1, 2, 3});
  p.run();
  expect_values(a.value(), {1, 2, 3});
}

TEST_P(Programs, AssignTheSameValueToTwoVariables) {
  Variable a("a", numbers({2}, {1, 2})), b("b", numbers({2}, {0, 0}));
  Tape tape;
  const Value doubled = tape.read(a) * 2.0;
  tape.assign(a, doubled);
  tape.assign(b, reshape(doubled, Shape{2}));
  Program p = compile(tape, {doubled}, on());
  p.run();
  p.run();
  expect_values(a.value(), {4, 8});
  expect_values(b.value(), {4, 8});
  expect_values(p.fetch(doubled), {4, 8});
}

TEST_P(Programs, SeeVariablesSetFromOutside) {
  Variable v("v", numbers({2}, {1, 2}));
  Tape tape;
  const Value y = tape.read(v) * 2.0;
  Program p = compile(tape, {y}, on());
  p.run();
  v.set(numbers({2}, {10, 20}));
  p.run();
  expect_values(p.fetch(y), {20, 40});
  SG_EXPECT_ERROR(shape, "'v'", v.set(numbers({3}, {1, 2, 3})));
}

TEST_P(Programs, SeeWeightsSetFromOutsideInsidePackedKernels) {
  Variable w("w", drawn({3, 3, 4, 8}));
  Tape tape;
  const Value x = tape.constant(drawn({2, 6, 6, 4}, 1, 9));
  const Value y = conv2d(x, tape.read(w), ConvOptions::square(1, 1));
  Program p = compile(tape, {y}, on());
  p.run();
  w.set(Tensor({DType::f32, {3, 3, 4, 8}}));
  p.run();
  const Tensor out = p.fetch(y);
  for (std::int64_t i = 0; i < out.elements(); ++i) ASSERT_EQ(out.at(i), 0);
}

TEST_P(Programs, ExactForwardGivesTheBitsOfTheCode) {
  // The start of a small codebook: |z| = 1000, |q| = 0.001.
  const Tensor z_rows = drawn({64, 8}, 1000), q_rows = drawn({64, 8}, 0.001, 6);
  for (const auto& name : rows_only_estimator_names()) {
    Tape tape;
    const Value z = tape.input("z", z_rows.type()), q = tape.input("q", q_rows.type());
    const Value z_q = estimator_by_name(name)(z, q);
    Program p = compile(tape, {z_q}, on());
    p.feed(z, z_rows);
    p.feed(q, q_rows);
    p.run();
    EXPECT_TRUE(same_bits(p.fetch(z_q), q_rows)) << name;
  }
}

// Forward, an estimator costs nothing and q - z does not exist: z_q is q's own array. With a gradient, the one of the
// straight-through estimator does not make it either.
TEST_P(Programs, ExactForwardNeverMakesTheDifference) {
  const TensorType type{DType::f32, {64, 8}};
  for (const auto& name : rows_only_estimator_names()) {
    const BoundEstimator estimator = estimator_by_name(name);
    if (!estimator.def.exact_forward) continue;
    Tape tape;
    const Value z = tape.input("z", type), q = tape.input("q", type);
    const Program p = compile(tape, {estimator(z, q)}, on());
    EXPECT_EQ(p.stats().steps, 0u) << name << "\n" << p.explain();
  }
  for (const bool fuse : {true, false}) {
    CompileOptions options;
    options.fuse = fuse;
    Tape tape;
    const Value z = tape.input("z", type), q = tape.input("q", type), w = tape.input("w", type);
    const Value z_q = straight_through(z, q);
    const Program p = compile(tape, {z_q, gradient(sum(w * square(z_q)), z)}, on(), options);
    for (const Instr& instr : p.compiled_tape().instrs()) EXPECT_NE(instr.op, OpId::sub) << p.explain();
    EXPECT_EQ(p.explain().find("sub "), std::string::npos) << p.explain();  // nor inside a row program
    options.exact_forward = false;
    EXPECT_NE(compile(tape, {z_q}, on(), options).explain().find("sub "), std::string::npos) << "what is looked for";
  }
}

TEST(Program, LiteralSumIsFarOffWithoutExactForward) {
  const Tensor z_rows = drawn({64, 8}, 1000), q_rows = drawn({64, 8}, 0.001, 6);
  Tape tape;
  const Value z = tape.input("z", z_rows.type()), q = tape.input("q", q_rows.type());
  const Value z_q = straight_through(z, q), g = gradient(sum(square(z_q) * 0.5), z);
  CompileOptions literal;
  literal.exact_forward = false;
  Program off = compile(tape, {z_q, g}, cpu_backend(), literal), on = compile(tape, {z_q, g}, cpu_backend());
  for (Program* p : {&off, &on}) {
    p->feed(z, z_rows);
    p->feed(q, q_rows);
    p->run();
  }
  double error = 0, size = 0;
  const Tensor sum_form = off.fetch(z_q);
  for (std::int64_t i = 0; i < q_rows.elements(); ++i) {
    error += std::abs(sum_form.at(i) - q_rows.at(i));
    size += std::abs(q_rows.at(i));
  }
  EXPECT_GT(error / size, 0.005);
  EXPECT_TRUE(same_bits(on.fetch(g), q_rows)) << "the gradient of |z_q|^2 / 2 is z_q";
}

TEST_P(Programs, ExactForwardLeavesOtherSumsAlone) {
  Tape tape;
  const Value a = tape.input("a", {DType::f32, {3}}), b = tape.input("b", {DType::f32, {3}}),
              c = tape.input("c", {DType::f32, {3}});
  const Value plain = a + (b - a), other = a + stop_gradient(b - c), reversed = a + stop_gradient(a - b);
  Program p = compile(tape, {plain, other, reversed}, on());
  p.feed(a, numbers({3}, {1e8f, 1, 2}));
  p.feed(b, numbers({3}, {1, 2, 3}));
  p.feed(c, numbers({3}, {5, 5, 5}));
  p.run();
  if (on().storage(DType::f32) == DType::f32) {
    EXPECT_EQ(p.fetch(plain).at(0), 0) << "without stop_gradient the sum is the literal one";
  }
  EXPECT_EQ(p.fetch(other).at(1), -2);
  EXPECT_EQ(p.fetch(reversed).at(2), 1);
}

TEST_P(Programs, ExactForwardRespectsBroadcasting) {
  Tape tape;
  const Value a = tape.input("a", {DType::f32, {2, 2}}), b = tape.input("b", {DType::f32, {2}});
  const Value y = a + stop_gradient(b - a);
  Program p = compile(tape, {y}, on());
  p.feed(a, numbers({2, 2}, {1, 2, 3, 4}));
  p.feed(b, numbers({2}, {7, 8}));
  p.run();
  expect_values(p.fetch(y), {7, 8, 7, 8});
}

// b - a was computed as arithmetic on constants before the pattern was looked for, and the sum lost b; a constant b lost
// its extents to that arithmetic, and with them the pattern.
TEST_P(Programs, ExactForwardOfConstantsIsNotFoldedAway) {
  const TensorType type{DType::f32, {3}};
  for (const bool variable_a : {false, true})
    for (const bool recorded_twice : {false, true}) {
      Variable w("w", numbers({3}, {1000, 1000, 1000}));
      Tape tape;
      const auto make_a = [&] { return variable_a ? tape.read(w) : tape.constant(1000, type); };
      const Value a = make_a(), again = recorded_twice ? make_a() : a, b = tape.constant(1e-5, type);
      const Value y = a + stop_gradient(b - again), swapped = stop_gradient(b - again) + a;
      Program p = compile(tape, {y, swapped}, on());
      p.run();
      for (const Value& v : {y, swapped})
        EXPECT_TRUE(same_bits(p.fetch(v), Tensor::full(type, 1e-5))) << p.explain() << variable_a << recorded_twice;
      EXPECT_EQ(p.stats().steps, 0u) << p.explain();
    }
}

TEST_P(Programs, CheckFiniteNamesTheFirstBadInstructionAndKeepsVariables) {
  Variable w("w", numbers({2}, {1, 1}));
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {2}});
  unsigned line = 0;
  Value bad;
  {
    Scope scope(tape, "encoder");
    line = __LINE__ + 1;
    bad = log(x);
  }
  const Value loss = sum(square(bad * tape.read(w)));
  tape.assign(w, tape.read(w) - gradient(loss, tape.read(w)));
  CompileOptions options;
  options.check_finite = true;
  Program p = compile(tape, {loss}, on(), options);
  p.feed(x, numbers({2}, {1, 2}));
  p.run();
  const Tensor kept = w.value();
  p.feed(x, numbers({2}, {-1, 2}));
  const auto e = error_of([&] { p.run(); });
  ASSERT_TRUE(e);
  EXPECT_EQ(e->kind(), ErrorKind::non_finite);
  SG_EXPECT_CONTAINS(e->message(), "log");
  SG_EXPECT_CONTAINS(e->message(), "f32[2]");
  SG_EXPECT_CONTAINS(e->message(), "encoder");
  SG_EXPECT_CONTAINS(e->message(), "program_test.cc:" + std::to_string(line));
  SG_EXPECT_CONTAINS(e->message(), "min -1, max 2");
  EXPECT_EQ(e->loc().line(), line);
  EXPECT_TRUE(same_bits(w.value(), kept)) << "nothing is committed";
  p.feed(x, numbers({2}, {1, 3}));
  p.run();
  EXPECT_FALSE(same_bits(w.value(), kept)) << "and the program goes on";
}

TEST_P(Programs, CheckFiniteSaysWhereTheDataItselfIsBad) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {2}});
  const Value y = x * 2.0;
  CompileOptions options;
  options.check_finite = true;
  Program p = compile(tape, {y}, on(), options);
  p.feed(x, numbers({2}, {1, NAN}));
  SG_EXPECT_ERROR(non_finite, "input 'x'", p.run());
}

TEST_P(Programs, StrictNamesWhatTheBackendLacks) {
  // Whether or not this backend has every kernel: strict either compiles to no decomposed op, or says which op it is.
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {2, 3}});
  const Value y = sum(exp(x));
  CompileOptions options;
  options.strict = true;
  EXPECT_EQ(compile(tape, {y}, on(), options).stats().decomposed, 0u);
}

TEST_P(Programs, RunTapesOfTwoHundredThousandInstructions) {
  constexpr int kDepth = 100000;
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {2}}), s = tape.input("s", {DType::f32, {}});
  Value y = x;
  for (int i = 0; i < kDepth; ++i) y = y + s;
  for (int i = 0; i < kDepth; ++i) y = y - s;
  const Value g = gradient(sum(square(y)), x);
  Program p = compile(tape, {y, g}, on());
  p.feed(x, numbers({2}, {1, -2}));
  p.feed(s, numbers({}, {1}));
  p.run();
  expect_values(p.fetch(y), {1, -2});
  expect_values(p.fetch(g), {2, -4});
}

TEST_P(Programs, ExplainListsStepsAndMemory) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {4, 4}});
  const Value y = matmul(tanh(x), x);
  CompileOptions options;
  options.profile = true;
  Program p = compile(tape, {y}, on(), options);
  p.feed(x, drawn({4, 4}));
  p.run();
  const std::string text = p.explain();
  for (const char* part : {"matmul", "tanh", "arena", "reorders", "program_test.cc"}) SG_EXPECT_CONTAINS(text, part);
  EXPECT_FALSE(p.profile().empty());
}

TEST(Eval, LeavesVariablesAlone) {
  Variable v("v", numbers({2}, {1, 2}));
  Tape tape;
  const Value doubled = tape.read(v) * 2.0;
  tape.assign(v, doubled);
  expect_values(eval(doubled, cpu_backend()), {2, 4});
  expect_values(v.value(), {1, 2});
}

}  // namespace
}  // namespace sg::test
