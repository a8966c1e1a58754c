// Cases of matmul: the four transposes, batches and their broadcasting, sizes that no tile divides, one row, one
// column.
#include <cmath>

#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/op_ids.h"
#include "ops/shape_ops.h"
#include "tests/conformance/cases.h"

namespace sg::test {

using In = std::span<const Value>;

namespace {

void add_bias_cases(CaseList& list) {
  struct Product {
    const char* name;
    std::int64_t batch, m, k, n;  // batch 0: matrices
    bool small;
  };
  constexpr Product kProducts[] = {
      {"", 0, 3, 4, 5, true},           {"row_", 0, 1, 7, 5, true},         {"column_", 0, 6, 3, 1, true},
      {"inner_one_", 0, 4, 1, 3, true}, {"large_", 0, 129, 257, 67, false}, {"batched_", 3, 2, 4, 5, true},
      {"long_", 0, 6, 5000, 7, false},  {"no_rows_", 0, 0, 4, 3, false},    {"inner_zero_", 0, 4, 0, 3, false}};
  for (const Product& p : kProducts)
    for (const bool ta : {false, true})
      for (const bool tb : {false, true})
        for (const bool skip : {false, true}) {
          const std::string name = std::string(p.name) + (ta ? "t" : "n") + (tb ? "t" : "n") + (skip ? "_skip" : "");
          const auto shape = [&](std::int64_t rows, std::int64_t columns, bool transposed) {
            const Shape s = transposed ? Shape{columns, rows} : Shape{rows, columns};
            return p.batch == 0 ? s : Shape{p.batch, s[0], s[1]};
          };
          list.add("matmul_bias", name,
                   {normal_reals(shape(p.m, p.k, ta)), normal_reals(shape(p.k, p.n, tb)), normal_reals({p.n}),
                    normal_reals(shape(p.m, p.n, false))},
                   [=](Tape& t, In x) {
                     std::vector<Value> operands{x[0], x[1], x[2]};
                     if (skip) operands.push_back(x[3]);
                     const Value y =
                         t.emit(OpId::matmul_bias, operands,
                                Attrs{{"transpose_a", std::int64_t{ta}}, {"transpose_b", std::int64_t{tb}}})[0];
                     return skip ? y : y - x[3];
                   })
              .may_decompose()
              .gradcheck = p.small;
        }
  // What a model writes; backends may make a matmul_bias of it.
  for (const bool skip : {false, true})
    list.add("product_bias_written", skip ? "skip" : "bias",
             {normal_reals({2, 5, 4}), normal_reals({4, 6}), normal_reals({6}), normal_reals({2, 5, 6})},
             [=](Tape&, In x) {
               const Value y = matmul(x[0], x[1]) + x[2];
               return transpose(skip ? x[3] * x[3] + y : y, {0, 2, 1});
             })
        .no_gradcheck();
}

}  // namespace

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
  add_bias_cases(list);
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
