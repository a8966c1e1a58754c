// Quantizers that are made of codebooks, each against what defines it; the residual one has a file of its own, and what
// all have in common is in quantizers_table_test.cc.
#include "core/autodiff.h"
#include "models/quantizers/grouped.h"
#include "models/quantizers/multi_scale.h"
#include "models/quantizers/projected.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/models/composed_support.h"

namespace sg {
namespace {

using namespace models_test;

// ---- all of them

QuantizerConfig any_config(const std::string& name) {
  QuantizerConfig c;
  c.quantizer = name;
  c.codes = 8;
  c.dim = 6;
  c.heads = 2;
  c.levels = 2;
  c.code_dim = 3;
  c.side = 3;
  c.scales = {1, 3};
  return c;
}
const char* const kComposed[] = {"cosine",   "factorised",       "multi-head",  "product",
                                 "residual", "grouped-residual", "multi-scale", "random-projection"};

// Every rule with every one of them, books shared or not: a step moves what learns and leaves numbers finite.
TEST(ComposedQuantizers, TakeEveryCodebookRuleAndRevival) {
  for (const char* name : kComposed)
    for (const std::string& rule : codebook_update_names())
      for (const bool shared : {false, true}) {
        const bool can_share = std::string_view(name) == "residual" || std::string_view(name) == "multi-head";
        if (shared && !can_share) continue;
        SCOPED_TRACE(fmt::format("{} {} {}", name, rule, shared ? "shared" : ""));
        QuantizerConfig c = any_config(name);
        c.codebook = codebook_update_by_name(rule);
        c.shared_books = shared;
        c.level_dropout = 0.5;
        if (rule != "simvq" && rule != "frozen") c.revival = 0.5;
        if (rule != "simvq") c.init = CodebookInit::normal;
        Module root{6};
        const auto q = make_quantizer(root, "q", c);
        Tape tape;
        const Value random = tape.input("random", {DType::i32, {2}});
        const QuantizeContext context{.random = random, .progress = {}, .mask = {}};
        const Quantized out = (*q)(tape.constant(normal_rows({2, 3, 3, 6})), context);
        const Value total = sum(square(out.z_q - 1.0)) + out.total_loss();
        StepUpdates updates(tape);
        std::vector<Value> parameters;
        for (Variable* v : root.parameters()) parameters.push_back(tape.read(*v));
        const std::vector<Value> grads = gradients(total, parameters);
        for (std::size_t i = 0; i < grads.size(); ++i)
          updates.set(*root.parameters()[i], parameters[i] - 0.01 * grads[i]);
        q->update(out, context, updates);
        updates.commit();
        std::vector<Tensor> before;
        for (const Variable* v : root.variables()) before.push_back(v->value());
        Program program = compile(tape, {total}, backend("cpu"));
        for (std::int32_t step = 0; step < 4; ++step) {
          program.feed(random, Tensor::of<std::int32_t>({2}, {4, step}));
          program.run();
          EXPECT_TRUE(std::isfinite(program.fetch_scalar(total)));
        }
        const std::vector<Variable*> after = root.variables();
        for (std::size_t i = 0; i < after.size(); ++i) {
          for (const double x : numbers(after[i]->value())) ASSERT_TRUE(std::isfinite(x)) << after[i]->name();
          const bool codes = after[i]->name().ends_with("codebook");
          const bool still =
              std::string_view(name) == "random-projection" || (codes && (rule == "simvq" || rule == "frozen"));
          EXPECT_EQ(largest_difference(before[i], after[i]->value()) == 0, still) << after[i]->name();
        }
      }
}

// An estimator that takes the loss at z itself: here the loss is sum (z_q - 1)^2 and decoders are the identity.
TEST(ComposedQuantizers, HandTheLossToEstimatorsThatNeedIt) {
  for (const char* name : kComposed) {
    const std::string_view kind = name;
    if (kind == "cosine") continue;  // z is not the row that is compared
    for (const bool shared : {false, true}) {
      if (shared && kind != "residual" && kind != "multi-head") continue;
      SCOPED_TRACE(fmt::format("{} {}", name, shared ? "shared" : ""));
      QuantizerConfig c = any_config(name);
      c.estimator = "exact";
      c.shared_books = shared;
      Module root{6};
      const auto q = make_quantizer(root, "q", c);
      Tape tape;
      const Value z = tape.constant(normal_rows({2, 3, 3, 6}));
      const Quantized out = (*q)(z, training(tape));
      const Value loss = sum(square(out.z_q - 1.0)), term = q->estimator_term(loss, out);
      ASSERT_TRUE(term);
      EXPECT_NE(gradient_flow(loss, z).state, GradientFlow::State::live);
      const std::vector<Tensor> t = exactly(tape, {term, gradient(loss + term, z), 2.0 * (z - 1.0)});
      EXPECT_NEAR(t[0].item(), 0, 1e-12);
      if (kind == "factorised") continue;  // the encoder's gradient passes both projections
      EXPECT_LT(largest_difference(t[1], t[2]), 1e-6);
    }
  }
}

TEST(ComposedQuantizers, OfOneBookAreVq) {
  for (const char* name : {"multi-head", "product", "residual", "grouped-residual"})
    for (const bool shared : {false, true}) {
      if (shared && std::string_view(name) == "product") continue;
      SCOPED_TRACE(fmt::format("{} {}", name, shared ? "shared" : ""));
      QuantizerConfig c = any_config(name);
      c.heads = c.levels = 1;
      c.shared_books = shared;
      Module root{6}, other{6};
      const auto q = make_quantizer(root, "q", c);
      VectorQuantizer vq(other, "vq", any_config("vq"));
      vq.set_codebook(root.parameters().at(0)->value());
      Tape tape;
      const Value z = tape.constant(normal_rows({2, 5, 6}));
      const Quantized a = (*q)(z, training(tape)), b = vq(z, training(tape));
      ASSERT_EQ(a.indices.shape(), Shape({2, 5}));
      const std::vector<Tensor> t =
          run_once(tape, {a.z_q, b.z_q, a.indices, b.indices, a.total_loss(), b.total_loss(), q->decode(b.indices),
                          vq.decode(b.indices), q->requantize(b.indices), vq.requantize(b.indices),
                          gradient(a.total_loss(), z), gradient(b.total_loss(), z)});
      for (std::size_t i = 0; i < t.size(); i += 2) expect_same_bits(t[i], t[i + 1], std::to_string(i));
    }
}

// ---- heads and groups

QuantizerConfig heads_config(const std::string& name, bool shared) {
  QuantizerConfig c;
  c.quantizer = name;
  c.codes = 8;
  c.dim = 6;
  c.heads = 3;
  c.levels = 2;
  c.shared_books = shared;
  c.init = CodebookInit::normal;
  return c;
}

TEST(GroupedQuantizer, HeadsAreQuantizersOfTheirPieces) {
  for (const bool shared : {false, true}) {
    Module root{2};
    const auto heads = make_quantizer(root, "q", heads_config("multi-head", shared));
    ASSERT_EQ(root.parameters().size(), shared ? 1u : 3u);
    EXPECT_EQ(heads->books(), 3);
    EXPECT_EQ(heads->bits_per_row(), 9);
    Tape tape;
    const Tensor rows = normal_rows({2, 4, 6});
    const Value z = tape.constant(rows);
    const Quantized out = (*heads)(z);
    Value codebook;
    std::vector<Value> fetches{out.z_q, out.indices, out.q};
    for (std::int64_t h = 0; h < 3; ++h) {
      QuantizerConfig one = heads_config("vq", false);
      one.dim = 2;
      Module other{9};
      VectorQuantizer piece(other, "vq", one);
      piece.set_codebook(root.parameters()[shared ? 0 : static_cast<std::size_t>(h)]->value());
      Tape alone;
      const Value part = alone.constant(run_once(tape, {slice_axis(z, 2, 2 * h, 2 * h + 2)})[0]);
      const Quantized expected = piece(part);
      const std::vector<Tensor> t = run_once(
          tape, {slice_axis(out.z_q, 2, 2 * h, 2 * h + 2), reshape(slice_axis(out.indices, 2, h, h + 1), {2, 4})});
      const std::vector<Tensor> e = run_once(alone, {expected.z_q, expected.indices, expected.loss("codebook")});
      expect_same_bits(t[0], e[0], "z_q");
      expect_same_bits(t[1], e[1], "indices");
      const Value loss = tape.constant(e[2]);
      codebook = codebook ? codebook + loss : loss;
    }
    const std::vector<Tensor> t = run_once(tape, {out.loss("codebook"), codebook / 3.0, out.z, out.q});
    EXPECT_NEAR(t[0].item(), t[1].item(), 1e-6);
    EXPECT_EQ(t[2].shape(), Shape({24, 2}));
    expect_near(t[2], numbers(rows), 0, "the rows compared are those of each input row together");
  }
}

TEST(GroupedQuantizer, GroupedResidualIndicesAreGroupByGroup) {
  Module root{2};
  const auto q = make_quantizer(root, "q", heads_config("grouped-residual", false));
  EXPECT_EQ(q->books(), 6);
  Tape tape;
  const Value z = tape.constant(normal_rows({5, 6}));
  const Quantized out = (*q)(z);
  ASSERT_EQ(out.indices.shape(), Shape({5, 6}));
  for (std::int64_t g = 0; g < 3; ++g) {
    const Quantized& part = out.parts[static_cast<std::size_t>(g)];
    const std::vector<Tensor> t = run_once(tape, {slice_axis(out.indices, 1, 2 * g, 2 * g + 2), part.indices,
                                                  slice_axis(out.z_q, 1, 2 * g, 2 * g + 2), part.z_q});
    expect_same_bits(t[0], t[1]);
    expect_same_bits(t[2], t[3]);
  }
}

TEST(GroupedQuantizer, InitializeClustersThePieces) {
  for (const char* name : {"multi-head", "product", "grouped-residual"})
    for (const bool shared : {false, true}) {
      if (shared && std::string_view(name) == "product") continue;
      QuantizerConfig c = heads_config(name, shared);
      c.init = CodebookInit::kmeans;
      Module root{2};
      const auto q = make_quantizer(root, "q", c);
      ASSERT_TRUE(q->wants_rows());
      const Tensor rows = normal_rows({300, 6});
      Tape tape;
      const Quantized before = (*q)(tape.constant(rows));
      const double first = run_once(tape, {before.loss("codebook")})[0].item();
      q->initialize(rows, backend("cpu"));
      EXPECT_LT(run_once(tape, {before.loss("codebook")})[0].item(), 0.75 * first) << name;
    }
}

TEST(GroupedQuantizer, SettingsThatMakeNoSenseAreRefused) {
  Module root;
  QuantizerConfig c = heads_config("product", true);
  expect_error(ErrorKind::usage, {"product", "multi-head"}, [&] { make_quantizer(root, "a", c); });
  c.shared_books = false;
  c.heads = 4;
  expect_error(ErrorKind::usage, {"4 heads", "rows of 6"}, [&] { make_quantizer(root, "b", c); });
  c.heads = 0;
  expect_error(ErrorKind::usage, {"0 heads"}, [&] { make_quantizer(root, "c", c); });
}

// ---- projections

QuantizerConfig projected_config(const std::string& name) {
  QuantizerConfig c;
  c.quantizer = name;
  c.codes = 32;
  c.dim = 8;
  c.code_dim = 3;
  c.init = CodebookInit::normal;
  return c;
}

TEST(FactorisedQuantizer, EachTermTrainsItsParameters) {
  Module root{3};
  QuantizerConfig c = projected_config("factorised");
  c.metric = Metric::cosine;
  const auto q = make_quantizer(root, "q", c);
  Tape tape;
  const Value z = tape.constant(normal_rows({10, 8}));
  const Quantized out = (*q)(z, training(tape));
  EXPECT_EQ(out.z.shape(), Shape({10, 3}));
  const Value reconstruction = sum(square(out.z_q));
  const auto flow = [&](Value loss, const char* name) {
    return gradient_flow(loss, tape.read(root.find(name))).state == GradientFlow::State::live;
  };
  for (const char* name : {"q.in.weight", "q.in.bias"}) {
    EXPECT_TRUE(flow(reconstruction, name)) << name;
    EXPECT_TRUE(flow(out.loss("commitment"), name)) << name;
    EXPECT_FALSE(flow(out.loss("codebook"), name)) << name;
  }
  for (const char* name : {"q.out.weight", "q.out.bias"}) EXPECT_TRUE(flow(reconstruction, name)) << name;
  EXPECT_TRUE(flow(out.loss("codebook"), "q.book.codebook"));
  EXPECT_FALSE(flow(reconstruction, "q.book.codebook"));
}

TEST(FactorisedQuantizer, InitializeClustersTheProjectedRows) {
  Module root{3};
  QuantizerConfig c = projected_config("factorised");
  c.init = CodebookInit::kmeans;
  const auto q = make_quantizer(root, "q", c);
  const Tensor rows = normal_rows({300, 8});
  Tape tape;
  const Quantized out = (*q)(tape.constant(rows));
  const std::vector<Value> error{mean(square(out.z - out.q)), mean(square(out.z))};
  q->initialize(rows, backend("cpu"));
  const std::vector<Tensor> t = run_once(tape, error);
  EXPECT_LT(t[0].item(), 0.25 * t[1].item());
}

TEST(RandomProjectionQuantizer, IsFrozenAndFindsAnIndexInItsOwnOutputAgain) {
  for (const std::uint32_t seed : {1u, 2u, 3u}) {
    Module root{seed};
    QuantizerConfig c = projected_config("random-projection");
    c.init = CodebookInit::kmeans;
    c.revival = 3;
    c.codebook = CodebookUpdate::ema;
    const auto q = make_quantizer(root, "q", c);
    EXPECT_TRUE(root.parameters().empty());
    EXPECT_FALSE(q->wants_rows());
    Tape tape;
    const Value z = tape.constant(normal_rows({50, 8}));
    const QuantizeContext context = training(tape);
    const Quantized out = (*q)(z, context);
    StepUpdates updates(tape);
    q->update(out, context, updates);
    for (Variable* v : root.variables()) EXPECT_FALSE(updates.has(*v)) << v->name();
    Tensor every({DType::i32, {32}});
    for (std::int64_t i = 0; i < 32; ++i) every.set(i, static_cast<double>(i));
    const Value decoded = q->decode(tape.constant(every));
    const std::vector<Tensor> t = run_once(tape, {q->encode(decoded), out.indices, q->encode(3.5 * z)});
    expect_near(t[0], numbers(every), 0);
    expect_same_bits(t[1], t[2], "lengths play no part");
    const Value g = gradient(sum(out.z_q), z);
    expect_near(run_once(tape, {g})[0], std::vector<double>(400, 1), 0, "straight through");
  }
  Module root;
  QuantizerConfig c = projected_config("random-projection");
  c.code_dim = 9;
  expect_error(ErrorKind::usage, {"9 dimensions", "8"}, [&] { make_quantizer(root, "q", c); });
}

// ---- scales

QuantizerConfig scales_config(std::vector<std::int64_t> scales, double phi) {
  QuantizerConfig c;
  c.quantizer = "multi-scale";
  c.codes = 12;
  c.dim = 2;
  c.side = 5;
  c.scales = std::move(scales);
  c.phi = phi;
  c.init = CodebookInit::normal;
  return c;
}

TEST(MultiScaleQuantizer, OfTheFinestScaleAloneIsVq) {
  Module root{4};
  MultiScaleQuantizer q(root, "q", scales_config({5}, 0));
  Module other{4};
  QuantizerConfig c = scales_config({5}, 0);
  VectorQuantizer vq(other, "vq", c);
  vq.set_codebook(root.find("q.book.codebook").value());
  Tape tape;
  const Value z = tape.constant(normal_rows({3, 5, 5, 2}));
  const Quantized a = q(z, training(tape)), b = vq(z, training(tape));
  EXPECT_EQ(a.indices.shape(), Shape({3, 25}));
  EXPECT_DOUBLE_EQ(q.bits_per_row(), vq.bits_per_row());
  const std::vector<Tensor> t =
      run_once(tape, {a.z_q, b.z_q, a.indices, reshape(b.indices, {3, 25}), a.loss("codebook"), b.loss("codebook"),
                      a.loss("commitment"), b.loss("commitment"),
                      gradient(a.total_loss(), tape.read(root.find("q.book.codebook"))),
                      gradient(b.total_loss(), tape.read(vq.codebook()))});
  for (std::size_t i = 0; i < t.size(); i += 2) expect_same_bits(t[i], t[i + 1], std::to_string(i));
}

TEST(MultiScaleQuantizer, ScalesAreChosenAndChecked) {
  Module root;
  QuantizerConfig c = scales_config({}, 0.5);
  EXPECT_EQ(MultiScaleQuantizer(root, "a", c).scales(), (std::vector<std::int64_t>{1, 2, 4, 5}));
  c.side = 8;
  EXPECT_EQ(MultiScaleQuantizer(root, "b", c).scales(), (std::vector<std::int64_t>{1, 2, 4, 8}));
  EXPECT_EQ(MultiScaleQuantizer(root, "c", c).tokens(), 85);
  c.side = 1;
  EXPECT_EQ(MultiScaleQuantizer(root, "d", c).scales(), (std::vector<std::int64_t>{1}));
  for (const std::vector<std::int64_t>& bad : {std::vector<std::int64_t>{2, 1, 5}, {1, 2}, {0, 5}, {1, 5, 5}}) {
    Module fresh;
    expect_error(ErrorKind::usage, {"scales", "5"}, [&] { MultiScaleQuantizer(fresh, "e", scales_config(bad, 0)); });
  }
  c.side = 0;
  expect_error(ErrorKind::usage, {"side"}, [&] { MultiScaleQuantizer(root, "f", c); });
  MultiScaleQuantizer q(root, "g", scales_config({1, 5}, 0));
  Tape tape;
  const Value wide = tape.input("z", {DType::f32, {1, 4, 5, 2}});
  expect_error(ErrorKind::shape, {"f32[1,4,5,2]", "[N,5,5,2]"}, [&] { q(wide); });
}

// The mean of the rows that are there: one value everywhere, whatever the padding holds, gives that value's code at
// every scale.
TEST(MultiScaleQuantizer, WindowsAverageOnlyWhatIsThere) {
  Module root{4};
  MultiScaleQuantizer q(root, "q", scales_config({1, 2, 5}, 0));
  Tensor z({DType::f32, {1, 5, 5, 2}}), mask({DType::f32, {1, 5, 5}});
  for (std::int64_t y = 0; y < 5; ++y)
    for (std::int64_t x = 0; x < 5; ++x) {
      const bool there = x < 3 && y < 4;
      mask.set(y * 5 + x, there);
      for (std::int64_t d = 0; d < 2; ++d)
        z.set((y * 5 + x) * 2 + d, there ? 0.7 - static_cast<double>(d) : std::nan(""));
    }
  Tape tape;
  const Quantized out = q(tape.constant(z), {.random = {}, .progress = {}, .mask = tape.constant(mask)});
  const std::vector<Tensor> t = run_once(tape, {out.parts[0].z, out.parts[1].lookup.mask, out.z_q, out.total_loss()});
  expect_near(t[0], {0.7, -0.3}, 1e-6);
  expect_near(t[1], {1, 1, 1, 1}, 0, "each of the 2 x 2 windows has a row");
  for (std::int64_t i = 0; i < 50; ++i) EXPECT_EQ(t[2].at(i) != 0, mask.at(i / 2) == 1) << i;
  EXPECT_TRUE(std::isfinite(t[3].item()));
}

TEST(MultiScaleQuantizer, InitializeClustersTheWindowsOfAllScales) {
  Module root{4};
  QuantizerConfig c = scales_config({1, 2, 3, 5}, 0);
  c.codes = 64;
  c.init = CodebookInit::kmeans;
  MultiScaleQuantizer q(root, "q", c);
  const Tensor z = normal_rows({20, 5, 5, 2});
  Tape tape;
  const Quantized out = q(tape.constant(z));
  q.initialize(floats({500, 2}, std::vector<float>(z.span<float>().begin(), z.span<float>().end())), backend("cpu"));
  const std::vector<Tensor> t = run_once(tape, {out.parts[0].loss("commitment"), out.parts[3].loss("commitment")});
  EXPECT_LT(t[1].item(), 0.1 * t[0].item());
  expect_error(ErrorKind::shape, {"f32[26,2]", "5 x 5"}, [&] { q.initialize(normal_rows({26, 2}), backend("cpu")); });
}

}  // namespace
}  // namespace sg
