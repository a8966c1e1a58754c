// Cases of matmul: the four transposes, batches and their broadcasting, sizes that no tile divides, one row, one
// column.
#include <cmath>

#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "tests/conformance/cases.h"

namespace sg::test {

using In = std::span<const Value>;

void add_matmul_cases(CaseList& list) {
  const auto product = [](bool ta, bool tb) { return [=](Tape&, In x) { return matmul(x[0], x[1], ta, tb); }; };
  for (const bool ta : {false, true})
    for (const bool tb : {false, true}) {
      const std::string kind = std::string(ta ? "t" : "n") + (tb ? "t" : "n");
      const auto a = [&](std::int64_t m, std::int64_t k) { return normal_reals(ta ? Shape{k, m} : Shape{m, k}); };
      const auto b = [&](std::int64_t k, std::int64_t n) { return normal_reals(tb ? Shape{n, k} : Shape{k, n}); };
      list.add("matmul", kind, {a(3, 4), b(4, 5)}, product(ta, tb));
      list.add("matmul", kind + "_row", {a(1, 7), b(7, 5)}, product(ta, tb));
      list.add("matmul", kind + "_column", {a(6, 3), b(3, 1)}, product(ta, tb));
      list.add("matmul", kind + "_large", {a(129, 257), b(257, 67)}, product(ta, tb)).no_gradcheck();
      const auto ba = [&](std::int64_t batch, std::int64_t m, std::int64_t k) {
        return normal_reals(ta ? Shape{batch, k, m} : Shape{batch, m, k});
      };
      const auto bb = [&](std::int64_t batch, std::int64_t k, std::int64_t n) {
        return normal_reals(tb ? Shape{batch, n, k} : Shape{batch, k, n});
      };
      list.add("matmul", kind + "_batched", {ba(3, 2, 4), bb(3, 4, 5)}, product(ta, tb));
      list.add("matmul", kind + "_batched_large", {ba(9, 33, 65), bb(9, 65, 31)}, product(ta, tb)).no_gradcheck();
    }
  list.add("matmul", "batch_one_left", {normal_reals({1, 3, 4}), normal_reals({5, 4, 2})}, product(false, false));
  list.add("matmul", "batch_one_right", {normal_reals({5, 3, 4}), normal_reals({1, 4, 2})}, product(false, false));
  list.add("matmul", "batch_against_matrix", {normal_reals({2, 3, 4}), normal_reals({4, 2})}, product(false, false));
  list.add("matmul", "matrix_against_batch", {normal_reals({3, 4}), normal_reals({2, 4, 2})}, product(false, false));
  list.add("matmul", "two_batch_axes", {normal_reals({2, 3, 2, 4}), normal_reals({2, 3, 4, 3})}, product(false, false));
  list.add("matmul", "two_batch_axes_broadcast", {normal_reals({2, 1, 2, 4}), normal_reals({3, 4, 3})},
           product(false, false));
  list.add("matmul", "inner_one", {normal_reals({4, 1}), normal_reals({1, 3})}, product(false, false));
  list.add("matmul", "inner_zero", {normal_reals({4, 0}), normal_reals({0, 3})}, product(false, false)).no_gradcheck();
  list.add("matmul", "no_rows", {normal_reals({0, 4}), normal_reals({4, 3})}, product(false, false)).no_gradcheck();
  list.add("matmul", "exact", {small_integers({65, 100}, -4, 4), small_integers({100, 33}, -4, 4)},
           product(false, false))
      .no_gradient()
      .accuracy(0, 0);
  list.add("matmul", "with_itself", {normal_reals({4, 4})},
           [](Tape&, In x) { return matmul(x[0], x[0], false, true); });
  list.add("matmul", "infinity", {reals({2, 2}, {1, 1, 0, HUGE_VALF}), normal_reals({2, 2}, 1, 5)},
           product(false, false))
      .no_gradient();
}

}  // namespace sg::test
