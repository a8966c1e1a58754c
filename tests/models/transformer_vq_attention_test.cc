// Linear-time attention over quantized keys: it is dense attention over the same keys, forward and gradient, however
// tokens are cut into blocks and calls; it is causal; its derivative is that of its forward function.
#include "models/transformer_vq_attention.h"

#include <cmath>

#include "core/autodiff.h"
#include "core/gradcheck.h"
#include "models/attention.h"
#include "models/init.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/models/support.h"

namespace sg::models_test {
namespace {

struct Sizes {
  std::int64_t b = 2, g = 1, t = 24, dk = 4, dv = 5, s = 6, m = 4;
};

AttentionMemory empty_memory(Tape& tape, const Sizes& z, DType dtype) {
  const auto zeros = [&](Shape shape, DType d) { return tape.constant(0.0, {d, shape}); };
  return {zeros({z.b, z.m, z.dk}, dtype), zeros({z.b, z.m, z.dv}, dtype), zeros({z.b, z.m}, DType::i32),
          zeros({z.b, z.s, z.dv}, dtype), zeros({z.b, z.s}, dtype),       zeros({}, DType::i32)};
}

// Keys are codes of their own choice, with a gradient to free rows: straight-through.
struct Case {
  Case(Tape& tape, const Sizes& z, DType dtype = DType::f32) : sizes(z) {
    const auto random = [&](Shape shape, const char* name) {
      inputs.push_back(tape.input(name, {dtype, shape}));
      values.push_back(normal_init(shape, 0, 1, 11, name).cast(dtype));
      return inputs.back();
    };
    head.q = random({z.b, z.g, z.t, z.dk}, "q");
    rows = random({z.b, z.t, z.dk}, "rows");
    head.values = random({z.b, z.t, z.dv}, "values");
    head.u = random({z.g, z.dk}, "u");
    head.w = random({z.g, z.dk}, "w");
    head.relative = random({z.g, z.m + 1, z.dk}, "relative");
    head.codes = random({z.s, z.dk}, "codes");
    head.indices = reshape(nearest_code(reshape(rows, Shape{z.b * z.t, z.dk}), head.codes), Shape{z.b, z.t});
    const Value q = gather_rows(stop_gradient(head.codes), head.indices);
    head.keys = rows + stop_gradient(q - rows);
    memory = empty_memory(tape, z, dtype);
  }
  std::vector<Feed> feeds() const {
    std::vector<Feed> f;
    for (std::size_t i = 0; i < inputs.size(); ++i) f.push_back({inputs[i], values[i]});
    return f;
  }
  // Of everything but the codes, whose gradient is cut on purpose.
  std::vector<Value> wrt() const { return {inputs.begin(), inputs.end() - 1}; }

