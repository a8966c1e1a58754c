// Memory of every shipped VQ-VAE: the arena against the largest live set; recomputation with every quantizer.
#include <gtest/gtest.h>

#include "backends/backends.h"
#include "core/program.h"
#include "models/quantizers/quantizer.h"
#include "models/vqvae_training.h"
#include "tests/conformance/cases.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

VqVaeConfig config_for(const std::string& quantizer) {
  VqVaeConfig c;
  c.height = c.width = 16;
  c.hidden = 16, c.residual = 8, c.batch = 32, c.window = 3;
  c.quantizer.codes = 256, c.quantizer.dim = 8;
  c.quantizer.quantizer = quantizer;
  return c;
}

void expect_near_bound(const ProgramStats& stats, const std::string& what) {
  EXPECT_GE(stats.arena_bytes, stats.lower_bound_bytes) << what;
  EXPECT_LE(static_cast<double>(stats.arena_bytes), 1.15 * static_cast<double>(stats.lower_bound_bytes)) << what;
}

TEST(Arena, IsWithin15PerCentOfTheLargestLiveSet) {
  for (const std::string& name : quantizer_names())
    for (const bool fuse : {true, false}) {
      VqVae model(config_for(name));
      VqVaeTraining training(model);
      Tape tape, evaluation, encode, decode;
      const TrainStep step = build_train_step(tape, training);
      const CompileOptions options{.fuse = fuse};
      expect_near_bound(compile(tape, step.fetches(), cpu_backend(), options).stats(), name + " training");
      const Evaluation e = build_evaluation(evaluation, model, 32);
      expect_near_bound(compile(evaluation, e.fetches(), cpu_backend(), options).stats(), name + " evaluation");
      const Encoding tokens = build_encode(encode, model, 32);
      expect_near_bound(compile(encode, {tokens.tokens}, cpu_backend(), options).stats(), name + " encode");
      const Decoding images = build_decode(decode, model, 32);
      expect_near_bound(compile(decode, {images.images}, cpu_backend(), options).stats(), name + " decode");
    }
}

// Three steps of training with and without: every variable, and every metric.
TEST(Arena, RecomputationChangesNoBitWithAnyQuantizer) {
  for (const std::string& name : quantizer_names()) {
    SCOPED_TRACE(name);
    struct Run {
      explicit Run(const std::string& name, RecomputeOptions::Mode mode)
          : model(config_for(name)), training(model), step(build_train_step(tape, training)) {
        CompileOptions options;
        options.recompute.mode = mode;
        program.emplace(compile(tape, step.fetches(), cpu_backend(), options));
      }
      VqVae model;
      VqVaeTraining training;
      Tape tape;
      TrainStep step;
      std::optional<Program> program;
    } plain(name, RecomputeOptions::Mode::none), again(name, RecomputeOptions::Mode::scopes);
    EXPECT_LT(again.program->stats().lower_bound_bytes, plain.program->stats().lower_bound_bytes)
        << again.program->explain();
    Rng rng(1);
    const Tensor images = uniform_reals({32, 16, 16, 1}, 0, 1)(rng);
    for (Run* run : {&plain, &again}) initialize_codebook(run->model, images, cpu_backend());
    for (int i = 0; i < 3; ++i)
      for (Run* run : {&plain, &again}) {
        run->program->feed(run->step.images, images);
        run->program->feed(run->step.learning_rate, Tensor::full({DType::f32, {}}, 1e-3));
        run->program->run();
      }
    const auto a = plain.training.checkpoint(), b = again.training.checkpoint();
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(same_bits(a[i]->value(), b[i]->value())) << a[i]->name();
    for (std::size_t i = 0; i < plain.step.metrics.size(); ++i)
      EXPECT_TRUE(same_bits(plain.program->fetch(plain.step.metrics[i].value),
                            again.program->fetch(again.step.metrics[i].value)))
          << plain.step.metrics[i].name;
  }
}

}  // namespace
}  // namespace sg::test
