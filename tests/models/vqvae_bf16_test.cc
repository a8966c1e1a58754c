// The VQ-VAE with activations in bf16: what stays f32, that it trains as in f32, and that training and evaluation see
// the same codes.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <set>

#include "backends/backends.h"
#include "core/program.h"
#include "models/vqvae_training.h"
#include "ops/op_ids.h"
#include "tests/conformance/cases.h"
#include "tests/support/emulated_bf16.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

VqVaeConfig small(DType precision) {
  VqVaeConfig c;
  c.height = c.width = 16;
  c.hidden = 32;
  c.residual = 16;
  c.quantizer.codes = 32;
  c.quantizer.dim = 16;
  c.batch = 16;
  c.lr = 1e-3;
  c.quantizer.init = CodebookInit::kmeans;
  c.quantizer.codebook = CodebookUpdate::ema;
  c.precision = precision;
  return c;
}

// Smooth pictures: a wave of a random direction and phase.
Tensor pictures(const VqVaeConfig& c, std::uint64_t seed) {
  Rng rng(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  Tensor t({DType::f32, {c.batch, c.height, c.width, c.channels}});
  std::int64_t at = 0;
  for (std::int64_t n = 0; n < c.batch; ++n) {
    const double u = 0.3 * uniform(rng), v = 0.3 * uniform(rng), phase = 3 * uniform(rng);
    for (std::int64_t i = 0; i < c.height; ++i)
      for (std::int64_t j = 0; j < c.width; ++j)
        t.set(at++, 0.5 + 0.5 * std::sin(u * static_cast<double>(i) + v * static_cast<double>(j) + phase));
  }
  return t;
}

TEST(VqVaeBf16, OnlyTheNetworksAreBf16) {
  VqVae model(small(DType::bf16));
  VqVaeTraining training(model);
  Tape tape;
  const TrainStep step = build_train_step(tape, training);
  EXPECT_EQ(step.quantized.z.dtype(), DType::f32);
  EXPECT_EQ(step.quantized.z_q.dtype(), DType::f32);
  EXPECT_EQ(step.reconstructions.dtype(), DType::f32);
  EXPECT_EQ(step.total.dtype(), DType::f32);
  for (const Variable* v : training.checkpoint()) EXPECT_NE(v->type().dtype, DType::bf16) << v->name();
  for (const Instr& instr : tape.instrs()) {
    const std::string scope = tape.scope_path(instr.scope);
    for (const std::int32_t v : instr.outputs) {
      if (scope.starts_with("quantizer")) {
        EXPECT_NE(tape.type(v).dtype, DType::bf16) << tape.describe(v);
      }
      if (instr.op == OpId::conv2d || instr.op == OpId::conv2d_transpose) {
        EXPECT_EQ(tape.type(v).dtype, DType::bf16) << tape.describe(v);
      }
    }
  }
}

TEST(VqVaeBf16, LossFollowsThatOfF32) {
  const EmulatedBf16 emulated;
  constexpr int kSteps = 120;
  double last[2];
  for (const DType precision : {DType::f32, DType::bf16}) {
    VqVae model(small(precision));
    initialize_codebook(model, pictures(model.config(), 1000), cpu_backend());
    VqVaeTraining training(model);
    Tape tape;
    const TrainStep step = build_train_step(tape, training);
    Program program = compile(tape, {step.reconstruction}, cpu_backend());
    program.feed(step.learning_rate, Tensor::full({DType::f32, {}}, model.config().lr));
    double mean = 0;
    for (int i = 0; i < kSteps; ++i) {
      program.feed(step.images, pictures(model.config(), static_cast<std::uint64_t>(i)));
      program.run();
      const double loss = program.fetch_scalar(step.reconstruction);
      if (i == 0) {
        EXPECT_GT(loss, 0.1);
      }
      if (i >= kSteps - 50) mean += loss / 50;
    }
    last[precision == DType::bf16] = mean;
  }
  std::printf("    mean reconstruction error of the last 50 of %d steps: f32 %.5f, bf16 %.5f\n", kSteps, last[0],
              last[1]);
  EXPECT_LT(last[0], 0.08);
  EXPECT_NEAR(last[1], last[0], 0.05 * last[0]);
}

// The indices in the program of a training step, in one that evaluates and in one that encodes: the forward pass is
// rounded value by value, so it does not matter what else a program computes.
TEST(VqVaeBf16, TrainingAndEvaluationSeeTheSameCodes) {
  const EmulatedBf16 emulated;
  VqVae model(small(DType::bf16));
  initialize_codebook(model, pictures(model.config(), 1000), cpu_backend());
  VqVaeTraining training(model);
  Tape tape;
  const TrainStep step = build_train_step(tape, training);
  Program program = compile(tape, {step.quantized.indices}, cpu_backend());
  program.feed(step.learning_rate, Tensor::full({DType::f32, {}}, model.config().lr));
  std::set<double> used;
  for (int i = 0; i < 8; ++i) {
    const Tensor images = pictures(model.config(), static_cast<std::uint64_t>(i));
    Tape encode_tape;
    const Encoding encoding = build_encode(encode_tape, model, model.config().batch);
    Program encode = compile(encode_tape, {encoding.tokens}, cpu_backend());
    encode.feed(encoding.images, images);
    encode.run();
    const Tensor before = encode.fetch(encoding.tokens);
    program.feed(step.images, images);
    program.run();
    const Tensor seen = program.fetch(step.quantized.indices);
    ASSERT_EQ(seen.elements(), before.elements());
    for (std::int64_t k = 0; k < seen.elements(); ++k) {
      EXPECT_EQ(seen.at(k), before.at(k));
      used.insert(seen.at(k));
    }
  }
  EXPECT_GT(used.size(), 4u);
}

}  // namespace
}  // namespace sg::test
