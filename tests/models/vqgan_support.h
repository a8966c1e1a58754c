// Shared by the tests of VQ-GAN: a small model, pictures, a perceptual net, and a compiled training step.
#pragma once
#include <cmath>

#include "models/init.h"
#include "models/vqgan_training.h"
#include "ops/conv.h"
#include "tests/models/support.h"

namespace sg::vqgan_test {

using namespace models_test;

inline VqGanConfig tiny() {
  VqGanConfig c;
  c.height = 16;
  c.width = 12;
  c.channels = 2;
  c.ch = 8;
  c.ch_mult = {1, 2};
  c.groups = 4;
  c.latent = 6;
  c.quantizer.dim = 5;
  c.quantizer.codes = 12;
  c.quantizer.init = CodebookInit::normal;
  c.quantizer.normal_deviation = 0.3;
  c.discriminator = {.ndf = 6, .layers = 2};
  c.disc_start = 4;
  c.disc_warmup = 2;
  c.batch = 4;
  c.window = 4;
  c.lr = 2e-3;
  return c;
}

// Smooth gratings in [0,1], so that there is something to learn.
inline Tensor gratings(const VqGanConfig& c, std::int64_t n, std::uint32_t seed) {
  Tensor t({DType::f32, {n, c.height, c.width, c.channels}});
  HostRandom random(seed, "images");
  std::int64_t i = 0;
  for (std::int64_t image = 0; image < n; ++image) {
    const double fy = random.uniform(), fx = random.uniform(), phase = 6 * random.uniform();
    for (std::int64_t y = 0; y < c.height; ++y)
      for (std::int64_t x = 0; x < c.width; ++x)
        for (std::int64_t ch = 0; ch < c.channels; ++ch)
          t.set(i++, 0.5 + 0.4 * std::sin(fy * static_cast<double>(y) + fx * static_cast<double>(x) + phase +
                                          static_cast<double>(ch)));
  }
  return t;
}

// One convolution with fixed weights.
inline PerceptualDistance small_distance(std::int64_t channels) {
  PerceptualDistance d;
  d.description = "a test's fixed convolution";
  d.features = [w = normal_init({3, 3, channels, 6}, 0, 0.5, 3, "features")](Value images) {
    return std::vector<Value>{relu(conv2d(images, images.tape->constant(w), ConvOptions::square(2, 1)))};
  };
  return d;
}

// A model with its training state and the compiled step.
struct Trainer {
  explicit Trainer(const VqGanConfig& config, std::string_view backend_name = "reference")
      : model(config),
        training(model, small_distance(config.channels)),
        step(build_train_step(tape, training)),
        program(compile(tape, step.fetches(), backend(backend_name))) {}
  void advance(std::uint32_t batch) {
    program.feed(step.images, gratings(model.config(), model.config().batch, batch));
    program.feed(step.learning_rate, floats({}, {static_cast<float>(model.config().lr)}));
    program.run();
  }
  double metric(std::string_view name) const { return program.fetch_scalar(step.metric(name)); }
  VqGan model;
  VqGanTraining training;
  Tape tape;
  VqGanStep step;
  Program program;
};

}  // namespace sg::vqgan_test
