// Cases of softmax and the normalisations, also on rows that are constant, of one element, or far from zero.
#include <cmath>

#include "ops/elementwise.h"
#include "ops/norm.h"
#include "tests/conformance/cases.h"

namespace sg::test {

using In = std::span<const Value>;

void add_norm_cases(CaseList& list) {
  struct Row {
    const char* op;
    Value (*f)(Operand);
  };
  for (const auto& row : {Row{"softmax", softmax}, Row{"log_softmax", log_softmax}}) {
    const Build build = [f = row.f](Tape&, In v) { return f(v[0]); };
    list.add(row.op, "small", {normal_reals({3, 5}, 2)}, build);
    list.add(row.op, "vector", {normal_reals({6})}, build);
    list.add(row.op, "rank_four", {normal_reals({2, 2, 3, 4})}, build);
    list.add(row.op, "one_class", {normal_reals({4, 1})}, build);
    list.add(row.op, "far", {normal_reals({4, 6}, 20, 1000)}, build).no_gradcheck();
    list.add(row.op, "masked", {reals({2, 3}, {0, -HUGE_VALF, 1, 2, 3, -HUGE_VALF})}, build).no_gradient();
    list.add(row.op, "no_rows", {normal_reals({0, 5})}, build).no_gradcheck();
    list.add(row.op, "large", {normal_reals({300, 257}, 3)}, build).no_gradcheck();
  }

  const Build entropy = [](Tape&, In v) { return cross_entropy(v[0], v[1]); };
  list.add("cross_entropy", "small", {normal_reals({5, 4}, 2), indices({5}, 4)}, entropy);
  list.add("cross_entropy", "sequence", {normal_reals({2, 3, 6}), indices({2, 3}, 6)}, entropy);
  list.add("cross_entropy", "certain", {normal_reals({4, 3}, 200), indices({4}, 3)}, entropy).no_gradcheck();
  list.add("cross_entropy", "large", {normal_reals({500, 129}), indices({500}, 129)}, entropy).no_gradcheck();

  const Build layer = [](Tape&, In v) { return layer_norm(v[0], v[1], v[2]); };
  const auto with_affine = [](Shape x, double scale = 1, double mean = 0) {
    const std::int64_t c = x[-1];
    return std::vector<Draw>{normal_reals(x, scale, mean), uniform_reals({c}, 0.5, 1.5), normal_reals({c})};
  };
  list.add("layer_norm", "small", with_affine({3, 6}), layer);
  list.add("layer_norm", "rank_four", with_affine({2, 2, 3, 5}), layer);
  list.add("layer_norm", "constant_rows",
           {small_integers({2, 5}, 3, 3), uniform_reals({5}, 0.5, 1.5), normal_reals({5})}, layer)
      .no_gradcheck()
      .accuracy(64);
  list.add("layer_norm", "two_channels", with_affine({4, 2}, 3), layer).accuracy(128, 1e-5);  // the derivative cancels
  list.add("layer_norm", "far", with_affine({6, 33}, 1, 50), layer).accuracy(512).no_gradcheck();
  list.add("layer_norm", "large", with_affine({300, 129}), layer).no_gradcheck();

  const Build rms = [](Tape&, In v) { return rms_norm(v[0], v[1]); };
  list.add("rms_norm", "small", {normal_reals({3, 6}), uniform_reals({6}, 0.5, 1.5)}, rms);
  list.add("rms_norm", "rank_three", {normal_reals({2, 3, 5}), uniform_reals({5}, 0.5, 1.5)}, rms);
  list.add("rms_norm", "zero_rows", {small_integers({2, 5}, 0, 0), uniform_reals({5}, 0.5, 1.5)}, rms).no_gradcheck();
  list.add("rms_norm", "large", {normal_reals({300, 129}), uniform_reals({129}, 0.5, 1.5)}, rms).no_gradcheck();

  const auto group = [](std::int64_t groups) {
    return [groups](Tape&, In v) { return group_norm(v[0], v[1], v[2], groups); };
  };
  list.add("group_norm", "two_groups", with_affine({2, 3, 3, 4}), group(2));
  list.add("group_norm", "one_group", with_affine({2, 2, 3, 3}), group(1));
  list.add("group_norm", "instance", with_affine({2, 3, 3, 3}), group(3));
  list.add("group_norm", "rows", with_affine({4, 6}), group(2));
  list.add("group_norm", "large", with_affine({5, 14, 14, 64}), group(8)).no_gradcheck();
}

}  // namespace sg::test
