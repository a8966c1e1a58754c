// Jacobian contracts: the forms that G may take, what a broken one says, what is refused.
#include "core/contract.h"

#include "backends/backends.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

Tensor reals(Shape shape, std::initializer_list<double> values) { return Tensor::of<double>(shape, values); }

TEST(ExpectJacobian, TakesOneMatrixForAllRows) {
  Tape tape;
  const Value z = tape.constant(reals({3, 2}, {1, 2, 3, 4, 5, 6}));
  const Value w = tape.constant(reals({2, 3}, {1, 2, 3, 4, 5, 6}));
  expect_jacobian(matmul(z, w), z, reals({3, 2}, {1, 4, 2, 5, 3, 6}), reference_backend());
}

TEST(ExpectJacobian, TakesOneMatrixPerRow) {
  Tape tape;
  Variable rows("rows", reals({2, 2}, {1, 2, 3, 4}));
  const Value z = tape.read(rows);
  expect_jacobian(square(z), z, reals({2, 2, 2}, {2, 0, 0, 4, 6, 0, 0, 8}), reference_backend());
}

TEST(ExpectJacobian, TakesTheWholeMatrixWhereRowsDependOnEachOther) {
  Tape tape;
  const Value z = tape.constant(reals({2, 2}, {1, 2, 3, 4}));
  const Value centred = z - mean(z, {0}, true);
  expect_jacobian(centred, z, reals({4, 4}, {.5, 0, -.5, 0, 0, .5, 0, -.5, -.5, 0, .5, 0, 0, -.5, 0, .5}),
                  reference_backend());
  SG_EXPECT_ERROR(contract, "d z_q[0,0] / d z[1,0] is -0.5, wanted 0",
                  expect_jacobian(centred, z, reals({2, 2}, {.5, 0, 0, .5}), reference_backend()));
}

TEST(ExpectJacobian, NamesTheEntryTheErrorAndThePath) {
  Tape tape;
  const Value z = tape.constant(reals({2, 2}, {1, 2, 3, 4})), q = tape.constant(reals({2, 2}, {0, 0, 0, 0}));
  const unsigned line = __LINE__ + 1;
  const Value z_q = 0.5 * z + stop_gradient(q - 0.5 * z);
  const auto e = error_of([&] { expect_jacobian(z_q, z, reals({2, 2}, {.5, 0, 1e-3, .5}), reference_backend()); });
  ASSERT_TRUE(e);
  EXPECT_EQ(to_string(e->kind()), "contract");
  SG_EXPECT_CONTAINS(e->message(), "d z_q[0,1] / d z[0,0] is 0, wanted 0.001");
  SG_EXPECT_CONTAINS(e->message(), "2 of 16 entries differ, the worst by 0.001");
  SG_EXPECT_CONTAINS(e->message(), "contract_test.cc:" + std::to_string(line));
  SG_EXPECT_CONTAINS(e->message(), "stop_gradient");
  EXPECT_EQ(e->loc().line(), line + 1);
}

TEST(ExpectJacobian, CountsNaNAsWrong) {
  Tape tape;
  const Value z = tape.constant(reals({1, 1}, {0}));
  SG_EXPECT_ERROR(contract, "wanted", expect_jacobian(sqrt(z) * z, z, reals({1, 1}, {0}), reference_backend()));
}

TEST(ExpectJacobian, IsZeroWhereNoGradientArrives) {
  Tape tape;
  const Value z = tape.constant(reals({2, 1}, {1, 2})), q = tape.constant(reals({2, 1}, {1, 2}));
  expect_jacobian(stop_gradient(z), z, reals({1, 1}, {0}), reference_backend());
  SG_EXPECT_ERROR(contract, "unconnected", expect_jacobian(q, z, reals({1, 1}, {1}), reference_backend()));
}

TEST(ExpectJacobian, LeavesTheTapeAndItsVariablesAlone) {
  Tape tape;
  Variable state("state", reals({2, 1}, {1, 2}));
  const Value z = tape.read(state), y = 2 * z;
  tape.assign(state, y);
  const std::string before = tape.to_string();
  expect_jacobian(y, z, reals({1, 1}, {2}), reference_backend());
  EXPECT_EQ(tape.to_string(), before);
  expect_values(state.value(), {1, 2});
}

TEST(ExpectJacobian, RefusesWhatItCannotCompare) {
  Tape tape;
  const Value z = tape.constant(reals({2, 2}, {1, 2, 3, 4}));
  SG_EXPECT_ERROR(shape, "[2,2] for all rows", expect_jacobian(z, z, reals({3}, {1, 1, 1}), reference_backend()));
  SG_EXPECT_ERROR(shape, "both must be rows", expect_jacobian(sum(z), z, reals({1, 1}, {1}), reference_backend()));
  const Value single = tape.constant(Tensor::of<float>({1, 1}, {3}));
  SG_EXPECT_ERROR(dtype, "f64", expect_jacobian(square(single), single, reals({1, 1}, {6}), reference_backend()));
  expect_jacobian(square(single), single, reals({1, 1}, {6}), reference_backend(), 1e-6);
  const Value x = tape.input("x", {DType::f64, {1, 1}});
  SG_EXPECT_ERROR(usage, "'x'", expect_jacobian(square(x), x, reals({1, 1}, {6}), reference_backend()));
}

}  // namespace
}  // namespace sg::test
