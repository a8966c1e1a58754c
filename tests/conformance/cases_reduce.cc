// Cases of reductions: each kind of axes (all, last, first, middle, several, none left), keep, ties, extents of 0
// and 1.
#include <cmath>

#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tests/conformance/cases.h"

namespace sg::test {
namespace {

using In = std::span<const Value>;
using Reduce = Value (*)(Operand, Axes, bool);

struct Row {
  const char* op;
  Reduce f;
};
constexpr Row kReductions[] = {{"sum", sum}, {"mean", mean}, {"reduce_max", max}, {"reduce_min", min}};

Build over(Reduce f, Axes axes, bool keep) {
  return [=](Tape&, In x) { return f(x[0], axes, keep); };
}

}  // namespace

void add_reduce_cases(CaseList& list) {
  for (const auto& row : kReductions) {
    const bool by_order = row.f == static_cast<Reduce>(max) || row.f == static_cast<Reduce>(min);
    list.add(row.op, "all", {distinct_reals({3, 4, 2})}, over(row.f, {}, false));
    list.add(row.op, "all_keep", {distinct_reals({3, 4, 2})}, over(row.f, {}, true));
    list.add(row.op, "last", {distinct_reals({3, 4, 2})}, over(row.f, {-1}, false));
    list.add(row.op, "first", {distinct_reals({3, 4, 2})}, over(row.f, {0}, false));
    list.add(row.op, "middle_keep", {distinct_reals({3, 4, 2})}, over(row.f, {1}, true));
    list.add(row.op, "outer_two", {distinct_reals({3, 4, 2})}, over(row.f, {0, 1}, false));
    list.add(row.op, "first_and_last", {distinct_reals({3, 4, 2})}, over(row.f, {0, -1}, true));
    list.add(row.op, "image_axes", {distinct_reals({2, 3, 3, 4})}, over(row.f, {1, 2}, false));
    list.add(row.op, "extent_one", {distinct_reals({3, 1, 2})}, over(row.f, {1}, false));
    list.add(row.op, "scalar", {distinct_reals({})}, over(row.f, {}, false));
    list.add(row.op, "large_all", {normal_reals({300, 257})}, over(row.f, {}, false)).no_gradcheck();
    list.add(row.op, "large_last", {normal_reals({301, 257})}, over(row.f, {-1}, false)).no_gradcheck();
    list.add(row.op, "large_first", {normal_reals({1025, 67})}, over(row.f, {0}, false)).no_gradcheck();
    list.add(row.op, "large_middle", {normal_reals({17, 129, 33})}, over(row.f, {1}, false)).no_gradcheck();
    list.add(row.op, "special", {special_reals({9, 4})}, over(row.f, {1}, false)).no_gradient();
    if (by_order)
      list.add(row.op, "ties", {small_integers({5, 9}, -1, 1)}, over(row.f, {-1}, false)).no_gradcheck();
    else
      list.add(row.op, "nothing", {normal_reals({0, 3})}, over(row.f, {1}, false)).no_gradcheck();
  }
  list.add("sum", "nothing_to_zero", {normal_reals({3, 0})}, over(sum, {1}, false)).no_gradcheck();
  list.add("sum", "exact", {small_integers({999, 64}, -8, 8)}, over(sum, {}, false)).no_gradient().accuracy(0, 0);
  list.add("sum", "integers", {indices({7, 9}, 100)}, over(sum, {0}, false));
  list.add("reduce_max", "integers", {indices({7, 9}, 100)}, over(max, {1}, false));
  list.add("reduce_min", "integers", {indices({7, 9}, 100)}, over(min, {0}, true));

  struct Arg {
    const char* op;
    Value (*f)(Operand, std::int64_t);
  };
  for (const auto& row : {Arg{"argmax", argmax}, Arg{"argmin", argmin}}) {
    const auto along = [&](std::int64_t axis) { return [f = row.f, axis](Tape&, In x) { return f(x[0], axis); }; };
    list.add(row.op, "last", {normal_reals({5, 7})}, along(-1));
    list.add(row.op, "first", {normal_reals({5, 7})}, along(0));
    list.add(row.op, "middle", {normal_reals({3, 5, 4})}, along(1));
    list.add(row.op, "ties", {small_integers({9, 6}, 0, 1)}, along(-1));
    list.add(row.op, "all_equal", {small_integers({4, 33}, 2, 2)}, along(-1));
    list.add(row.op, "one", {normal_reals({5, 1})}, along(1));
    list.add(row.op, "integers", {indices({5, 40}, 7)}, along(-1));
    list.add(row.op, "large", {normal_reals({700, 513})}, along(-1));
    list.add(row.op, "infinities", {reals({2, 4}, {HUGE_VALF, 1, HUGE_VALF, -HUGE_VALF, -HUGE_VALF, 0, -HUGE_VALF, 1})},
             along(-1));
  }

  const auto quantiles = [](std::vector<double> q) { return [q](Tape&, In x) { return quantile(x[0], q); }; };
  list.add("quantile", "ends", {distinct_reals({3, 7})}, quantiles({0, 0.5, 1}));
  list.add("quantile", "between", {distinct_reals({2, 5})}, quantiles({0.05, 0.95, 0.3333}));
  list.add("quantile", "one_element", {distinct_reals({1})}, quantiles({0, 0.7}));
  list.add("quantile", "ties", {small_integers({50}, 0, 3)}, quantiles({0.1, 0.25, 0.9}));
  list.add("quantile", "large", {normal_reals({123, 457})}, quantiles({0.05, 0.95}));
}

}  // namespace sg::test
