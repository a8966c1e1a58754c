// Every elementwise op in every element type, on special numbers and in every form of broadcasting, by both executors
// of row programs against the reference backend.
#include <limits>

#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/cuda/row_support.h"

namespace sg::test {
namespace {

class CudaRowOps : public RowTest {};

std::vector<double> specials(DType dtype) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> x{0.0,  -0.0, 1.0,  -1.0,  0.5,    1.5,   2.5,   -2.5, 0.3,  -0.7,      3.0,
                        -3.0, 10.0, 88.0, -87.0, -104.0, 1e-20, 1e5,   inf,  -inf, nan,       -nan,
                        0.99, 7e8,  -5.5, 2e9,   3e9,    -3e9,  6.283, 1e-6, -4.0, 16777217.0};
  if (dtype == DType::f64) x.insert(x.end(), {1e200, -1e-300, 700.0, 1e-310});
  if (dtype != DType::f64) x.insert(x.end(), {3e38, -1e-39});
  return x;
}

// All pairs of special numbers.
std::pair<Tensor, Tensor> pairs(DType dtype) {
  const std::vector<double> x = specials(dtype);
  const auto n = static_cast<std::int64_t>(x.size());
  Tensor a({dtype, {n * n}}), b({dtype, {n * n}});
  for (std::int64_t i = 0; i < n * n; ++i) {
    a.set(i, x[static_cast<std::size_t>(i / n)]);
    b.set(i, x[static_cast<std::size_t>(i % n)]);
  }
  return {a, b};
}

double tolerance(DType dtype) { return dtype == DType::f64 ? 4e-15 : dtype == DType::f32 ? 2e-6 : 0x1p-7; }

std::vector<Value> all_unary(Value x) {
  return {-x,
          abs(x),
          exp(x),
          log(x),
          sqrt(x),
          rsqrt(x),
          square(x),
          sin(x),
          cos(x),
          acos(x),
          erf(x),
          tanh(x),
          sigmoid(x),
          softplus(x),
          silu(x),
          relu(x),
          gelu(x),
          round(x),
          floor(x),
          sign(x),
          leaky_relu(x, 0.125),
          clamp(x, -1.0, 2.0),
          clamp(x, -0.3, -0.3)};
}
std::vector<Value> all_binary(Value a, Value b) {
  return {a + b,
          a - b,
          a * b,
          a / b,
          pow(a, b),
          minimum(a, b),
          maximum(a, b),
          equal(a, b),
          not_equal(a, b),
          less(a, b),
          less_equal(a, b),
          greater(a, b),
          greater_equal(a, b),
          where(less(a, b), a, b),
          a.tape->emit1(OpId::relu_grad, {a, b})};
}

TEST_F(CudaRowOps, RealOpsOnSpecialNumbers) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    const auto [left, right] = pairs(dtype);
    Tape t;
    const Value a = t.input("a", left.type()), b = t.input("b", left.type());
    std::vector<Value> fetches = all_unary(a);
    const std::size_t unary = fetches.size();
    for (const Value v : all_binary(a, b)) fetches.push_back(v);
    const auto want = run_on(reference_backend(), t, fetches, {{a, left}, {b, right}});
    for (const Executor e : executors()) {
      const auto got = run_on(row_backend(e), t, fetches, {{a, left}, {b, right}});
      for (std::size_t k = 0; k < fetches.size(); ++k)
        for (std::int64_t i = 0; i < left.elements(); ++i) {
          const double x = want[k].at(i), y = got[k].at(i);
          const bool same = x == y ? std::signbit(x) == std::signbit(y) : std::isnan(x) && std::isnan(y);
          const OpId op = t.instrs()[static_cast<std::size_t>(t.producer(fetches[k].id))].op;
          // 1 + erf(x) of the reference has lost what is below the last bit of 1.
          const double atol = op == OpId::gelu ? 1e-15 : dtype == DType::f64 ? 1e-300 : 1e-37;
          if (!same && !(std::abs(x - y) <= tolerance(dtype) * std::abs(x) + atol)) {
            ADD_FAILURE() << name_of(e) << " " << to_string(dtype) << (k < unary ? " unary " : " binary ")
                          << op_def(op).name << "(" << left.at(i) << ", " << right.at(i) << ") = " << y
                          << " instead of " << x;
            break;
          }
        }
    }
  }
}

