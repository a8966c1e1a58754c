// Cases of random numbers: the same on every backend, to the last bit for uniform.
#include "ops/elementwise.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "tests/conformance/cases.h"

namespace sg::test {

using In = std::span<const Value>;

void add_random_cases(CaseList& list) {
  struct Row {
    const char* op;
    Value (*f)(Operand, Shape, DType);
  };
  for (const auto& row : {Row{"uniform", [](Operand s, Shape shape, DType t) { return uniform(s, shape, t); }},
                          Row{"normal", [](Operand s, Shape shape, DType t) { return normal(s, shape, t); }}}) {
    const auto numbers = [f = row.f](Shape shape, DType t = DType::f32) {
      return [=](Tape&, In v) { return f(v[0], shape, t); };
    };
    const double c = row.op == std::string_view("uniform") ? 0 : 4;
    list.add(row.op, "small", {ints({2}, {17, 3})}, numbers({3, 5})).accuracy(c, 0);
    list.add(row.op, "scalar", {ints({2}, {17, 4})}, numbers({})).accuracy(c, 0);
    list.add(row.op, "negative_seed", {ints({2}, {-1, 0})}, numbers({9})).accuracy(c, 0);
    list.add(row.op, "double", {ints({2}, {5, 6})}, numbers({2, 7}, DType::f64)).accuracy(c, 0);
    list.add(row.op, "large", {ints({2}, {1, 2})}, numbers({301, 257})).accuracy(c, 0);
    list.add(row.op, "two_streams", {ints({2}, {8, 8})},
             [f = row.f](Tape&, In v) { return f(v[0], {64}, DType::f32) - f(v[0], {64}, DType::f32); });
  }
}

}  // namespace sg::test
