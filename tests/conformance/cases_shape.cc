// Cases of ops that move elements. Their results are compared without any tolerance.
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/op_ids.h"
#include "ops/shape_ops.h"
#include "tests/conformance/cases.h"

namespace sg::test {

using In = std::span<const Value>;
using List = std::vector<std::int64_t>;

void add_shape_cases(CaseList& list) {
  const auto add = [&](const char* op, const char* name, std::vector<Draw> inputs, Build build) -> Case& {
    return list.add(op, name, std::move(inputs), std::move(build));
  };
  const auto exact = [&](const char* op, const char* name, std::vector<Draw> inputs, Build build) -> Case& {
    return add(op, name, std::move(inputs), std::move(build)).accuracy(4, 0);
  };

  exact("reshape", "flatten", {normal_reals({2, 3, 4})}, [](Tape&, In x) { return reshape(x[0], Shape{24}); });
  exact("reshape", "deduced", {normal_reals({2, 3, 4})}, [](Tape&, In x) { return reshape(x[0], List{6, -1}); });
  exact("reshape", "of_a_product", {normal_reals({2, 6})}, [](Tape&, In x) {
    return square(reshape(2.0 * x[0], Shape{3, 4}));
  });
  exact("reshape", "integers", {indices({4, 2}, 9)}, [](Tape&, In x) { return reshape(x[0], Shape{2, 4}); });
  exact("reshape", "empty", {normal_reals({0, 3})}, [](Tape&, In x) {
    return reshape(x[0], Shape{3, 0});
  }).no_gradcheck();

  const auto permuted = [](List perm) { return [perm](Tape&, In x) { return transpose(x[0], perm); }; };
  exact("transpose", "matrix", {normal_reals({3, 5})}, permuted({1, 0}));
  exact("transpose", "cycle", {normal_reals({2, 3, 4})}, permuted({2, 0, 1}));
  exact("transpose", "nhwc_to_nchw", {normal_reals({2, 3, 5, 4})}, permuted({0, 3, 1, 2}));
  exact("transpose", "identity", {normal_reals({2, 3})}, permuted({0, 1}));
  exact("transpose", "rank_six", {normal_reals({2, 1, 3, 2, 1, 2})}, permuted({5, 3, 1, 0, 2, 4}));
  exact("transpose", "integers", {indices({3, 4}, 99)}, permuted({1, 0}));
  exact("transpose", "large", {normal_reals({259, 311})}, permuted({1, 0})).no_gradcheck();
  exact("transpose", "empty", {normal_reals({0, 3})}, permuted({1, 0})).no_gradcheck();

  const auto to = [](Shape shape) { return [shape](Tape&, In x) { return broadcast(x[0], shape); }; };
  exact("broadcast", "scalar", {normal_reals({})}, to({2, 3}));
  exact("broadcast", "row", {normal_reals({4})}, to({3, 4}));
  exact("broadcast", "column", {normal_reals({3, 1})}, to({3, 4}));
  exact("broadcast", "middle", {normal_reals({2, 1, 3})}, to({2, 4, 3}));
  exact("broadcast", "integers", {indices({1, 3}, 9)}, to({2, 3}));
  exact("broadcast", "same", {normal_reals({2, 3})}, to({2, 3}));
  add("broadcast", "large", {normal_reals({1, 257})}, to({300, 257})).no_gradcheck();

  const auto sliced = [](List start, List stop, List step = {}) {
    return [=](Tape&, In x) { return slice(x[0], start, stop, step); };
  };
  exact("slice", "inside", {normal_reals({5, 6})}, sliced({1, 2}, {4, 5}));
  exact("slice", "steps", {normal_reals({7, 9})}, sliced({0, 1}, {7, 8}, {2, 3}));
  exact("slice", "last_axis", {normal_reals({2, 3, 8})}, [](Tape&, In x) { return slice_axis(x[0], -1, 2, 5); });
  exact("slice", "nothing", {normal_reals({4, 3})}, sliced({2, 0}, {2, 3})).no_gradcheck();
  exact("slice", "integers", {indices({6}, 50)}, sliced({1}, {6}, {2}));
  exact("slice", "large", {normal_reals({513, 200})}, sliced({3, 5}, {510, 199}, {1, 2})).no_gradcheck();

  const auto joined = [](std::int64_t axis) {
    return [axis](Tape&, In x) { return concat({x.begin(), x.end()}, axis); };
  };
  exact("concat", "first", {normal_reals({2, 3}), normal_reals({4, 3})}, joined(0));
  exact("concat", "last_three", {normal_reals({2, 3}), normal_reals({2, 1}), normal_reals({2, 4})}, joined(-1));
  exact("concat", "middle", {normal_reals({2, 3, 2}), normal_reals({2, 1, 2})}, joined(1));
  exact("concat", "single", {normal_reals({2, 3})}, joined(0));
  exact("concat", "with_empty", {normal_reals({2, 3}), normal_reals({0, 3})}, joined(0)).no_gradcheck();
  exact("concat", "twice_the_same", {normal_reals({2, 3})}, [](Tape&, In x) { return concat({x[0], x[0]}, 0); });
  exact("concat", "integers", {indices({3}, 9), indices({2}, 9)}, joined(0));
  exact("concat", "large", {normal_reals({300, 129}), normal_reals({300, 65})}, joined(1)).no_gradcheck();

  exact("pad", "around", {normal_reals({3, 4})}, [](Tape&, In x) { return pad(x[0], {1, 0}, {2, 3}); });
  exact("pad", "value", {normal_reals({3})}, [](Tape&, In x) { return pad(x[0], {2}, {1}, -1.5); });
  exact("pad", "interior", {normal_reals({3, 4})}, [](Tape& t, In x) {
    return t.emit1(OpId::pad, {x[0]},
                   Attrs{{"before", List{1, 0}}, {"after", List{0, 2}}, {"interior", List{2, 1}}, {"value", 0.25}});
  });
  exact("pad", "image", {normal_reals({2, 3, 3, 2})}, [](Tape&, In x) {
    return pad(x[0], {0, 1, 1, 0}, {0, 2, 1, 0});
  });
  exact("pad", "integers", {indices({3}, 9)}, [](Tape&, In x) { return pad(x[0], {1}, {1}, 7); });
  exact("pad", "large", {normal_reals({255, 300})}, [](Tape&, In x) {
    return pad(x[0], {3, 1}, {2, 4});
  }).no_gradcheck();

  exact("after", "of_a_product", {normal_reals({3, 4}), normal_reals({5})},
        [](Tape&, In x) { return square(after(x[0] * 3.0, exp(x[1]))); });
  exact("after", "itself", {normal_reals({3, 4})}, [](Tape&, In x) { return after(x[0], x[0]) * x[0]; });

  exact("stop_gradient", "of_a_product", {normal_reals({3, 4})}, [](Tape&, In x) { return stop_gradient(x[0] * 3.0); });
  exact("stop_gradient", "one_branch", {normal_reals({3, 4})},
        [](Tape&, In x) { return x[0] * stop_gradient(square(x[0])); });
}

}  // namespace sg::test