TEST_F(CudaRowOps, IntegerOps) {
  std::mt19937 rng(3);
  const TensorType type{DType::i32, {37}};
  Tape t;
  const Value a = t.input("a", type), b = t.input("b", type), c = t.input("c", {DType::i32, {5, 1}});
  const std::vector<Value> fetches{a + b,
                                   a - b,
                                   a * b,
                                   minimum(a, b),
                                   maximum(a, b),
                                   -a,
                                   abs(a),
                                   equal(a, b),
                                   less(a, b),
                                   greater_equal(a, b),
                                   not_equal(a, b),
                                   where(less(a, b), a, b),
                                   a * c,
                                   sum(a * c, {-1}),
                                   max(a * c, {-1}),
                                   sum(a * c, {0}),
                                   sum(a * c)};
  expect_as_reference(t, fetches,
                      {{a, random_tensor(rng, a.type(), -40, 40)},
                       {b, random_tensor(rng, b.type(), -40, 40)},
                       {c, random_tensor(rng, c.type(), -40, 40)}},
                      0, "i32");
}

TEST_F(CudaRowOps, Casts) {
  for (const DType from : {DType::f32, DType::f64, DType::bf16, DType::i32})
    for (const DType to : {DType::f32, DType::f64, DType::bf16, DType::i32}) {
      if (from == to) continue;
      std::vector<double> x = specials(from);
      if (from == DType::i32) x = {0, 1, -1, 2147483647, -2147483647, 16777217, 33554433, 257, 259, -385, 8421377};
      for (const double halfway : {1.00390625, 1.01171875, 1.00390625 + 0x1p-40, 1.00390625 - 0x1p-40, 0.99999999999})
        if (from != DType::i32) x.push_back(halfway);  // between two numbers of bf16
      Tensor data({from, {static_cast<std::int64_t>(x.size())}});
      for (std::size_t i = 0; i < x.size(); ++i) data.set(static_cast<std::int64_t>(i), x[i]);
      Tape t;
      const Value v = t.input("x", data.type());
      expect_as_reference(t, {cast(v, to)}, {{v, data}}, 0,
                          std::string(to_string(from)) + " to " + std::string(to_string(to)));
    }
}

TEST_F(CudaRowOps, EveryFormOfBroadcasting) {
  const std::pair<Shape, Shape> forms[] = {{{4, 3, 5}, {3, 1}},
                                           {{4, 3, 5}, {3, 5}},
                                           {{4, 3, 5}, {5}},
                                           {{4, 3, 5}, {4, 1, 1}},
                                           {{4, 3, 5}, {4, 1, 5}},
                                           {{2, 1, 3, 1}, {1, 4, 1, 5}},
                                           {{4, 1}, {1, 5}},
                                           {{2, 3, 4, 5}, {3, 1, 5}},
                                           {{2, 3, 4, 5}, {2, 1, 4, 1}},
                                           {{}, {3, 3}},
                                           {{1}, {1}},
                                           {{33, 8}, {33, 1}},
                                           {{2, 3, 2, 3, 2, 4}, {1, 3, 1, 3, 1, 4}}};
  std::mt19937 rng(5);
  CompileOptions plain;
  plain.fuse = false;
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const auto& [left, right] : forms) {
      Tape t;
      const Value a = t.input("a", {dtype, left}), b = t.input("b", {dtype, right});
      const Value c = t.input("c", {DType::i32, left.rank() > right.rank() ? right : left});
      const Feeds feeds{{a, random_tensor(rng, a.type())},
                        {b, random_tensor(rng, b.type())},
                        {c, random_tensor(rng, c.type(), -1.9, 1.9)}};
      expect_as_reference(t, {a - b, b * a, where(c, a, b)}, feeds, dtype == DType::f32 ? 1e-7 : 0,
                          to_string(left) + " and " + to_string(right), plain);
    }
}

TEST_F(CudaRowOps, EmptyOperandsAndEmptyReductions) {
  Tape t;
  const Value a = t.input("a", {DType::f32, {0, 5}}), b = t.input("b", {DType::f32, {5}});
  const Value c = t.input("c", {DType::f32, {3, 0}});
  std::mt19937 rng(1);
  const Feeds feeds{{a, Tensor(a.type())}, {b, random_tensor(rng, b.type())}, {c, Tensor(c.type())}};
  expect_as_reference(t, {a * b + 1.0, sum(square(a) + b, {0}), sum(square(c) * 2.0, {-1}), sum(c * 2.0) + b}, feeds, 0,
                      "empty");
}

}  // namespace
}  // namespace sg::test