  Sizes sizes;
  AttentionHead head;
  AttentionMemory memory;
  Value rows;
  std::vector<Value> inputs;
  std::vector<Tensor> values;
};

// By its definition, with every pair of tokens in the open. A key is stopped for queries of later blocks but the next
// ones that have it in their window.
Value by_definition(Tape& tape, const Case& c, std::int64_t block, bool cache) {
  const Sizes& z = c.sizes;
  Tensor near({DType::i32, {z.t, z.t}}), in_window({DType::i32, {z.t, z.t}}), row({DType::i32, {z.t, z.t}});
  Tensor mask({DType::f32, {z.t, z.t}});
  for (std::int64_t t = 0; t < z.t; ++t)
    for (std::int64_t s = 0; s < z.t; ++s) {
      const bool seen = s <= t && (cache || t - s <= z.m), close = seen && t - s <= z.m;
      mask.set(t * z.t + s, seen ? 0 : kMaskedScore);
      near.set(t * z.t + s, close);
      row.set(t * z.t + s, close ? static_cast<double>(z.m - (t - s)) : 0);
      in_window.set(t * z.t + s, s >= t / block * block - z.m);
    }
  std::vector<Value> heads;
  for (std::int64_t g = 0; g < z.g; ++g) {
    const auto of_head = [&](Value x) { return reshape(slice_axis(x, 0, g, g + 1), Shape{1, z.dk}); };
    const Value q = reshape(slice_axis(c.head.q, 1, g, g + 1), Shape{z.b, z.t, z.dk});
    const Value r = reshape(slice_axis(c.head.relative, 0, g, g + 1), Shape{z.m + 1, z.dk});
    const Value pairs = gather_rows(r, tape.constant(row));  // (T,T,dk)
    const Value qw = reshape(q + of_head(c.head.w), Shape{z.b, z.t, 1, z.dk});
    const Value position = sum(qw * pairs, {-1});
    const Value qu = q + of_head(c.head.u);
    const Value content = where(tape.constant(in_window), matmul(qu, c.head.keys, false, true),
                                matmul(qu, stop_gradient(c.head.keys), false, true));
    const Value scores = content + where(tape.constant(near), position, 0.0) + tape.constant(mask);
    heads.push_back(reshape(matmul(softmax(scores), c.head.values), Shape{z.b, 1, z.t, z.dv}));
  }
  return concat(heads, 1);
}

// A loss in which every output counts differently.
Value weighted(Tape& tape, Value out) {
  return sum(out * tape.constant(normal_init(out.shape(), 0, 1, 5, "weights").cast(out.dtype())));
}

void expect_is_dense(const Sizes& z, const VqAttentionOptions& options, double tolerance, std::string_view backend) {
  Tape tape;
  Case c(tape, z);
  AttentionMemory memory = c.memory;
  const Value linear = vq_attention(c.head, memory, options);
  const Value dense = by_definition(tape, c, options.block, options.cache);
  ASSERT_EQ(linear.shape(), (Shape{z.b, z.g, z.t, z.dv}));
  const auto g = gradients(weighted(tape, linear), c.wrt()), h = gradients(weighted(tape, dense), c.wrt());
  std::vector<Value> fetches{linear, dense};
  for (std::size_t i = 0; i < g.size(); ++i) fetches.insert(fetches.end(), {g[i], h[i]});
  const auto out =
      backend == "exactly" ? exactly(tape, fetches, c.feeds()) : run_once(tape, fetches, c.feeds(), backend);
  for (std::size_t i = 0; i < out.size(); i += 2) {
    double largest = 1;  // rounding goes with the size of what is summed up
    for (const double x : numbers(out[i + 1])) largest = std::max(largest, std::abs(x));
    expect_near(out[i], numbers(out[i + 1]), tolerance * largest,
                i == 0 ? "output" : tape.name_of(c.wrt()[i / 2 - 1].id));
  }
}

TEST(TransformerVqAttention, IsDenseAttentionOverTheSameKeysInDouble) {
  expect_is_dense({}, {.block = 4}, 1e-10, "exactly");
  expect_is_dense({.t = 24, .m = 3}, {.block = 8}, 1e-10, "exactly");
  expect_is_dense({.g = 3, .t = 12, .m = 7}, {.block = 2}, 1e-10, "exactly");
  expect_is_dense({}, {.block = 4, .cache = false}, 1e-10, "exactly");
  expect_is_dense({.t = 12}, {.block = 12}, 1e-10, "exactly");
}

TEST(TransformerVqAttention, IsDenseAttentionOverTheSameKeysInSingle) {
  expect_is_dense({}, {.block = 4}, 1e-5, "cpu");
  expect_is_dense({.b = 1, .g = 2, .t = 96, .dk = 16, .dv = 12, .s = 24, .m = 16}, {.block = 16}, 1e-5, "cpu");
  expect_is_dense({.t = 20, .m = 6}, {.block = 1}, 1e-5, "cpu");
}

TEST(TransformerVqAttention, OwnDenseFormIsTheSameFunction) {
  Tape tape;
  Case c(tape, {.g = 2});
  AttentionMemory memory = c.memory;
  const Value linear = vq_attention(c.head, memory, {.block = 6}), dense = dense_attention(c.head);
  const std::vector<Value> shared{c.inputs[0], c.inputs[2], c.inputs[3], c.inputs[4], c.inputs[5]};
  const auto g = gradients(weighted(tape, linear), shared), h = gradients(weighted(tape, dense), shared);
  const auto out =
      exactly(tape, {linear, dense, g[0], h[0], g[1], h[1], g[2], h[2], g[3], h[3], g[4], h[4]}, c.feeds());
  for (std::size_t i = 0; i < out.size(); i += 2) expect_near(out[i], numbers(out[i + 1]), 1e-10);
}

// The blocks' size changes neither output nor what is remembered, and the gradient only at keys.
TEST(TransformerVqAttention, ManyBlocksAreOneBlock) {
  Tape tape;
  Case c(tape, {});
  std::vector<Value> fetches;
  for (const std::int64_t block : {1, 2, 8, 24}) {
    AttentionMemory memory = c.memory;
    const Value out = vq_attention(c.head, memory, {.block = block});
    const Value loss = weighted(tape, out);
    fetches.insert(fetches.end(), {out, memory.keys, memory.values, memory.mean, memory.count, memory.position,
                                   gradient(loss, c.head.values), gradient(loss, c.head.q)});
  }
  const auto out = exactly(tape, fetches, c.feeds());
  for (std::size_t i = 8; i < out.size(); ++i) expect_near(out[i], numbers(out[i % 8]), 1e-10, std::to_string(i));
  EXPECT_EQ(out[5].item(), 24);
  double counted = 0;
  for (const double n : numbers(out[4])) counted += n;
  EXPECT_EQ(counted, 2 * (24 - 4)) << "what is not in the window is in the cache, in both lanes";
}

TEST(TransformerVqAttention, MemoryCarriesOverAndOneOfAnotherSequenceIsDropped) {
  Tape tape;
  Case c(tape, {});
  AttentionMemory whole = c.memory, parts = c.memory;
  const Value all = vq_attention(c.head, whole, {.block = 4});
  const auto part = [&](std::int64_t from, std::int64_t to, AttentionMemory& memory) {
    AttentionHead h = c.head;
    h.q = slice_axis(h.q, 2, from, to);
    for (Value* v : {&h.keys, &h.values, &h.indices}) *v = slice_axis(*v, 1, from, to);
    return vq_attention(h, memory, {.block = 4});
  };
  const Value first = part(0, 16, parts), second = part(16, 24, parts);
  AttentionMemory left = parts;  // of a sequence that ended
  left.position = tape.constant(0.0, {DType::i32, {}});
  const Value again = part(0, 16, left);
  const auto out = exactly(tape, {all, concat({first, second}, 2), first, again}, c.feeds());
  expect_near(out[1], numbers(out[0]), 1e-12);
  expect_near(out[3], numbers(out[2]), 1e-12);
}

TEST(TransformerVqAttention, NoLaterTokenReachesAnEarlierOutput) {
  const Sizes z{.b = 1, .t = 8, .dk = 2, .dv = 2, .s = 4, .m = 2};
  Tape sizes;
  Case c(sizes, z);
  const GraphFn f = [&](Tape& tape, std::span<const Value> in) {
    AttentionHead h;
    // All three depend on the same tokens, as in a model.
    h.q = reshape(in[0], Shape{1, 1, z.t, z.dk});
    h.values = in[0];
    const auto constant = [&](std::size_t i) { return tape.constant(c.values[i].cast(in[0].dtype())); };
    h.u = constant(3), h.w = constant(4), h.relative = constant(5), h.codes = constant(6);
    h.indices = reshape(nearest_code(reshape(in[0], Shape{z.t, z.dk}), h.codes), Shape{1, z.t});
    h.keys = in[0] + stop_gradient(gather_rows(h.codes, h.indices) - in[0]);
    AttentionMemory memory = empty_memory(tape, z, in[0].dtype());
    return vq_attention(h, memory, {.block = 2});
  };
  const std::vector<Tensor> x{normal_init({1, z.t, z.dk}, 0, 1, 4, "x")};
  const Tensor j = jacobian(f, x, 0, backend("reference"));
  for (std::int64_t out = 0; out < z.t; ++out)
    for (std::int64_t in = 0; in < z.t; ++in) {
      double most = 0;
      for (std::int64_t a = 0; a < 2; ++a)
        for (std::int64_t b = 0; b < 2; ++b)
          most = std::max(most, std::abs(j.at((out * 2 + a) * z.t * 2 + in * 2 + b)));
      if (in > out) {
        EXPECT_EQ(most, 0) << out << " depends on " << in;
      } else {
        EXPECT_GT(most, 0) << out << " does not depend on " << in;
      }
    }
  const GradcheckResult checked = gradcheck(f, x, backend("reference"));
  EXPECT_TRUE(checked.ok) << checked.message;
}

TEST(TransformerVqAttention, CutGradientToMemoryStopsAtBlocks) {
  Tape tape;
  Case c(tape, {});
  AttentionMemory memory = c.memory;
  const Value out = vq_attention(c.head, memory, {.block = 4, .gradient_to_memory = false});
  const Value last = sum(square(slice_axis(out, 2, 20, 24)));
  const auto g = exactly(tape, {gradient(last, c.head.values)}, c.feeds())[0];
  for (std::int64_t t = 0; t < 24; ++t) {
    double most = 0;
    for (std::int64_t d = 0; d < 5; ++d) most = std::max(most, std::abs(g.at(t * 5 + d)));
    EXPECT_EQ(most > 0, t >= 20) << t;
  }
}

TEST(TransformerVqAttention, ErrorsNameWhatDoesNotFit) {
  Tape tape;
  Case c(tape, {});
  AttentionMemory memory = c.memory;
  expect_error(ErrorKind::attribute, {"24 tokens", "block of 5"}, [&] { vq_attention(c.head, memory, {.block = 5}); });
  AttentionHead h = c.head;
  h.u = slice_axis(h.u, 1, 0, 3);
  expect_error(ErrorKind::shape, {"u [1,3]"}, [&] { vq_attention(h, memory, {.block = 4}); });
  memory.mean = memory.values;
  expect_error(ErrorKind::shape, {"6 codes"}, [&] { vq_attention(c.head, memory, {.block = 4}); });
  expect_error(ErrorKind::shape, {"skewed"}, [&] { skewed(c.head.keys, 3); });
  expect_error(ErrorKind::attribute, {"sinusoids"}, [] { sinusoids(4, 3, 1e4); });
}

TEST(TransformerVqAttention, SkewMovesRowsRight) {
  Tape tape;
  const Value band = tape.constant(floats({3, 2}, {1, 2, 3, 4, 5, 6}));
  expect_near(run_once(tape, {skewed(band, 5)})[0], {1, 2, 0, 0, 0, 0, 3, 4, 0, 0, 0, 0, 5, 6, 0}, 0);
}

}  // namespace
}  // namespace sg::models_test
