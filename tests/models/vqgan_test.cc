// VQ-GAN: the network, the two players of a step, who trains whom, the adaptive weight, exact resume.
#include <algorithm>
#include <map>

#include "backends/backends.h"
#include "core/gradcheck.h"
#include "ops/gradient.h"
#include "ops/reduce.h"
#include "tests/models/vqgan_support.h"

namespace sg {
namespace {

using namespace vqgan_test;

TEST(VqGan, TheLargePresetHasTheParametersOfTheReleasedNetwork) {
  const VqGanConfig c = vqgan_preset("f16");
  const VqGan model(c);
  std::int64_t encoder = 0, decoder = 0;
  for (const Variable* v : model.parameters()) {
    if (v->name().starts_with("encoder.") && !v->name().starts_with("encoder.quant_conv"))
      encoder += v->value().elements();
    if (v->name().starts_with("decoder.") && !v->name().starts_with("decoder.post_quant_conv"))
      decoder += v->value().elements();
  }
  // As tools/goldens/vqgan.py counts in PyTorch at this size.
  EXPECT_EQ(encoder, 29298176);
  EXPECT_EQ(decoder, 42449795);
  EXPECT_EQ(c.latent_height(), 16);
  Module root(1);
  const PatchDiscriminator discriminator(root, "discriminator", 3, c.discriminator);
  std::int64_t judge = 0;
  for (const Variable* v : discriminator.parameters()) judge += v->value().elements();
  EXPECT_EQ(judge, 2765633);  // 64-128-256-512-1, 4x4, with two biases and three norms
}

TEST(VqGan, ImagesLatentsAndTokensHaveTheirShapes) {
  for (const char* preset : {"fashion", "small"}) {
    const VqGan model(vqgan_preset(preset));
    Tape tape;
    const VqGan::Output out = model(tape.input("images", {DType::f32, {2, 28, 28, 1}}));
    EXPECT_EQ(out.images.shape(), Shape({2, 28, 28, 1}));
    EXPECT_EQ(out.latents.shape(), Shape({2, 7, 7, 64}));
    EXPECT_EQ(model.token_shape(3), Shape({3, 7, 7}));
  }
}

TEST(VqGan, GroupsAreTheLargestDivisorAndAPrimeWidthIsRefused) {
  EXPECT_EQ(group_count(128, 32), 32);
  EXPECT_EQ(group_count(48, 32), 24);
  EXPECT_EQ(group_count(6, 32), 6);
  EXPECT_EQ(group_count(37, 1), 1);
  expect_error(ErrorKind::usage, {"37 channels", "2 to 32"}, [] { group_count(37, 32); });
  VqGanConfig c = tiny();
  c.ch = 5;
  c.ch_mult = {1, 1};
  expect_error(ErrorKind::usage, {"5 channels"}, [&] { VqGan model(c); });
}

TEST(VqGan, BadConfigurationsAreRefusedByField) {
  const auto refused = [](auto change, const std::vector<std::string>& parts) {
    VqGanConfig c = tiny();
    change(c);
    expect_error(ErrorKind::usage, parts, [&] { VqGan model(c); });
  };
  refused([](auto& c) { c.width = 13; }, {"16 x 13", "divisible by 2"});
  refused([](auto& c) { c.ch_mult = {}; }, {"ch_mult"});
  refused([](auto& c) { c.ch_mult = {1, 0}; }, {"ch_mult is 0"});
  refused([](auto& c) { c.res_blocks = 0; }, {"res_blocks is 0"});
  refused([](auto& c) { c.disc_warmup = 5; }, {"disc_warmup", "step 4"});
  refused([](auto& c) { c.disc_factor = 0; }, {"disc_factor", "disc_start after"});
  refused([](auto& c) { c.discriminator.layers = 3; }, {"16 x 12", "fewer layers"});
  refused([](auto& c) { c.discriminator.layers = 99; }, {"fewer layers"});
  refused([](auto& c) { c.lr = std::nan(""); }, {"lr is nan"});
  refused([](auto& c) { c.quantizer.quantizer = "magic"; }, {"magic", "vq"});
  expect_error(ErrorKind::usage, {"huge", "fashion", "f16"}, [] { vqgan_preset("huge"); });
  const VqGan model(tiny());
  Tape tape;
  const Value wrong = tape.input("images", {DType::f32, {1, 8, 8, 2}});
  expect_error(ErrorKind::shape, {"f32[1,8,8,2]", "[N,16,12,2]"}, [&] { model(wrong); });
}

TEST(VqGanTraining, LowersTheReconstructionWithEveryQuantizerAndBackend) {
  std::vector<std::pair<std::string, std::string>> runs;
  for (const auto name : backend_names()) runs.emplace_back(name, "vq");
  for (const char* quantizer : {"cosine", "fsq", "lfq", "residual"}) runs.emplace_back("cpu", quantizer);
  for (const auto& [backend_name, quantizer] : runs) {
    SCOPED_TRACE(backend_name + ", " + quantizer);
    VqGanConfig c = tiny();
    c.quantizer.quantizer = quantizer;
    c.quantizer.codes = quantizer == "vq" ? 12 : 256;
    c.disc_start = 20;
    Trainer run(c, backend_name);
    run.advance(1);
    const double first = run.metric("reconstruction");
    for (int i = 0; i < 40; ++i) run.advance(1);
    EXPECT_LT(run.metric("reconstruction"), 0.8 * first);
    EXPECT_EQ(run.training.step().value().item(), 41);
    for (const NamedValue& m : run.step.metrics)
      EXPECT_TRUE(std::isfinite(run.program.fetch_scalar(m.value))) << m.name;
  }
}

TEST(VqGanTraining, TheFactorsFollowTheStepCounter) {
  Trainer run(tiny());  // D from step 2, G from step 4
  std::vector<double> generator, discriminator;
  for (std::uint32_t i = 0; i < 6; ++i) {
    std::map<std::string, Tensor> before;
    for (const Variable* v : run.training.discriminator().parameters()) before.emplace(v->name(), v->value());
    run.advance(i);
    generator.push_back(run.metric("disc_factor"));
    discriminator.push_back(run.metric("disc_training"));
    EXPECT_EQ(run.metric("grad_discriminator") > 0, i >= 2) << i;
    for (const Variable* v : run.training.discriminator().parameters()) {
      // While every logit lies between -1 and 1, the hinges' gradients in the last bias cancel.
      if (v->name() == "discriminator.conv3_bias") continue;
      EXPECT_EQ(numbers(v->value()) == numbers(before.at(v->name())), i < 2) << i << " " << v->name();
    }
    EXPECT_NEAR(run.metric("loss"),
                run.metric("nll") + generator.back() * run.metric("lambda") * run.metric("adversarial") +
                    0.25 * run.metric("codebook") + run.metric("commitment"),
                1e-5);
  }
  EXPECT_EQ(generator, (std::vector<double>{0, 0, 0, 0, 1, 1}));
  EXPECT_EQ(discriminator, (std::vector<double>{0, 0, 1, 1, 1, 1}));
}

// What the step computes piecewise is the gradient of its total, and lambda's two gradients are those of the two terms.
TEST(VqGanTraining, TheUpdateIsTheGradientOfTheTotalAndLambdaThatOfItsTerms) {
  VqGanConfig c = tiny();
  c.disc_start = c.disc_warmup = 0;
  for (const char* estimator : {"ste", "rotation"}) {
    c.quantizer.estimator = estimator;
    Trainer run(c);
    VqGan same(c);
    VqGanTraining training(same, small_distance(c.channels));
    Tape tape;
    const VqGanStep step = build_train_step(tape, training);
    std::vector<Value> wrt;
    for (Variable* p : same.parameters()) wrt.push_back(tape.read(*p));
    std::vector<Value> fetches{global_norm(gradients(step.total, wrt))};
    const Value last = tape.read(same.decoder().last_weight());
    fetches.push_back(norm(gradient(step.metric("nll"), last), {}));
    fetches.push_back(norm(gradient(step.metric("adversarial"), last), {}));
    const std::vector<Tensor> expected = run_once(
        tape, fetches,
        {{step.images, gratings(c, c.batch, 1)}, {step.learning_rate, floats({}, {static_cast<float>(c.lr)})}});
    run.advance(1);
    EXPECT_GT(expected[2].item(), 0);
    EXPECT_NEAR(run.metric("grad_norm") / expected[0].item(), 1, 1e-5);
    EXPECT_NEAR(run.metric("grad_nll_last") / expected[1].item(), 1, 1e-5);
    EXPECT_NEAR(run.metric("grad_adversarial_last") / expected[2].item(), 1, 1e-5);
    EXPECT_NEAR(run.metric("lambda"), c.disc_weight * expected[1].item() / (expected[2].item() + 1e-4), 1e-5);
  }
}

// lambda in a loss is a number: the composition passes gradcheck with its stop frozen, and its own derivative is 0.
TEST(VqGanTraining, TheAdaptiveWeightIsStoppedAndClamped) {
  const auto f = [](Tape&, std::span<const Value> in) {
    const Value nll = sum(square(in[0] * in[1])), g = sum(tanh(in[0]) * in[2]);
    const Value lambda = adaptive_weight(gradient(nll, in[0]), gradient(g, in[0]));
    return nll + lambda * g;
  };
  const std::vector<Tensor> inputs{floats({3}, {0.3f, -0.7f, 0.9f}), floats({3}, {1.1f, 0.4f, -0.8f}),
                                   floats({3}, {0.2f, 0.5f, -0.6f})};
  const GradcheckResult frozen = gradcheck(f, inputs, backend("reference"));
  EXPECT_TRUE(frozen.ok) << frozen.message;
  GradcheckOptions open;
  open.freeze = false;
  EXPECT_FALSE(gradcheck(f, inputs, backend("reference"), open).ok);  // the stop is what makes the difference
  Tape tape;
  const Value a = tape.constant(floats({2}, {3, 4})), b = tape.constant(floats({2}, {0, 1}));
  const Value zero = tape.constant(floats({2}, {0, 0})), huge = tape.constant(floats({2}, {1e3f, 0}));
  const std::vector<Tensor> out =
      run_once(tape, {adaptive_weight(a, b), adaptive_weight(huge, zero), adaptive_weight(zero, a)});
  EXPECT_NEAR(out[0].item(), 5 / (1 + 1e-4), 1e-5);
  EXPECT_EQ(out[1].item(), 1e4);
  EXPECT_EQ(out[2].item(), 0);
}

TEST(VqGanTraining, NoTermTrainsTheOtherPlayerAndTheAuditFindsNoProblem) {
  for (const char* quantizer : {"vq", "fsq", "lfq", "residual", "cosine"})
    for (const char* estimator : {"ste", "rotation"}) {
      SCOPED_TRACE(std::string(quantizer) + " " + estimator);
      VqGanConfig c = tiny();
      c.quantizer.quantizer = quantizer;
      c.quantizer.estimator = estimator;
      c.quantizer.codes = 256;
      VqGan model(c);
      VqGanTraining training(model, small_distance(c.channels));
      Tape tape;
      const VqGanStep step = build_train_step(tape, training);
      const Audit audit = audit_step(tape, step, training);
      for (const std::string& problem : audit.problems()) ADD_FAILURE() << problem;
      for (const std::string& violation : violations(audit, flow_contract(step, training))) ADD_FAILURE() << violation;
      // The contract is one that a step without the stops breaks.
      const Value logits = training.discriminator()(model(step.images).output);
      const AuditTerm leaking[] = {{"adversarial", -mean(logits)}};
      const FlowExpectation wanted[] = {{"adversarial", "discriminator.*", FlowIs::not_live}};
      EXPECT_FALSE(violations(sg::audit(tape, leaking, training.parameters()), wanted).empty());
    }
}

TEST(VqGanTraining, TheDiscriminatorsThirdPassIsTheFirstOnes) {
  Trainer run(tiny());
  const auto convolutions = [](const Tape& tape) {
    return std::count_if(tape.instrs().begin(), tape.instrs().end(),
                         [](const Instr& i) { return op_def(i.op).name == "conv2d"; });
  };
  // The four convolutions of the discriminator; those of the perceptual net are on images that nothing else sees.
  EXPECT_EQ(convolutions(run.tape) - convolutions(run.program.compiled_tape()), 4);
}

TEST(VqGanTraining, ResumeIsExact) {
  for (const std::string_view name : backend_names()) {
    VqGanConfig c = tiny();
    c.quantizer.revival = 0.5;  // uses the random state
    Trainer whole(c, name), first(c, name);
    for (std::uint32_t i = 1; i <= 6; ++i) whole.advance(i);
    for (std::uint32_t i = 1; i <= 3; ++i) first.advance(i);  // before the generator sees the discriminator
    VqGanConfig fresh = c;
    fresh.seed = 99;
    Trainer second(fresh, name);
    const std::vector<Variable*> from = first.training.checkpoint(), to = second.training.checkpoint();
    ASSERT_EQ(from.size(), to.size());
    std::vector<std::string> names;
    for (std::size_t i = 0; i < from.size(); ++i) {
      ASSERT_EQ(from[i]->name(), to[i]->name());
      names.push_back(from[i]->name());
      to[i]->set(from[i]->value());
    }
    std::sort(names.begin(), names.end());
    EXPECT_EQ(std::unique(names.begin(), names.end()), names.end());  // a checkpoint's tensors are found by name
    for (std::uint32_t i = 4; i <= 6; ++i) second.advance(i);
    const std::vector<Variable*> expected = whole.training.checkpoint();
    for (std::size_t i = 0; i < to.size(); ++i)
      expect_same_bits(to[i]->value(), expected[i]->value(), std::string(name) + " " + to[i]->name());
    for (const Instr& instr : whole.tape.instrs())
      if (op_def(instr.op).role == Role::assign) {
        EXPECT_NE(std::find(expected.begin(), expected.end(), whole.tape.variable_of(instr)), expected.end());
      }
  }
}

TEST(VqGanTokens, DecodingAndReEncodingGivesTheSameTokensAndTheSameImages) {
  const VqGanConfig c = tiny();
  const VqGan model(c);
  const Tensor images = gratings(c, 3, 1);
  Tape encoder, decoder, whole;
  const Encoding e = build_encode(encoder, model, 3);
  const Tensor tokens = run_once(encoder, {e.tokens}, {{e.images, images}})[0];
  EXPECT_EQ(tokens.shape(), Shape({3, 8, 6}));
  const Decoding d = build_decode(decoder, model, 3);
  const std::vector<Tensor> decoded = run_once(decoder, {d.images, d.tokens_again}, {{d.tokens, tokens}});
  expect_same_bits(decoded[1], tokens);
  const Evaluation v = build_evaluation(whole, model, 3);
  const std::vector<Tensor> direct =
      run_once(whole, {v.reconstructions, v.squared_error}, {{v.images, images}, {v.weights, floats({3}, {1, 1, 1})}});
  models_test::expect_near(decoded[0], numbers(direct[0]), 1e-5);
  double error = 0;
  for (std::int64_t i = 0; i < images.elements(); ++i) error += std::pow(images.at(i) - direct[0].at(i), 2);
  EXPECT_NEAR(direct[1].item(), error, 1e-4 * error);
}

TEST(VqGanTraining, KMeansInitialisationFitsTheFirstEncoderOutputs) {
  VqGanConfig c = tiny();
  VqGan plain(c);
  c.quantizer.init = CodebookInit::kmeans;
  VqGan fitted(c);
  const Tensor images = gratings(c, 5, 1);
  initialize_codebook(fitted, images, backend("reference"));
  const auto error = [&](const VqGan& model) {
    Tape tape;
    const Evaluation e = build_evaluation(tape, model, 5);
    return run_once(tape, {e.quantization_error}, {{e.images, images}, {e.weights, floats({5}, {1, 1, 1, 1, 1})}})[0]
        .item();
  };
  EXPECT_LT(error(fitted), 0.5 * error(plain));
}

}  // namespace
}  // namespace sg
