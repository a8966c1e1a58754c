// Cases of elementwise ops: broadcasting forms, empty and single-element extents, sizes that reach the parallel paths,
// NaN and infinities, and points on either side of every kink.
#include <cmath>

#include "ops/elementwise.h"
#include "ops/op_ids.h"
#include "tests/conformance/cases.h"

namespace sg::test {
namespace {

using In = std::span<const Value>;
using Unary = Value (*)(Operand);
using Binary = Value (*)(Operand, Operand);

struct UnaryRow {
  const char* op;
  Unary f;
  double lo, hi;
};

// Each over an interval of its own, away from kinks and poles.
constexpr UnaryRow kUnary[] = {
    {"neg", [](Operand x) { return -x; }, -2, 2},
    {"abs", abs, 0.1, 3},
    {"exp", exp, -3, 3},
    {"log", log, 0.2, 5},
    {"sqrt", sqrt, 0.2, 5},
    {"rsqrt", rsqrt, 0.2, 5},
    {"square", square, -3, 3},
    {"sin", sin, -4, 4},
    {"cos", cos, -4, 4},
    {"acos", acos, -0.9, 0.9},
    {"erf", erf, -2.5, 2.5},
    {"tanh", tanh, -3, 3},
    {"sigmoid", sigmoid, -6, 6},
    {"softplus", softplus, -6, 6},
    {"silu", silu, -6, 6},
    {"relu", relu, -3, 3},
    {"gelu", gelu, -4, 4},
    {"round", round, -4, 4},
    {"floor", floor, -4, 4},
    {"sign", sign, -2, 2},
};

struct BinaryRow {
  const char* op;
  Binary f;
};
constexpr BinaryRow kArithmetic[] = {
    {"add", [](Operand a, Operand b) { return a + b; }},
    {"sub", [](Operand a, Operand b) { return a - b; }},
    {"mul", [](Operand a, Operand b) { return a * b; }},
    {"div", [](Operand a, Operand b) { return a / b; }},
    {"minimum", minimum},
    {"maximum", maximum},
};
constexpr BinaryRow kCompare[] = {
    {"equal", equal},           {"not_equal", not_equal}, {"less", less},
    {"less_equal", less_equal}, {"greater", greater},     {"greater_equal", greater_equal},
};

Build unary(Unary f) {
  return [f](Tape&, In x) { return f(x[0]); };
}
Build binary(Binary f) {
  return [f](Tape&, In x) { return f(x[0], x[1]); };
}

void add_unary(CaseList& list) {
  for (const auto& row : kUnary) {
    list.add(row.op, "small", {uniform_reals({3, 5}, row.lo, row.hi)}, unary(row.f));
    list.add(row.op, "scalar", {uniform_reals({}, row.lo, row.hi)}, unary(row.f));
    list.add(row.op, "empty", {uniform_reals({0, 4}, row.lo, row.hi)}, unary(row.f)).no_gradcheck();
    list.add(row.op, "large", {uniform_reals({257, 301}, row.lo, row.hi)}, unary(row.f)).no_gradcheck();
    list.add(row.op, "special", {special_reals({5, 7})}, unary(row.f)).no_gradient().per_element();
  }
  list.add("neg", "integers", {ints({2, 2}, {1, -2, 0, 7})}, unary([](Operand x) { return -x; }));
  list.add("abs", "negative", {uniform_reals({7}, -3, -0.1)}, unary(abs));
  list.add("relu", "at_zero", {reals({4}, {0, -0.0f, 1, -1})}, unary(relu)).no_gradcheck();
  list.add("round", "halves", {reals({6}, {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 8388609})}, unary(round));
  list.add("floor", "edges", {reals({5}, {-1, -0.5f, 0.99999994f, 1, 3e9f})}, unary(floor));
  list.add("exp", "range", {reals({6}, {-104, -87, 88, 88.7f, 89, -1e4f})}, unary(exp))
      .no_gradient()
      .per_element()
      .accuracy(64, 1e-44);
  list.add("softplus", "range", {reals({5}, {-100, -20, 0, 20, 100})}, unary(softplus)).no_gradcheck();
  list.add("sigmoid", "range", {reals({5}, {-100, -20, 0, 20, 100})}, unary(sigmoid)).no_gradcheck();
  list.add("tanh", "tiny", {reals({4}, {1e-6f, -1e-4f, 1e-3f, 9})}, unary(tanh))
      .no_gradient()
      .per_element()
      .accuracy(32, 1e-30);
  list.add("leaky_relu", "small", {nonzero_reals({4, 3})}, [](Tape&, In x) { return leaky_relu(x[0], 0.2); });
  list.add("leaky_relu", "large", {normal_reals({300, 301})}, [](Tape&, In x) { return leaky_relu(x[0]); })
      .no_gradcheck();
  list.add("leaky_relu", "special", {special_reals({20})}, [](Tape&, In x) { return leaky_relu(x[0]); }).no_gradient();
  list.add("clamp", "small", {uniform_reals({4, 5}, -2, 2)}, [](Tape&, In x) { return clamp(x[0], -0.5, 1.25); });
  list.add("clamp", "edges", {reals({5}, {-0.5f, 1.25f, 0, -9, 9})},
           [](Tape&, In x) { return clamp(x[0], -0.5, 1.25); })
      .no_gradcheck();
  list.add("clamp", "special", {special_reals({20})}, [](Tape&, In x) { return clamp(x[0], -1, 1); }).no_gradient();
  list.add("cast", "to_integer", {uniform_reals({4, 5}, -9, 9)}, [](Tape&, In x) { return cast(x[0], DType::i32); });
  list.add("cast", "from_integer", {indices({4, 5}, 99)}, [](Tape&, In x) { return cast(x[0], DType::f32); });
  list.add("cast", "to_double", {normal_reals({4, 5})}, [](Tape&, In x) { return cast(x[0], DType::f64); });
  list.add("cast", "there_and_back", {normal_reals({65})},
           [](Tape&, In x) { return cast(square(cast(x[0], DType::f64)), x[0].dtype()); });
}

void add_binary(CaseList& list) {
  for (const auto& row : kArithmetic) {
    const auto a = [](Shape s) { return distinct_reals(s); };
    const auto b = [](Shape s) { return nonzero_reals(s, 0.5, 2); };
    list.add(row.op, "same", {a({3, 4}), b({3, 4})}, binary(row.f));
    list.add(row.op, "row", {a({3, 4}), b({4})}, binary(row.f));
    list.add(row.op, "column", {a({3, 4}), b({3, 1})}, binary(row.f));
    list.add(row.op, "both_ways", {a({3, 1, 2}), b({1, 4, 1})}, binary(row.f));
    list.add(row.op, "scalar_left", {a({}), b({2, 3})}, binary(row.f));
    list.add(row.op, "scalar_right", {a({2, 3}), b({})}, binary(row.f));
    list.add(row.op, "rank_six", {a({2, 1, 3, 1, 2, 1}), b({1, 2, 1, 2, 1, 3})}, binary(row.f));
    list.add(row.op, "empty", {a({0, 3}), b({1, 3})}, binary(row.f)).no_gradcheck();
    list.add(row.op, "with_itself", {b({3, 3})}, [f = row.f](Tape&, In x) { return f(x[0], x[0]); }).no_gradcheck();
    list.add(row.op, "large", {normal_reals({256, 300}), b({256, 300})}, binary(row.f)).no_gradcheck();
    list.add(row.op, "large_row", {normal_reals({512, 129}), b({129})}, binary(row.f)).no_gradcheck();
    list.add(row.op, "large_column", {normal_reals({512, 129}), b({512, 1})}, binary(row.f)).no_gradcheck();
    list.add(row.op, "special", {special_reals({7, 5}), special_reals({7, 5})}, binary(row.f))
        .no_gradient()
        .per_element();
    list.add(row.op, "number_left", {b({3, 2})}, [f = row.f](Tape&, In x) { return f(1.5, x[0]); });
  }
  for (const char* op : {"add", "sub", "mul", "minimum", "maximum"})
    for (const auto& row : kArithmetic)
      if (row.op == std::string_view(op))
        list.add(op, "integers", {ints({2, 3}, {1, -2, 3, 1000000, 0, 7}), ints({3}, {2, 3, -1})}, binary(row.f));
  for (const auto& row : kCompare) {
    list.add(row.op, "reals", {small_integers({4, 5}, -1, 1), small_integers({4, 5}, -1, 1)}, binary(row.f));
    list.add(row.op, "row", {small_integers({4, 5}, -1, 1), small_integers({5}, -1, 1)}, binary(row.f));
    list.add(row.op, "integers", {indices({4, 5}, 3), indices({4, 1}, 3)}, binary(row.f));
    list.add(row.op, "large", {small_integers({300, 257}, -1, 1), small_integers({257}, -1, 1)}, binary(row.f));
    list.add(row.op, "special", {special_reals({8, 8}), special_reals({8, 8})}, binary(row.f));
  }
  list.add("pow", "same", {uniform_reals({3, 4}, 0.3, 3), uniform_reals({3, 4}, -2, 2)}, binary(pow));
  list.add("pow", "row", {uniform_reals({3, 4}, 0.3, 3), uniform_reals({4}, -2, 2)}, binary(pow));
  list.add("pow", "number", {uniform_reals({9}, 0.3, 3)}, [](Tape&, In x) { return pow(x[0], 2.5); });
  list.add("pow", "negative_base", {nonzero_reals({9})}, [](Tape&, In x) { return pow(x[0], 3.0); });
  list.add("pow", "large", {uniform_reals({300, 257}, 0.3, 3), uniform_reals({300, 257}, -2, 2)}, binary(pow))
      .no_gradcheck();
  list.add("pow", "zero_base", {reals({3}, {0, 0, 0}), reals({3}, {0, 1, 2})}, binary(pow)).no_gradient();
}

void add_select(CaseList& list) {
  const Build choose = [](Tape&, In x) { return where(x[0], x[1], x[2]); };
  list.add("where", "same", {indices({3, 4}, 2), normal_reals({3, 4}), normal_reals({3, 4})}, choose);
  list.add("where", "broadcast", {indices({3, 1}, 2), normal_reals({4}), normal_reals({})}, choose);
  list.add("where", "integers", {indices({6}, 3), indices({6}, 9), indices({6}, 9)}, choose);
  list.add("where", "large", {indices({300, 257}, 2), normal_reals({300, 257}), normal_reals({300, 257})}, choose)
      .no_gradcheck();
  list.add("where", "special", {indices({8, 4}, 2), special_reals({8, 4}), special_reals({8, 4})}, choose)
      .no_gradient();
  list.add("where", "number", {normal_reals({12})}, [](Tape&, In x) { return where(greater(x[0], 0.25), x[0], 0.0); });
  const Build relu_grad = [](Tape& t, In x) { return t.emit1(OpId::relu_grad, {x[0], x[1]}); };
  list.add("relu_grad", "same", {normal_reals({3, 4}), nonzero_reals({3, 4})}, relu_grad);
  list.add("relu_grad", "large", {normal_reals({300, 257}), normal_reals({300, 257})}, relu_grad).no_gradcheck();
  list.add("relu_grad", "at_zero", {normal_reals({3}), reals({3}, {0, -0.0f, 1})}, relu_grad).no_gradcheck();
}

}  // namespace

void add_elementwise_cases(CaseList& list) {
  add_unary(list);
  add_binary(list);
  add_select(list);
}

}  // namespace sg::test
