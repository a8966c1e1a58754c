// The whole training step of the baseline VQ-VAE as the cpu backend compiles it.
#include <gtest/gtest.h>

#include "backends/backends.h"
#include "core/program.h"
#include "models/init.h"
#include "models/vqvae_training.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

Tensor images_of(const VqVaeConfig& c) {
  Tensor t({DType::f32, {c.batch, c.height, c.width, c.channels}});
  HostRandom random(5, "images");
  for (std::int64_t i = 0; i < t.elements(); ++i) t.set(i, random.uniform());
  return t;
}

struct Step {
  explicit Step(const VqVaeConfig& config)
      : model(config),
        training(model),
        step(build_train_step(tape, training)),
        program(compile(tape, step.fetches(), cpu_backend())) {
    program.feed(step.learning_rate, Tensor::full({DType::f32, {}}, config.lr));
    program.feed(step.images, images_of(config));
  }
  VqVae model;
  VqVaeTraining training;
  Tape tape;
  TrainStep step;
  Program program;
};

TEST(VqVaeStep, MovesNoActivationToAnotherLayout) {
  const Step baseline{VqVaeConfig{}};
  EXPECT_EQ(baseline.program.stats().reorders, 0u) << baseline.program.explain();
}

TEST(VqVaeStep, ThreadsDoNotChangeItsBits) {
  const int before = threads();
  for (const char* estimator : {"ste", "rotation"}) {
    SCOPED_TRACE(estimator);
    std::vector<Tensor> first;
    for (const int n : {1, 2, 3, 8}) {
      set_threads(n);
      VqVaeConfig config;
      config.quantizer.estimator = estimator;
      Step run(config);
      for (int i = 0; i < 3; ++i) run.program.run();
      std::size_t k = 0;
      for (const Variable* v : run.training.checkpoint()) {
        if (n == 1)
          first.push_back(v->value());
        else
          EXPECT_TRUE(same_bits(v->value(), first[k++])) << v->name() << " with " << n << " threads";
      }
    }
  }
  set_threads(before);
}

}  // namespace
}  // namespace sg::test
