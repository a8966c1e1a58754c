// Residual vector quantization: levels, their gradients, dropped levels, padding, shared books.
#include <set>

#include "core/autodiff.h"
#include "models/quantizers/residual.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/gradient.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/models/composed_support.h"

namespace sg {
namespace {

using namespace models_test;

QuantizerConfig residual_config(std::int64_t levels) {
  QuantizerConfig c;
  c.quantizer = "residual";
  c.codes = 16;
  c.dim = 6;
  c.levels = levels;
  c.init = CodebookInit::normal;
  c.normal_deviation = 0.5;
  return c;
}

struct Residual {
  explicit Residual(const QuantizerConfig& config) : quantizer(root, "rvq", config) {}
  Module root{5};
  ResidualQuantizer quantizer;
  Tape tape;
};

TEST(ResidualQuantizer, EachLevelCodesWhatThoseBeforeLeaveOver) {
  QuantizerConfig c = residual_config(2);
  c.codes = 3;
  c.dim = 2;
  Residual r(c);
  r.quantizer.level(0).set_codebook(floats({3, 2}, {0, 0, 4, 0, 0, 4}));
  r.quantizer.level(1).set_codebook(floats({3, 2}, {0, 0, 1, 0, 0, -1}));
  const Value z = r.tape.input("z", {DType::f32, {3, 2}});
  const Quantized out = r.quantizer(z);
  const std::vector<Feed> feeds{{z, floats({3, 2}, {5.25f, 0, 0.5f, 3, 0, -0.25f})}};
  const std::vector<Tensor> t =
      run_once(r.tape, {out.indices, out.z_q, out.loss("codebook"), out.loss("commitment"), out.parts[1].z}, feeds);
  expect_near(t[0], {1, 1, 2, 2, 0, 0}, 0, "indices");
  expect_near(t[1], {5, 0, 0, 3, 0, 0}, 0, "z_q");
  expect_near(t[4], {1.25, 0, 0.5, -1, 0, -0.25}, 0, "what is left");
  // Level 1: (1.5625 + 1.25 + 0.0625) / 6, level 2: (0.0625 + 0.25 + 0.0625) / 6; their mean.
  expect_near(t[2], {(2.875 + 0.375) / 12}, 1e-7);
  expect_near(t[3], {(2.875 + 0.375) / 12}, 1e-7);
}

// Later levels without gradient are how residual VQ silently fails elsewhere (encodec#25).
TEST(ResidualQuantizer, OfEightLevelsEachTrainsAndReachesTheEncoder) {
  constexpr std::int64_t kLevels = 8;
  for (const CodebookUpdate rule : {CodebookUpdate::loss, CodebookUpdate::affine}) {
    QuantizerConfig c = residual_config(kLevels);
    c.codebook = rule;
    Residual r(c);
    const Value x = r.tape.input("x", {DType::f32, {40, 6}});
    Variable weight("encoder.weight", normal_init({6, 6}, 0, 0.4, 1, "encoder"));
    const Value w = r.tape.read(weight), z = sum(reshape(x, {40, 6, 1}) * w, {1});
    const Quantized out = r.quantizer(z, training(r.tape));
    const Value reconstruction = mean(square(out.z_q - x));
    std::vector<Value> books;
    for (Variable* v : r.root.parameters()) books.push_back(r.tape.read(*v));
    ASSERT_EQ(books.size(), rule == CodebookUpdate::loss ? 8u : 24u);

    for (const GradientFlow& flow : gradient_flows(out.loss("codebook"), books))
      EXPECT_EQ(flow.state, GradientFlow::State::live);
    for (const GradientFlow& flow : gradient_flows(reconstruction, books))
      EXPECT_EQ(flow.state, GradientFlow::State::blocked);
    for (const GradientFlow& flow : gradient_flows(out.loss("commitment"), books))
      EXPECT_EQ(flow.state, GradientFlow::State::blocked);
    for (const Value loss : {reconstruction, out.loss("commitment")})
      EXPECT_EQ(gradient_flow(loss, w).state, GradientFlow::State::live);
    EXPECT_EQ(gradient_flow(out.loss("codebook"), w).state, GradientFlow::State::blocked);
    for (const Quantized& part : out.parts)  // each level's own commitment
      EXPECT_EQ(gradient_flow(part.loss("commitment"), w).state, GradientFlow::State::live);

    std::vector<Value> wrt = books;
    wrt.push_back(w);
    for (const Quantized& part : out.parts) wrt.push_back(part.z);
    std::vector<Value> norms;
    for (const Value g : gradients(reconstruction + out.total_loss(), wrt)) norms.push_back(norm(g, {}));
    const std::vector<Tensor> t = exactly(r.tape, norms, {{x, normal_rows({40, 6})}});
    for (std::size_t i = 0; i < t.size(); ++i) {
      EXPECT_GT(t[i].item(), 1e-4) << r.tape.name_of(wrt[i].id);
      EXPECT_TRUE(std::isfinite(t[i].item()));
    }
  }
}

// What a level's codes receive is what they would as the only codebook of those rows, by 1/L.
TEST(ResidualQuantizer, ALevelsGradientIsThatOfAQuantizerOfItsRows) {
  Residual r(residual_config(4));
  const Value z = r.tape.constant(normal_rows({30, 6}));
  const Quantized out = r.quantizer(z, training(r.tape));
  const Value total = out.total_loss();
  for (std::int64_t i = 0; i < 4; ++i) {
    VectorQuantizer& level = r.quantizer.level(i);
    const Value rest = out.parts[static_cast<std::size_t>(i)].z, book = r.tape.read(level.codebook());
    const Quantized alone = level(rest, training(r.tape));
    const std::vector<Tensor> t = exactly(r.tape, {gradient(total, book), gradient(alone.total_loss(), book) / 4.0});
    EXPECT_LT(largest_difference(t[0], t[1]), 1e-14);
  }
  // d commitment / dz: 2 gamma (z - q_1 - ... - q_i) / (N D), the mean over i.
  Value expected, left = z;
  for (const Quantized& part : out.parts) {
    left = left - part.q;
    const Value one = (2 * 0.25 / (30 * 6 * 4)) * left;
    expected = expected ? expected + one : one;
  }
  const std::vector<Tensor> t = exactly(r.tape, {gradient(total, z), expected, norm(expected, {})});
  EXPECT_LT(largest_difference(t[0], t[1]), 1e-7 * t[2].item());  // the factor is a constant, in f32
}

TEST(ResidualQuantizer, TheEstimatorSeesTheSumOfCodes) {
  QuantizerConfig c = residual_config(3);
  c.estimator = "rotation";
  Residual r(c);
  const Value z = r.tape.constant(normal_rows({12, 6})), g = r.tape.constant(normal_rows({12, 6}, 2));
  const Quantized out = r.quantizer(z, training(r.tape));
  const Value same = rotation_trick(z, stop_gradient(out.q));
  const std::vector<Tensor> t = exactly(r.tape, {gradient(sum(g * out.z_q), z), gradient(sum(g * same), z), out.z_q,
                                                 out.parts[0].q + out.parts[1].q + out.parts[2].q});
  EXPECT_LT(largest_difference(t[0], t[1]), 1e-14);
  expect_same_bits(t[2], t[3]);
}

TEST(ResidualQuantizer, EstimatorsOfACodebookEstimateLevelByLevel) {
  QuantizerConfig c = residual_config(2);
  c.estimator = "gumbel";
  Residual r(c);
  const Value z = r.tape.constant(normal_rows({12, 6}));
  const Quantized out = r.quantizer(z, training(r.tape));
  const Value loss = sum(square(out.z_q));
  const std::vector<Tensor> t =
      run_once(r.tape, {out.z_q, out.parts[0].q + out.parts[1].q, out.loss("kl_to_uniform"),
                        (out.parts[0].loss("kl_to_uniform") + out.parts[1].loss("kl_to_uniform")) / 2.0});
  expect_same_bits(t[0], t[1]);
  expect_same_bits(t[2], t[3]);
  for (std::int64_t i = 0; i < 2; ++i)  // the codes are part of what it samples from
    EXPECT_EQ(gradient_flow(loss, r.tape.read(r.quantizer.level(i).codebook())).state, GradientFlow::State::live);
}

QuantizerConfig dropped(std::int64_t levels, double share) {
  QuantizerConfig c = residual_config(levels);
  c.level_dropout = share;
  return c;
}

TEST(ResidualQuantizer, WithLevelsDroppedTheLossIsThatOfFewerLevels) {
  constexpr std::int64_t kLevels = 4;
  std::set<double> seen;
  for (std::int32_t step = 0; step < 24; ++step) {
    Residual all(dropped(kLevels, 1));
    Tape& tape = all.tape;
    const Value z = tape.constant(normal_rows({20, 6}));
    const Quantized out = all.quantizer(z, training(tape, step));
    const double n = exactly(tape, {out.loss("levels")})[0].item();
    ASSERT_EQ(n, std::floor(n));
    ASSERT_GE(n, 1);
    ASSERT_LE(n, kLevels);
    if (!seen.insert(n).second) continue;

    Residual fewer(residual_config(static_cast<std::int64_t>(n)));
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(n); ++i)
      fewer.quantizer.level(i).set_codebook(all.quantizer.level(i).codebook().value());
    const Quantized same = fewer.quantizer(fewer.tape.constant(normal_rows({20, 6})), training(fewer.tape, step));
    std::vector<Value> mine{out.z_q, out.total_loss(), out.loss("codebook"), out.loss("commitment")};
    std::vector<Value> theirs{same.z_q, same.total_loss(), same.loss("codebook"), same.loss("commitment")};
    for (std::int64_t i = 0; i < kLevels; ++i) {
      const Value g = gradient(out.total_loss(), tape.read(all.quantizer.level(i).codebook()));
      if (static_cast<double>(i) < n) {
        mine.push_back(g);
        theirs.push_back(gradient(same.total_loss(), fewer.tape.read(fewer.quantizer.level(i).codebook())));
      } else {
        EXPECT_EQ(exactly(tape, {norm(g, {})})[0].item(), 0) << "level " << i + 1 << " of " << n;
      }
    }
    const std::vector<Tensor> a = exactly(tape, mine), b = exactly(fewer.tape, theirs);
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_LT(largest_difference(a[i], b[i]), 1e-12) << n << " value " << i;
    expect_same_bits(run_once(tape, {out.z_q})[0], run_once(fewer.tape, {same.z_q})[0]);
  }
  EXPECT_EQ(seen, (std::set<double>{1, 2, 3, 4}));
}

TEST(ResidualQuantizer, LevelsAreDroppedInTheShareOfStepsThatIsAskedFor) {
  Residual r(dropped(4, 0.5));
  const Value random = r.tape.input("random", {DType::i32, {2}});
  const Quantized out =
      r.quantizer(r.tape.constant(normal_rows({2, 6})), {.random = random, .progress = {}, .mask = {}});
  Program program = compile(r.tape, {out.loss("levels")}, backend("cpu"));
  std::vector<int> counts(5, 0);
  for (std::int32_t step = 0; step < 800; ++step) {
    program.feed(random, Tensor::of<std::int32_t>({2}, {9, step}));
    program.run();
    ++counts[static_cast<std::size_t>(program.fetch_scalar(out.loss("levels")))];
  }
  // Half of the steps uniform on 1..4, the others 4: 100 each of 1, 2, 3, within five standard deviations.
  EXPECT_EQ(counts[0], 0);
  for (std::size_t n = 1; n <= 3; ++n) EXPECT_NEAR(counts[n], 100, 47) << n;
  const Quantized evaluation = r.quantizer(r.tape.constant(normal_rows({2, 6})));
  EXPECT_EQ(evaluation.find("levels"), nullptr);
}

TEST(ResidualQuantizer, ALevelThatIsDroppedKeepsItsAverages) {
  for (std::int32_t step = 0; step < 24; ++step) {
    QuantizerConfig c = dropped(3, 1);
    c.codebook = CodebookUpdate::ema;
    Residual r(c);
    const QuantizeContext context = training(r.tape, step);
    const Quantized out = r.quantizer(r.tape.constant(normal_rows({20, 6})), context);
    std::vector<Tensor> before;
    for (const Variable* v : r.root.state()) before.push_back(v->value());
    StepUpdates updates(r.tape);
    r.quantizer.update(out, context, updates);
    updates.commit();
    const double n = run_once(r.tape, {out.loss("levels")})[0].item();
    const std::vector<Variable*> after = r.root.state();
    for (std::size_t i = 0; i < after.size(); ++i) {
      const auto level = static_cast<double>(after[i]->name()[std::string("rvq.level").size()] - '0');
      EXPECT_EQ(largest_difference(before[i], after[i]->value()) == 0, level > n) << after[i]->name() << " of " << n;
    }
  }
}

// Acceptance: with padding and dropped levels at once, everything is that of the rows alone.
TEST(ResidualQuantizer, PaddingAndDroppedLevelsTogetherGiveTheLossOfTheRowsAlone) {
  for (const bool shared : {false, true})
    for (std::int32_t step = 0; step < 6; ++step) {
      SCOPED_TRACE(fmt::format("shared {} step {}", shared, step));
      QuantizerConfig c = dropped(8, 1);
      c.shared_books = shared;
      c.codebook = CodebookUpdate::ema;
      const Tensor rows = normal_rows({2, 5, 6});
      Tensor padded({DType::f32, {2, 9, 6}}), mask({DType::f32, {2, 9}});
      for (std::int64_t b = 0; b < 2; ++b)
        for (std::int64_t t = 0; t < 9; ++t) {
          mask.set(b * 9 + t, t < 5);
          for (std::int64_t d = 0; d < 6; ++d)
            padded.set((b * 9 + t) * 6 + d, t < 5 ? rows.at((b * 5 + t) * 6 + d) : 100.0);
        }
      const auto step_of = [&](const Tensor& in, const Tensor* m) {
        Residual r(c);
        const QuantizeContext context = training(r.tape, step, m == nullptr ? Value() : r.tape.constant(*m));
        const Value z = r.tape.constant(in);
        const Quantized out = r.quantizer(z, context);
        StepUpdates updates(r.tape);
        r.quantizer.update(out, context, updates);
        const Value total = sum(square(out.z_q)) + out.total_loss();
        std::vector<Value> values{total, out.loss("codebook"), out.loss("commitment"), out.loss("levels")};
        for (Variable* v : r.root.state()) values.push_back(updates.next(*v));
        values.push_back(slice_axis(gradient(total, z), 1, 0, 5));
        values.push_back(slice_axis(out.z_q, 1, 0, 5));
        return exactly(r.tape, values);
      };
      const std::vector<Tensor> a = step_of(rows, nullptr), b = step_of(padded, &mask);
      for (std::size_t i = 0; i < a.size(); ++i) EXPECT_LT(largest_difference(a[i], b[i]), 1e-12) << "value " << i;
    }
}

TEST(ResidualQuantizer, ASharedBookIsUpdatedOnceFromTheRowsOfAllLevels) {
  QuantizerConfig c = residual_config(3);
  c.shared_books = true;
  c.codebook = CodebookUpdate::ema;
  c.ema_decay = 0.8;
  c.ema_eps = 0;
  Residual r(c);
  const std::vector<Variable*> state = r.root.state();
  ASSERT_EQ(state.size(), 3u);  // one book
  const QuantizeContext context = training(r.tape);
  const Quantized out = r.quantizer(r.tape.constant(normal_rows({10, 6})), context);
  std::vector<double> count(16, 0.8), sums = numbers(r.root.find("rvq.shared.sum").value());
  for (double& s : sums) s *= 0.8;
  StepUpdates updates(r.tape);
  r.quantizer.update(out, context, updates);
  updates.commit();
  const std::vector<Tensor> t = run_once(r.tape, {out.indices, out.parts[0].z, out.parts[1].z, out.parts[2].z});
  for (std::int64_t row = 0; row < 10; ++row)
    for (std::int64_t level = 0; level < 3; ++level) {
      const auto k = static_cast<std::size_t>(t[0].at(row * 3 + level));
      count[k] += 0.2;
      for (std::size_t d = 0; d < 6; ++d)
        sums[k * 6 + d] += 0.2 * t[static_cast<std::size_t>(level) + 1].at(row * 6 + static_cast<std::int64_t>(d));
    }
  expect_near(r.root.find("rvq.shared.count").value(), count, 1e-6, "count");
  expect_near(r.root.find("rvq.shared.sum").value(), sums, 1e-6, "sum");
}

TEST(ResidualQuantizer, InitializeClustersLevelByLevel) {
  for (const bool shared : {false, true}) {
    QuantizerConfig c = residual_config(3);
    c.init = CodebookInit::kmeans;
    c.shared_books = shared;
    Residual r(c);
    ASSERT_TRUE(r.quantizer.wants_rows());
    const Tensor rows = normal_rows({400, 6});
    r.quantizer.initialize(rows, backend("cpu"));
    const Quantized out = r.quantizer(r.tape.constant(rows));
    Value left = out.z;
    std::vector<Value> errors{mean(square(left))};
    for (const Quantized& part : out.parts) errors.push_back(mean(square(left = left - part.q)));
    const std::vector<Tensor> t = run_once(r.tape, errors);
    EXPECT_LT(t[1].item(), 0.7 * t[0].item());
    if (shared) continue;  // its codes are those of level 1
    EXPECT_LT(t[2].item(), 0.8 * t[1].item());
    EXPECT_LT(t[3].item(), 0.8 * t[2].item());
  }
}

TEST(ResidualQuantizer, SettingsThatMakeNoSenseAreRefused) {
  const auto refused = [](auto change, const std::vector<std::string>& parts) {
    QuantizerConfig c = residual_config(2);
    change(c);
    Module root;
    expect_error(ErrorKind::usage, parts, [&] { ResidualQuantizer(root, "rvq", c); });
  };
  refused([](auto& c) { c.levels = 0; }, {"0 levels"});
  refused([](auto& c) { c.level_dropout = 1.5; }, {"level dropout 1.5"});
  refused([](auto& c) { c.metric = Metric::cosine; }, {"cosine", "euclidean"});
  refused([](auto& c) { c.estimator = "centred"; }, {"centred", "running mean"});
  refused([](auto& c) { c.estimator = "sf-diveq"; }, {"sf-diveq"});
  Residual r(residual_config(2));
  const Value tokens = r.tape.input("tokens", {DType::i32, {4, 3}});
  expect_error(ErrorKind::shape, {"i32[4,3]", "2 of each row"}, [&] { r.quantizer.decode(tokens); });
}

}  // namespace
}  // namespace sg
