// The VQ-VAE: shapes and names of the network, a training step and its metrics, evaluation, tokens, exact resume.
#include <cmath>
#include <map>

#include "core/autodiff.h"
#include "models/init.h"
#include "models/losses.h"
#include "models/quantizers/codebook_rules.h"
#include "models/vqvae_training.h"
#include "ops/elementwise.h"
#include "tests/models/support.h"

namespace sg {
namespace {

using namespace models_test;

VqVaeConfig tiny() {
  VqVaeConfig c;
  c.height = 8;
  c.width = 12;
  c.channels = 2;
  c.hidden = 8;
  c.residual = 4;
  c.quantizer.dim = 6;
  c.quantizer.codes = 16;
  c.batch = 5;
  c.lr = 3e-3;
  c.window = 4;
  c.quantizer.init = CodebookInit::normal;
  c.quantizer.normal_deviation = 0.1;
  return c;
}

Tensor some_images(const VqVaeConfig& c, std::int64_t n, std::uint32_t seed = 1) {
  // Smooth gratings, so that there is something to learn.
  Tensor t({DType::f32, {n, c.height, c.width, c.channels}});
  HostRandom random(seed, "images");
  std::int64_t i = 0;
  for (std::int64_t image = 0; image < n; ++image) {
    const double fy = random.uniform(), fx = random.uniform(), phase = 6 * random.uniform();
    for (std::int64_t y = 0; y < c.height; ++y)
      for (std::int64_t x = 0; x < c.width; ++x)
        for (std::int64_t ch = 0; ch < c.channels; ++ch)
          t.set(i++, 0.5 + 0.5 * std::sin(fy * static_cast<double>(y) + fx * static_cast<double>(x) + phase +
                                          static_cast<double>(ch)));
  }
  return t;
}

// A model with its training state and the compiled step.
struct Trainer {
  explicit Trainer(const VqVaeConfig& config, std::string_view backend_name = "reference", CompileOptions options = {})
      : model(config),
        training(model),
        step(build_train_step(tape, training)),
        program(compile(tape, step.fetches(), backend(backend_name), options)) {}
  void advance(std::uint32_t batch) {
    program.feed(step.images, some_images(model.config(), model.config().batch, batch));
    program.feed(step.learning_rate, floats({}, {static_cast<float>(model.config().lr)}));
    program.run();
  }
  double metric(std::string_view name) const {
    for (const NamedValue& m : step.metrics)
      if (m.name == name) return program.fetch_scalar(m.value);
    throw std::runtime_error("no metric " + std::string(name));
  }
  VqVae model;
  VqVaeTraining training;
  Tape tape;
  TrainStep step;
  Program program;
};

TEST(VqVae, HasTheParametersOfTheBaselineNetwork) {
  const VqVae model(vqvae_preset("fashion"));
  std::map<std::string, Shape> shapes;
  std::int64_t elements = 0;
  for (const Variable* v : model.parameters()) shapes[v->name()] = v->type().shape, elements += v->value().elements();
  EXPECT_EQ(shapes.size(), 31u);  // 15 layers with weight and bias, and the codebook
  EXPECT_EQ(shapes["encoder.down1.weight"], Shape({4, 4, 1, 64}));
  EXPECT_EQ(shapes["encoder.res2.conv1.weight"], Shape({3, 3, 128, 32}));
  EXPECT_EQ(shapes["encoder.out.weight"], Shape({1, 1, 128, 64}));
  EXPECT_EQ(shapes["quantizer.codebook"], Shape({512, 64}));
  EXPECT_EQ(shapes["decoder.up1.weight"], Shape({4, 4, 64, 128}));
  EXPECT_EQ(shapes["decoder.up2.bias"], Shape({1}));
  EXPECT_EQ(elements, 691393);  // as PyTorch counts for the same network
}

TEST(VqVae, OutputsHaveTheImagesShape) {
  for (const std::string& preset : vqvae_presets()) {
    const VqVaeConfig c = vqvae_preset(preset);
    const VqVae model(c);
    Tape tape;
    const VqVae::Output out = model(tape.input("images", {DType::f32, {2, c.height, c.width, c.channels}}));
    EXPECT_EQ(out.images.shape(), Shape({2, c.height, c.width, c.channels}));
    EXPECT_EQ(out.latents.shape(), Shape({2, c.height / 4, c.width / 4, c.quantizer.dim}));
  }
}

TEST(VqVae, BadConfigurationsAreRefusedByField) {
  const auto refused = [](auto change, const std::vector<std::string>& parts) {
    VqVaeConfig c = tiny();
    change(c);
    expect_error(ErrorKind::usage, parts, [&] { VqVae model(c); });
  };
  refused([](auto& c) { c.width = 30; }, {"8 x 30", "divisible by 4"});
  refused([](auto& c) { c.quantizer.codes = 0; }, {"codes is 0", "at least 1"});
  refused([](auto& c) { c.hidden = 7; }, {"hidden is 7", "even"});
  refused([](auto& c) { c.quantizer.gamma = -1; }, {"gamma is -1"});
  refused([](auto& c) { c.lr = std::nan(""); }, {"lr is nan"});
  expect_error(ErrorKind::usage, {"magic", "ste", "rotation"}, [] { tiny().quantizer.estimator = "magic"; });
  refused([](auto& c) { c.quantizer.quantizer = "magic"; }, {"magic", "vq"});
  refused([](auto& c) { c.optimizer = "magic"; }, {"magic", "adam"});
  expect_error(ErrorKind::usage, {"huge", "fashion", "large"}, [] { vqvae_preset("huge"); });
  const VqVae model(tiny());
  Tape tape;
  const Value wrong = tape.input("images", {DType::f32, {1, 8, 8, 2}});
  expect_error(ErrorKind::shape, {"f32[1,8,8,2]", "[N,8,12,2]"}, [&] { model(wrong); });
}

TEST(VqVaeTraining, EachRunLowersTheLossOnEveryBackend) {
  for (const std::string_view name : backend_names()) {
    for (const CodebookUpdate update : {CodebookUpdate::loss, CodebookUpdate::ema}) {
      VqVaeConfig c = tiny();
      c.quantizer.codebook = update;
      Trainer run(c, name);
      run.advance(1);
      const double first = run.metric("reconstruction");
      for (int i = 0; i < 60; ++i) run.advance(1);
      EXPECT_LT(run.metric("reconstruction"), 0.5 * first) << name << " " << to_string(update);
      EXPECT_EQ(run.training.step().value().item(), 61);
    }
  }
}

TEST(VqVaeTraining, EveryCodebookRuleTrainsAndItsCodesMoveUnlessTheyAreFrozen) {
  for (const CodebookUpdate rule :
       {CodebookUpdate::loss, CodebookUpdate::ema, CodebookUpdate::ema_loss, CodebookUpdate::simvq,
        CodebookUpdate::affine, CodebookUpdate::alternating, CodebookUpdate::frozen})
    for (const bool regularised : {false, true}) {
      VqVaeConfig c = tiny();
      c.quantizer.codebook = rule;
      if (rule == CodebookUpdate::simvq) c.quantizer.init = CodebookInit::uniform;
      if (regularised) {
        c.quantizer.assignment = Assignment::sinkhorn;
        c.quantizer.entropy = c.quantizer.diversity = 0.01;
        c.quantizer.entropy_temperature = 1;
        if (trained_by_loss(rule)) c.quantizer.orthogonal = 0.1;
        if (rule != CodebookUpdate::simvq && rule != CodebookUpdate::frozen) {
          c.quantizer.revival = 4;
          c.quantizer.revival_policy = Revival::lru;
        }
      }
      const std::string what = std::string(to_string(rule)) + (regularised ? ", regularised" : "");
      Trainer run(c, "cpu");
      const auto codes = [&] {
        Tape tape;
        Tensor all({DType::i32, {c.quantizer.codes}});
        for (std::int64_t k = 0; k < c.quantizer.codes; ++k) all.set(k, static_cast<double>(k));
        return numbers(eval(run.model.quantizer().decode(tape.constant(all)), backend("cpu")));
      };
      const std::vector<double> before = codes();
      run.advance(1);
      const double first = run.metric("reconstruction");
      for (int i = 0; i < 60; ++i) run.advance(1);
      EXPECT_LT(run.metric("reconstruction"), 0.8 * first) << what;
      EXPECT_EQ(codes() == before, rule == CodebookUpdate::frozen) << what;
      for (const NamedValue& m : run.step.metrics)
        EXPECT_TRUE(std::isfinite(run.program.fetch_scalar(m.value))) << what << " " << m.name;
    }
}

TEST(VqVaeTraining, EveryEstimatorMetricAndRevivalTrains) {
  for (const char* estimator : {"rotation", "reflection", "g-scalar", "g-diagonal", "g-dense"}) {
    VqVaeConfig c = tiny();
    c.quantizer.estimator = estimator;
    c.quantizer.metric = std::string_view(estimator) == "reflection" ? Metric::cosine : Metric::euclidean;
    c.quantizer.revival = 0.2;
    c.clip = 1;
    c.optimizer = "adamw";
    Trainer run(c);
    run.advance(1);
    const double first = run.metric("reconstruction");
    for (int i = 0; i < 30; ++i) run.advance(1);
    EXPECT_LT(run.metric("reconstruction"), 0.8 * first) << estimator;
    for (const NamedValue& m : run.step.metrics)
      EXPECT_TRUE(std::isfinite(run.program.fetch_scalar(m.value))) << estimator << " " << m.name;
  }
}

TEST(VqVaeTraining, BackendsAgreeOnEveryMetric) {
  VqVaeConfig c = tiny();
  c.quantizer.estimator = "rotation";
  Trainer reference(c);
  for (int i = 1; i <= 3; ++i) reference.advance(static_cast<std::uint32_t>(i));
  for (const std::string_view name : backend_names()) {
    Trainer other(c, name);
    for (int i = 1; i <= 3; ++i) other.advance(static_cast<std::uint32_t>(i));
    for (const NamedValue& m : reference.step.metrics) {
      const double expected = reference.metric(m.name);
      // acos amplifies rounding near 0 degrees, so angles get an absolute tolerance too
      EXPECT_NEAR(other.metric(m.name), expected,
                  1e-4 * std::abs(expected) + (m.name.starts_with("angle") ? 0.05 : 1e-7))
          << name << " " << m.name;
    }
  }
}

TEST(VqVaeTraining, TotalIsTheWeightedSumAndEmaLeavesTheCodebookTermOut) {
  VqVaeConfig c = tiny();
  c.quantizer.beta = 3;
  c.quantizer.gamma = 0.7;
  Trainer by_loss(c);
  by_loss.advance(1);
  EXPECT_NEAR(by_loss.metric("loss"),
              by_loss.metric("reconstruction") + 3 * by_loss.metric("codebook") + 0.7 * by_loss.metric("commitment"),
              1e-6);
  c.quantizer.codebook = CodebookUpdate::ema;
  Trainer by_ema(c);
  by_ema.advance(1);
  EXPECT_NEAR(by_ema.metric("loss"), by_ema.metric("reconstruction") + 0.7 * by_ema.metric("commitment"), 1e-6);
}

// The logged gradient sizes against gradients of the single terms, differentiated afresh.
TEST(VqVaeTraining, GradientSizesAreThoseOfTheSingleTerms) {
  for (const Metric metric : {Metric::euclidean, Metric::cosine}) {
    VqVaeConfig c = tiny();
    c.quantizer.estimator = "rotation";
    c.quantizer.metric = metric;
    Trainer run(c);
    VqVae same(c);
    Tape tape;
    const Value images = tape.input("images", run.step.images.type());
    const VqVae::Output out = same(images);
    const Value rec = gradient(mean_squared_error(out.images, images), out.latents);
    const Value commit = gradient(c.quantizer.gamma * out.quantized.loss("commitment"), out.latents);
    const std::vector<Tensor> g = run_once(tape, {rec, commit}, {{images, some_images(c, c.batch, 1)}});
    run.advance(1);
    const auto size = [](const Tensor& t) {
      double squares = 0;
      for (const double x : numbers(t)) squares += x * x;
      return std::sqrt(squares);
    };
    EXPECT_GT(size(g[0]), 0);
    EXPECT_NEAR(run.metric("grad_reconstruction") / size(g[0]), 1, 1e-4);
    EXPECT_NEAR(run.metric("grad_commitment") / size(g[1]), 1, 1e-4);
  }
}

TEST(VqVaeTraining, LoggingTheGradientOfTheReconstructionDoesNotDifferentiateTheDecoderTwice) {
  Trainer run(tiny());
  int weight_gradients = 0;
  for (const Instr& instr : run.tape.instrs()) weight_gradients += op_def(instr.op).name == "conv2d_weight_grad";
  EXPECT_EQ(weight_gradients, 15);  // one for each convolution and transposed convolution
}

TEST(VqVaeTraining, UsageOfTheWindowCoversUsageOfTheBatch) {
  VqVaeConfig c = tiny();
  Trainer run(c);
  for (std::uint32_t i = 1; i <= 3; ++i) {
    run.advance(i);
    EXPECT_GE(run.metric("usage_window"), run.metric("usage"));
    EXPECT_GE(run.metric("usage"), 1.0 / static_cast<double>(c.quantizer.codes));
    EXPECT_LE(run.metric("perplexity"), run.metric("usage") * static_cast<double>(c.quantizer.codes) + 1e-3);
    EXPECT_LE(run.metric("angle_p5"), run.metric("angle_p95"));
  }
}

// N steps equal N/2, a copy of the checkpoint's variables into a fresh run, and N/2 more: bit for bit.
TEST(VqVaeTraining, ResumeIsExact) {
  for (const std::string_view name : backend_names()) {
    for (const CodebookUpdate update : {CodebookUpdate::loss, CodebookUpdate::ema}) {
      VqVaeConfig c = tiny();
      c.quantizer.codebook = update;
      c.quantizer.revival = 0.5;  // uses the random state
      Trainer whole(c, name), first(c, name);
      for (std::uint32_t i = 1; i <= 6; ++i) whole.advance(i);
      for (std::uint32_t i = 1; i <= 3; ++i) first.advance(i);
      VqVaeConfig fresh = c;
      fresh.seed = 99;  // nothing of its own initial state may survive
      Trainer second(fresh, name);
      const std::vector<Variable*> from = first.training.checkpoint(), to = second.training.checkpoint();
      ASSERT_EQ(from.size(), to.size());
      for (std::size_t i = 0; i < from.size(); ++i) {
        ASSERT_EQ(from[i]->name(), to[i]->name());
        to[i]->set(from[i]->value());
      }
      for (std::uint32_t i = 4; i <= 6; ++i) second.advance(i);
      const std::vector<Variable*> expected = whole.training.checkpoint();
      for (std::size_t i = 0; i < to.size(); ++i)
        expect_same_bits(to[i]->value(), expected[i]->value(), std::string(name) + " " + to[i]->name());
      for (const NamedValue& m : whole.step.metrics) EXPECT_EQ(second.metric(m.name), whole.metric(m.name)) << m.name;
    }
  }
}

// A checkpoint holds all that the step's tape assigns.
TEST(VqVaeTraining, EveryAssignedVariableIsInTheCheckpoint) {
  VqVaeConfig c = tiny();
  c.quantizer.codebook = CodebookUpdate::ema;
  c.quantizer.revival = 0.5;
  Trainer run(c);
  const std::vector<Variable*> saved = run.training.checkpoint();
  int assigned = 0;
  for (const Instr& instr : run.tape.instrs()) {
    if (op_def(instr.op).role != Role::assign) continue;
    ++assigned;
    Variable* v = run.tape.variable_of(instr);
    EXPECT_NE(std::find(saved.begin(), saved.end(), v), saved.end()) << v->name();
  }
  EXPECT_EQ(static_cast<std::size_t>(assigned), saved.size());
}

TEST(VqVaeEvaluation, WeightsMakeAPartialBatchExact) {
  const VqVaeConfig c = tiny();
  const VqVae model(c);
  const Tensor images = some_images(c, 4, 3);
  const auto evaluate = [&](const std::vector<float>& weights) {
    Tape tape;
    const Evaluation e = build_evaluation(tape, model, 4);
    return run_once(tape, e.fetches(), {{e.images, images}, {e.weights, floats({4}, weights)}});
  };
  const std::vector<Tensor> all = evaluate({1, 1, 1, 1}), head = evaluate({1, 1, 1, 0}), tail = evaluate({0, 0, 0, 1});
  for (const std::size_t i : {0u, 1u, 2u})
    EXPECT_NEAR(head[i].item() + tail[i].item(), all[i].item(), 1e-5 * all[i].item());
  double counted = 0;
  for (const double n : numbers(head[3])) counted += n;
  EXPECT_EQ(counted, 3 * c.latent_height() * c.latent_width());
  double error = 0;
  for (std::int64_t i = 0; i < images.elements(); ++i) error += std::pow(images.at(i) - all[4].at(i), 2);
  EXPECT_NEAR(all[0].item(), error, 1e-4 * error);
}

TEST(VqVaeTokens, DecodingAndReEncodingGivesTheSameTokensAndTheSameImages) {
  for (const Metric metric : {Metric::euclidean, Metric::cosine}) {
    VqVaeConfig c = tiny();
    c.quantizer.metric = metric;
    const VqVae model(c);
    const Tensor images = some_images(c, 3);
    Tape encoder, decoder, whole;
    const Encoding e = build_encode(encoder, model, 3);
    const Tensor tokens = run_once(encoder, {e.tokens}, {{e.images, images}})[0];
    EXPECT_EQ(tokens.shape(), Shape({3, 2, 3}));
    const Decoding d = build_decode(decoder, model, 3);
    const std::vector<Tensor> decoded = run_once(decoder, {d.images, d.tokens_again}, {{d.tokens, tokens}});
    expect_same_bits(decoded[1], tokens);
    const Evaluation v = build_evaluation(whole, model, 3);
    const Tensor direct =
        run_once(whole, {v.reconstructions}, {{v.images, images}, {v.weights, floats({3}, {1, 1, 1})}})[0];
    expect_near(decoded[0], numbers(direct), 1e-5);
  }
}

TEST(VqVaeTraining, KMeansInitialisationFitsTheFirstEncoderOutputs) {
  VqVaeConfig c = tiny();
  c.quantizer.normal_deviation = 1;
  VqVae plain(c);
  c.quantizer.init = CodebookInit::kmeans;
  VqVae fitted(c);
  const Tensor images = some_images(c, 5);
  initialize_codebook(fitted, images, backend("reference"));
  initialize_codebook(plain, images, backend("reference"));  // does nothing: its init is another
  const auto relative_error = [&](const VqVae& model) {
    Tape tape;
    const Evaluation e = build_evaluation(tape, model, 5);
    return run_once(tape, {e.relative_error}, {{e.images, images}, {e.weights, floats({5}, {1, 1, 1, 1, 1})}})[0]
               .item() /
           30;
  };
  EXPECT_LT(relative_error(fitted), 0.1);
  EXPECT_GT(relative_error(plain), 1);
}

}  // namespace
}  // namespace sg
