// Cases of rows by index. nearest_code is compared by the distance to the chosen code where rounding may decide a
// choice, and by index where all distances are exact.
#include <fmt/format.h>

#include <cmath>

#include "ops/elementwise.h"
#include "ops/index.h"
#include "ops/reduce.h"
#include "tests/conformance/cases.h"

namespace sg::test {
namespace {

using In = std::span<const Value>;

double distance(const Tensor& z, const Tensor& codes, std::int64_t row, std::int64_t code, bool cosine) {
  const std::int64_t d = z.shape()[1];
  double dot = 0, zz = 0, cc = 0, dd = 0;
  for (std::int64_t i = 0; i < d; ++i) {
    const double a = z.at(row * d + i), b = codes.at(code * d + i);
    dot += a * b, zz += a * a, cc += b * b, dd += (a - b) * (a - b);
  }
  return cosine ? 1 - dot / std::sqrt(zz * cc) : dd;
}

// Both chosen codes are as near as each other, to rounding.
std::string same_distance(std::span<const Tensor> inputs, const Tensor& got, const Tensor& want, bool cosine) {
  const Tensor &z = inputs[0], &codes = inputs[1];
  for (std::int64_t row = 0; row < got.elements(); ++row) {
    const auto a = static_cast<std::int64_t>(got.at(row)), b = static_cast<std::int64_t>(want.at(row));
    if (a < 0 || a >= codes.shape()[0]) return fmt::format("row {}: code {} does not exist", row, a);
    const double mine = distance(z, codes, row, a, cosine), best = distance(z, codes, row, b, cosine);
    double size = 1;
    if (!cosine)
      for (std::int64_t i = 0; i < z.shape()[1]; ++i)
        size += z.at(row * z.shape()[1] + i) * z.at(row * z.shape()[1] + i);
    if (std::abs(mine - best) > 1e-5 * size)
      return fmt::format("row {}: code {} at distance {}, but code {} is at {}", row, a, mine, b, best);
  }
  return {};
}

void add_nearest(CaseList& list, const std::string& name, std::int64_t n, std::int64_t k, std::int64_t d,
                 double scale = 1) {
  for (const bool cosine : {false, true}) {
    const Metric metric = cosine ? Metric::cosine : Metric::euclidean;
    list.add("nearest_code", name + (cosine ? "_cosine" : ""), {normal_reals({n, d}, scale), normal_reals({k, d})},
             [metric](Tape&, In v) { return nearest_code(v[0], v[1], metric); })
        .compare = [cosine](auto inputs, auto& got, auto& want) { return same_distance(inputs, got, want, cosine); };
  }
}

}  // namespace

void add_index_cases(CaseList& list) {
  const Build gather = [](Tape&, In v) { return gather_rows(v[0], v[1]); };
  list.add("gather_rows", "small", {normal_reals({5, 3}), indices({7}, 5)}, gather);
  list.add("gather_rows", "matrix_of_indices", {normal_reals({5, 3}), indices({2, 4}, 5)}, gather);
  list.add("gather_rows", "repeated", {normal_reals({4, 2}), ints({5}, {1, 1, 3, 1, 3})}, gather);
  list.add("gather_rows", "one_index", {normal_reals({4, 2}), ints({}, {2})}, gather);
  list.add("gather_rows", "no_indices", {normal_reals({4, 2}), indices({0}, 4)}, gather).no_gradcheck();
  list.add("gather_rows", "large", {normal_reals({512, 64}), indices({3000}, 512)}, gather).no_gradcheck();

  const auto scatter = [](std::int64_t rows) {
    return [rows](Tape&, In v) { return scatter_add_rows(v[0], v[1], rows); };
  };
  list.add("scatter_add_rows", "small", {indices({7}, 4), normal_reals({7, 3})}, scatter(4));
  list.add("scatter_add_rows", "matrix_of_indices", {indices({2, 3}, 4), normal_reals({2, 3, 5})}, scatter(4));
  list.add("scatter_add_rows", "all_to_one", {ints({4}, {2, 2, 2, 2}), normal_reals({4, 3})}, scatter(3));
  list.add("scatter_add_rows", "none", {indices({0}, 4), normal_reals({0, 3})}, scatter(4)).no_gradcheck();
  list.add("scatter_add_rows", "exact", {indices({4000}, 64), small_integers({4000, 16}, -8, 8)}, scatter(64))
      .no_gradient()
      .accuracy(0, 0);
  list.add("scatter_add_rows", "large", {indices({5000}, 513), normal_reals({5000, 64})}, scatter(513)).no_gradcheck();

  const auto hot = [](std::int64_t depth) { return [depth](Tape&, In v) { return one_hot(v[0], depth); }; };
  list.add("one_hot", "small", {indices({6}, 4)}, hot(4));
  list.add("one_hot", "matrix", {indices({2, 3}, 4)}, hot(4));
  list.add("one_hot", "out_of_range", {ints({4}, {-1, 0, 4, 3})}, hot(4));
  list.add("one_hot", "integers", {indices({5}, 3)}, [](Tape&, In v) { return one_hot(v[0], 3, DType::i32); });
  list.add("one_hot", "large", {indices({777}, 129)}, hot(129));

  const auto bins = [](std::int64_t n) { return [n](Tape&, In v) { return histogram(v[0], n); }; };
  list.add("histogram", "small", {indices({40}, 6)}, bins(6));
  list.add("histogram", "unused_bins", {indices({5, 4}, 3)}, bins(9));
  list.add("histogram", "nothing", {indices({0}, 3)}, bins(4));
  list.add("histogram", "large", {indices({50000}, 512)}, bins(512));

  add_nearest(list, "small", 7, 5, 3);
  add_nearest(list, "one_code", 4, 1, 3);
  add_nearest(list, "one_row", 1, 9, 4);
  add_nearest(list, "one_dimension", 30, 8, 1);
  add_nearest(list, "odd_sizes", 131, 67, 13);
  add_nearest(list, "large", 1025, 513, 64);
  add_nearest(list, "long_rows", 300, 200, 2, 100);
  const auto nearest = [](Tape&, In v) { return nearest_code(v[0], v[1]); };
  list.add("nearest_code", "no_rows", {normal_reals({0, 4}), normal_reals({5, 4})}, nearest);
  list.add("nearest_code", "ties", {small_integers({200, 2}, -2, 2), small_integers({70, 2}, -2, 2)}, nearest);
  list.add("nearest_code", "all_codes_equal", {normal_reals({40, 5}), small_integers({65, 5}, 1, 1)}, nearest);
  list.add("nearest_code", "codes_themselves", {small_integers({33, 8}, -9, 9), small_integers({99, 8}, -9, 9)},
           nearest);
}

}  // namespace sg::test
