// Recording: types and errors at the user's own line, scopes, stable text, the invariants that verify() checks.
#include "core/tape.h"

#include "core/rewrite.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/matmul.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

const TensorType kMatrix{DType::f32, {2, 3}};

TEST(Tape, InfersTypesWhileRecording) {
  Tape tape;
  const Value x = tape.input("x", kMatrix), w = tape.input("w", {DType::f32, {3, 5}});
  EXPECT_EQ(to_string(matmul(x, w).type()), "f32[2,5]");
  EXPECT_EQ(to_string(argmax(x).type()), "i32[2]");
  EXPECT_EQ(to_string(sum(x, {0}, true).type()), "f32[1,3]");
  EXPECT_EQ(to_string(greater(x, 0.0).type()), "i32[2,3]");
}

TEST(Tape, NumbersTakeTheDtypeOfTheOtherSide) {
  Tape tape;
  const Value x = tape.input("x", {DType::f64, {2}});
  EXPECT_EQ((2 * x).dtype(), DType::f64);
  EXPECT_EQ((x - 0.5f).dtype(), DType::f64);
}

TEST(Tape, ShapeErrorOfAFunctionIsAtTheUsersLine) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {8, 16, 16, 64}}), w = tape.input("w", {DType::f32, {3, 3, 32, 64}});
  const unsigned line = __LINE__ + 1;
  const auto e = error_of([&] { conv2d(x, w); });
  ASSERT_TRUE(e);
  EXPECT_EQ(e->kind(), ErrorKind::shape);
  EXPECT_EQ(e->loc().line(), line);
  SG_EXPECT_CONTAINS(e->message(), "conv2d");
  SG_EXPECT_CONTAINS(e->message(), "64");
  SG_EXPECT_CONTAINS(e->message(), "32");
  SG_EXPECT_CONTAINS(e->message(), "input 'w'");
  SG_EXPECT_CONTAINS(e->message(), "tape_test.cc:" + std::to_string(line));
}

TEST(Tape, ShapeErrorOfAnOperatorIsAtTheUsersLine) {
  Tape tape;
  const Value a = tape.input("a", {DType::f32, {2, 3}}), b = tape.input("b", {DType::f32, {4}});
  const unsigned line = __LINE__ + 1;
  const auto e = error_of([&] { a + b; });
  ASSERT_TRUE(e);
  EXPECT_EQ(e->kind(), ErrorKind::shape);
  EXPECT_EQ(e->loc().line(), line);
}

TEST(Tape, ErrorInsideACompositionIsAtTheUsersLine) {
  Tape tape;
  const Value x = tape.input("x", kMatrix);
  const unsigned line = __LINE__ + 1;
  const auto e = error_of([&] { mean(x, {7}); });
  ASSERT_TRUE(e);
  EXPECT_EQ(e->loc().line(), line);
  EXPECT_TRUE(contains(e->loc().file_name(), "tape_test.cc")) << e->loc().file_name();
}

TEST(Tape, NumbersKeepTheUsersLine) {
  Tape tape;
  const Value x = tape.input("x", kMatrix);
  const unsigned line = __LINE__ + 1;
  const Value y = 2.0 * x;
  for (const std::int32_t v : tape.instrs()[static_cast<std::size_t>(tape.producer(y.id))].inputs) {
    if (v == x.id) continue;
    EXPECT_EQ(tape.instrs()[static_cast<std::size_t>(tape.producer(v))].loc.line(), line);
  }
  EXPECT_EQ(tape.instrs().back().loc.line(), line);
}

TEST(Tape, RejectsWhatCannotBeRecorded) {
  Tape tape, other;
  const Value x = tape.input("x", kMatrix), y = other.input("y", kMatrix), i = tape.input("i", {DType::i32, {2, 3}});
  SG_EXPECT_ERROR(usage, "twice", tape.input("x", kMatrix));
  SG_EXPECT_ERROR(usage, "tape", x + y);
  SG_EXPECT_ERROR(dtype, "", x + i);
  SG_EXPECT_ERROR(dtype, "", exp(i));
  Variable v("weight", Tensor(kMatrix));
  SG_EXPECT_ERROR(shape, "weight", tape.assign(v, sum(x)));
  SG_EXPECT_ERROR(dtype, "weight", tape.assign(v, i));
  tape.assign(v, x);
  SG_EXPECT_ERROR(usage, "weight", tape.assign(v, x));
}

TEST(Tape, ReadingAVariableTwiceGivesTheSameValue) {
  Tape tape;
  Variable v("v", Tensor(kMatrix));
  EXPECT_EQ(tape.read(v), tape.read(v));
}

