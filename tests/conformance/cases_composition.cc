// Cases of compositions: what models are written with, and patterns that passes rewrite.
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/estimator_table.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/conformance/cases.h"

namespace sg::test {
namespace {

using In = std::span<const Value>;

// A vector-quantizer step in small: nearest codes, both losses, the straight-through value into a decoder.
Value quantizer_loss(In v, const BoundEstimator& estimator) {
  const Value z = v[0], codes = v[1], weight = v[2];
  const Value q = gather_rows(codes, nearest_code(z, codes));
  const Value codebook = mean(square(q - stop_gradient(z))), commitment = mean(square(z - stop_gradient(q)));
  return mean(square(matmul(estimator(z, q), weight))) + codebook + 0.25 * commitment;
}

}  // namespace

void add_composition_cases(CaseList& list) {
  list.add("norm", "rows", {nonzero_reals({4, 3})}, [](Tape&, In v) { return norm(v[0], {-1}, true); });
  list.add("norm", "all", {nonzero_reals({4, 3})}, [](Tape&, In v) { return norm(v[0], {}); });
  list.add("norm", "large", {normal_reals({400, 65})}, [](Tape&, In v) { return norm(v[0], {-1}); }).no_gradcheck();
  list.add("dot", "rows", {normal_reals({4, 3}), normal_reals({4, 3})}, [](Tape&, In v) { return dot(v[0], v[1]); });
  list.add("normalised_rows", "small", {nonzero_reals({4, 3})},
           [](Tape&, In v) { return v[0] / norm(v[0], {-1}, true); });
  list.add("softmax_cross_entropy", "mean", {normal_reals({6, 4}), indices({6}, 4)},
           [](Tape&, In v) { return mean(cross_entropy(v[0], v[1])); });
  list.add("softmax_cross_entropy", "by_hand", {normal_reals({6, 4}), indices({6}, 4)},
           [](Tape&, In v) { return -mean(sum(log(softmax(v[0])) * one_hot(v[1], 4, v[0].dtype()), {-1})); });
  list.add("mlp", "two_layers", {normal_reals({5, 4}), normal_reals({4, 7}), normal_reals({7}), normal_reals({7, 3})},
           [](Tape&, In v) { return matmul(tanh(matmul(v[0], v[1]) + v[2]), v[3]); });
  list.add("mlp", "large",
           {normal_reals({130, 64}), normal_reals({64, 129}, 0.2), normal_reals({129}), normal_reals({129, 33}, 0.2)},
           [](Tape&, In v) { return matmul(gelu(matmul(v[0], v[1]) + v[2]), v[3]); })
      .no_gradcheck();
  list.add("residual_block", "small",
           {normal_reals({2, 5, 5, 4}), normal_reals({3, 3, 4, 3}), normal_reals({1, 1, 3, 4})},
           [](Tape&, In v) { return v[0] + conv2d(relu(conv2d(relu(v[0]), v[1], ConvOptions::square(1, 1))), v[2]); })
      .no_gradcheck();
  list.add(
      "autoencoder", "small",
      {normal_reals({2, 8, 8, 1}), normal_reals({4, 4, 1, 6}, 0.3), normal_reals({6}), normal_reals({4, 4, 1, 6}, 0.3)},
      [](Tape&, In v) {
        const Value h = silu(conv2d(v[0], v[1], ConvOptions::square(2, 1)) + v[2]);
        return mean(square(conv2d_transpose(h, v[3], ConvOptions::square(2, 1)) - v[0]));
      });
  list.add("attention", "small", {normal_reals({2, 5, 4}), normal_reals({2, 5, 4}), normal_reals({2, 5, 3})},
           [](Tape&, In v) { return matmul(softmax(0.5 * matmul(v[0], v[1], false, true)), v[2]); });
  // Rows of one table by number, of the other again and again, and a norm of their sum.
  const auto embedding = [](Tape&, In v) { return layer_norm(gather_rows(v[0], v[1]) + v[2], v[3], v[4], 1e-5); };
  list.add("embedding", "small",
           {normal_reals({4, 5}), indices({3, 6}, 4), normal_reals({6, 5}), normal_reals({5}), normal_reals({5})},
           embedding);
  list.add("embedding", "repeated",
           {normal_reals({3, 16}), ints({2, 3}, {2, 0, 2, 2, 0, 0}), normal_reals({3, 16}), normal_reals({16}),
            normal_reals({16})},
           embedding);
  list.add("embedding", "large",
           {normal_reals({150, 48}), indices({12, 70}, 150), normal_reals({70, 48}), normal_reals({48}),
            normal_reals({48})},
           embedding)
      .no_gradcheck();
  list.add("masked_softmax", "small", {normal_reals({2, 3, 4, 4}), normal_reals({4, 4})},
           [](Tape&, In v) { return softmax(0.5 * v[0] + v[1]); });
  list.add("variance", "channels", {normal_reals({3, 4, 4, 5})}, [](Tape&, In v) {
    return mean(square(v[0] - mean(v[0], {0, 1, 2}, true)), {0, 1, 2});
  });
  list.add("shared_subexpression", "small", {normal_reals({4, 4})}, [](Tape&, In v) {
    return exp(v[0] * 0.5) * exp(v[0] * 0.5) + (v[0] + 0.0) * 1.0 + (2.0 * 3.0 - sum(v[0] * 0.0));
  });
  list.add("gradient_of_gradient", "small", {normal_reals({3, 4})}, [](Tape&, In v) {
    return tanh(transpose(reshape(square(v[0]) + v[0], Shape{2, 6}), {1, 0}));
  });

  for (const auto& name : rows_only_estimator_names()) {
    const BoundEstimator estimator = estimator_by_name(name);
    list.add("estimator_" + name, "rows", {nonzero_reals({6, 4}), nonzero_reals({6, 4})},
             [estimator](Tape&, In v) { return estimator(v[0], v[1]); })
        .accuracy(64);
    list.add("estimator_" + name, "quantizer", {nonzero_reals({6, 4}), nonzero_reals({5, 4}), normal_reals({4, 3})},
             [estimator](Tape&, In v) { return quantizer_loss(v, estimator); })
        .accuracy(64)
        .gradcheck = false;
    list.add("estimator_" + name, "large", {nonzero_reals({500, 32}), nonzero_reals({500, 32})},
             [estimator](Tape&, In v) { return estimator(v[0], v[1]); })
        .no_gradcheck()
        .accuracy(64);
  }
}

}  // namespace sg::test
