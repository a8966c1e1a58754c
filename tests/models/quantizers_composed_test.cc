// Quantizers that are made of codebooks, each against what defines it. What all have in common is in
// quantizers_table_test.cc.
#include <cmath>
#include <set>

#include "core/autodiff.h"
#include "models/init.h"
#include "models/quantizers/grouped.h"
#include "models/quantizers/multi_scale.h"
#include "models/quantizers/projected.h"
#include "models/quantizers/residual.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/gradient.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/models/support.h"

namespace sg {
namespace {

using namespace models_test;

Tensor normal_rows(Shape shape, std::uint32_t seed = 1) { return normal_init(shape, 0, 1, seed, "rows"); }

QuantizeContext training(Tape& tape, std::int32_t step = 0, Value mask = {}) {
  return {.random = tape.constant(Tensor::of<std::int32_t>({2}, {3, step})), .progress = {}, .mask = mask};
}

double largest_difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.type(), b.type());
  double most = 0;
  for (std::int64_t i = 0; i < a.elements(); ++i) most = std::max(most, std::abs(a.at(i) - b.at(i)));
  return most;
}

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