TEST(Tape, ScopesNest) {
  Tape tape;
  const Value x = tape.input("x", kMatrix);
  Value inner, after;
  {
    Scope encoder(tape, "encoder");
    Scope block(tape, "res1");
    inner = relu(x);
  }
  after = relu(x);
  const auto path = [&](Value v) {
    return tape.scope_path(tape.instrs()[static_cast<std::size_t>(tape.producer(v.id))].scope);
  };
  EXPECT_EQ(path(inner), "encoder/res1");
  EXPECT_EQ(path(after), "");
  SG_EXPECT_CONTAINS(tape.describe(inner.id), "encoder/res1");
  SG_EXPECT_CONTAINS(tape.describe(inner.id), "f32[2,3]");
}

void record_example(Tape& tape, Variable& w) {
  const Value x = tape.input("x", {DType::f32, {2, 3}});
  Scope scope(tape, "layer");
  const Value y = tanh(matmul(x, tape.read(w)));
  tape.assign(w, 0.5 * tape.read(w));
  sum(leaky_relu(stop_gradient(y), 0.25), {-1}, true);
}

TEST(Tape, TextIsStable) {
  Variable w("layer.w", Tensor({DType::f32, {3, 4}}));
  Tape tape;
  record_example(tape, w);
  EXPECT_EQ(tape.to_string(), R"(  %0 f32[2,3] = input {name='x'}
# layer
  %1 f32[3,4] = read 'layer.w'
  %2 f32[2,4] = matmul %0 %1 {transpose_a=0 transpose_b=0}
  %3 f32[2,4] = tanh %2
  %4 f32[] = constant {value=0.5}
  %5 f32[3,4] = mul %4 %1
  assign 'layer.w' %5
  %6 f32[2,4] = stop_gradient %3
  %7 f32[2,4] = leaky_relu %6 {slope=0.25}
  %8 f32[2,1] = sum %7 {axes=[1] keep=1}
)");
}

TEST(Tape, TextOfTheSameProgramIsTheSame) {
  Variable w("layer.w", Tensor({DType::f32, {3, 4}}));
  Tape first, second;
  record_example(first, w);
  record_example(second, w);
  EXPECT_EQ(first.to_string(), second.to_string());
}

TEST(Tape, TextNamesNoPlaceOnTheMachine) {
  Tape tape;
  Variable w("layer.w", Tensor({DType::f32, {3, 4}}));
  record_example(tape, w);
  EXPECT_FALSE(contains(tape.to_string(), SG_SOURCE_DIR));
  EXPECT_FALSE(contains(tape.describe(tape.value_count() - 1), SG_SOURCE_DIR));
}

TEST(Tape, VerifyAcceptsWhatWasRecordedAndWhatPassesMade) {
  Tape tape;
  Variable w("layer.w", Tensor({DType::f32, {3, 4}}));
  record_example(tape, w);
  tape.verify();
  const std::int32_t keep[] = {tape.value_count() - 1};
  for (const Rewritten& r :
       {eliminate_dead_code(tape, keep), simplify(tape), apply_exact_forward(tape), forward_aliases(tape)})
    r.tape->verify();
}

TEST(Tape, RandomInstructionsHaveStreamsOfTheirOwn) {
  Tape tape;
  const Value state = tape.input("state", {DType::i32, {2}});
  const Value a = uniform(state, {3}), b = uniform(state, {3});
  const auto stream = [&](Value v) {
    return tape.instrs()[static_cast<std::size_t>(tape.producer(v.id))].attrs.i("stream");
  };
  EXPECT_NE(stream(a), stream(b));
}

TEST(Shape, BroadcastsAndRefuses) {
  EXPECT_EQ(broadcast_shapes({2, 1, 3}, {4, 1}), (Shape{2, 4, 3}));
  EXPECT_EQ(broadcast_shapes({}, {4}), (Shape{4}));
  EXPECT_EQ(broadcast_shapes({0, 1}, {1, 3}), (Shape{0, 3}));
  SG_EXPECT_ERROR(shape, "[2,3]", broadcast_shapes({2, 3}, {2}));
  SG_EXPECT_ERROR(shape, "", Shape({1, 1, 1, 1, 1, 1, 1}));
  SG_EXPECT_ERROR(shape, "", Shape({-1}));
}

TEST(Tensor, ChecksSizesAndTypes) {
  SG_EXPECT_ERROR(shape, "3 values", Tensor::of<float>({2}, {1, 2, 3}));
  SG_EXPECT_ERROR(dtype, "", Tensor(kMatrix).span<double>());
  SG_EXPECT_ERROR(shape, "", Tensor(kMatrix).item());
  SG_EXPECT_ERROR(shape, "", Tensor(kMatrix).reshaped({7}));
  EXPECT_EQ(Tensor::full({DType::f64, {}}, 0.1).item(), 0.1);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(Tensor(kMatrix).data()) % 64, 0u);
}

}  // namespace
}  // namespace sg::test
