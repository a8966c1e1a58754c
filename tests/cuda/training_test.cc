// Training on the cuda backend: the same steps as on the CPU, replayed through a captured graph, nothing allocated and
// nothing waited for inside a step, and a checkpoint that either backend continues.
#include <cmath>
#include <map>

#include "core/safetensors.h"
#include "models/init.h"
#include "models/vqvae_training.h"
#include "tests/cuda/support.h"
#include "tests/cuda_emulator/emulated_driver.h"
#include "tests/tools/temp_folder.h"

namespace sg::test {
namespace {

using CudaTraining = CudaTest;

VqVaeConfig small(const std::string& estimator) {
  VqVaeConfig c;
  c.height = c.width = 8;
  c.channels = 1;
  c.hidden = 16;
  c.residual = 8;
  c.quantizer.dim = 8;
  c.quantizer.codes = 32;
  c.quantizer.estimator = estimator;
  c.quantizer.init = CodebookInit::normal;
  c.quantizer.normal_deviation = 0.1;
  c.batch = 4;
  c.lr = 1e-3;
  c.window = 4;
  return c;
}

Tensor batch_of(const VqVaeConfig& c, std::uint32_t number) {
  Tensor t({DType::f32, {c.batch, c.height, c.width, c.channels}});
  HostRandom random(number, "images");
  std::int64_t i = 0;
  for (std::int64_t image = 0; image < c.batch; ++image) {
    const double fy = random.uniform(), fx = random.uniform(), phase = 6 * random.uniform();
    for (std::int64_t y = 0; y < c.height; ++y)
      for (std::int64_t x = 0; x < c.width; ++x)
        t.set(i++, 0.5 + 0.5 * std::sin(fy * static_cast<double>(y) + fx * static_cast<double>(x) + phase));
  }
  return t;
}

// A model with its training state and the compiled step.
struct Trainer {
  Trainer(const VqVaeConfig& config, std::string_view backend_name, CompileOptions options = {})
      : model(config),
        training(model),
        step(build_train_step(tape, training)),
        program(compile(tape, step.fetches(), backend(backend_name), options)) {
    program.feed(step.learning_rate, Tensor::full({DType::f32, {}}, config.lr));
  }
  void feed(std::uint32_t batch) { program.feed(step.images, batch_of(model.config(), batch)); }
  void advance(std::uint32_t batch) {
    feed(batch);
    program.run();
  }
  double metric(std::string_view name) const { return program.fetch_scalar(step.metric(name)); }
  StateFile state() {
    StateFile file;
    for (const Variable* v : training.checkpoint()) file.tensors.push_back({v->name(), v->value()});
    return file;
  }
  void restore(const StateFile& file) {
    for (Variable* v : training.checkpoint()) {
      const Tensor* value = file.find(v->name());
      ASSERT_NE(value, nullptr) << v->name();
      v->set(*value);
    }
  }
  VqVae model;
  VqVaeTraining training;
  Tape tape;
  TrainStep step;
  Program program;
};

void expect_equal_metrics(const Trainer& here, const Trainer& there, const std::string& what) {
  for (const char* name : {"loss", "reconstruction", "codebook", "commitment"}) {
    const double wanted = there.metric(name);
    EXPECT_NEAR(here.metric(name), wanted, 1e-4 * std::abs(wanted)) << what << ": " << name;
  }
}

// Adam divides by a gradient's size, so that noise in a tiny gradient moves its weight visibly: what is compared is the
// whole of each parameter, not each weight.
void expect_equal_parameters(Trainer& here, Trainer& there) {
  for (std::size_t k = 0; k < here.model.parameters().size(); ++k) {
    const Variable &a = *here.model.parameters()[k], &b = *there.model.parameters()[k];
    double apart = 0, size = 0;
    for (std::int64_t i = 0; i < a.value().elements(); ++i) {
      const double d = a.value().at(i) - b.value().at(i);
      apart += d * d, size += b.value().at(i) * b.value().at(i);
    }
    EXPECT_LE(std::sqrt(apart), 1e-3 * std::sqrt(size) + 1e-6) << a.name();
  }
}

TEST_F(CudaTraining, TenStepsAgreeWithTheCpuThroughACapturedGraph) {
  for (const char* estimator : {"ste", "rotation"}) {
    SCOPED_TRACE(estimator);
    Trainer cuda(small(estimator), "cuda"), cpu(small(estimator), "cpu");
    const std::uint64_t replays = counters().replays;
    for (std::uint32_t i = 1; i <= 10; ++i) {
      cuda.advance(i);
      cpu.advance(i);
      expect_equal_metrics(cuda, cpu, fmt::format("step {}", i));
    }
    EXPECT_EQ(counters().replays - replays, 8u) << "two plain steps, then the captured graph";
    expect_equal_parameters(cuda, cpu);
  }
}

TEST_F(CudaTraining, Bf16StepsAreCloseToTheReferences) {
  VqVaeConfig config = small("rotation");
  config.precision = DType::bf16;
  Trainer cuda(config, "cuda"), wanted(small("rotation"), "reference");
  for (std::uint32_t i = 1; i <= 4; ++i) {
    cuda.advance(i);
    wanted.advance(i);
    EXPECT_NEAR(cuda.metric("loss"), wanted.metric("loss"), 0.02 * wanted.metric("loss")) << "step " << i;
    EXPECT_NE(cuda.metric("loss"), wanted.metric("loss"));
  }
}

TEST_F(CudaTraining, ASingleStepWithoutCaptureGivesTheSameBitsAsAReplayedOne) {
  Trainer captured(small("rotation"), "cuda"), plain(small("rotation"), "cuda", {.capture = false});
  for (std::uint32_t i = 1; i <= 4; ++i) {
    captured.advance(i);
    plain.advance(i);
  }
  const StateFile a = captured.state(), b = plain.state();
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (std::size_t i = 0; i < a.tensors.size(); ++i)
    EXPECT_TRUE(same_bits(a.tensors[i].value, b.tensors[i].value)) << a.tensors[i].name;
}

TEST_F(CudaTraining, AReplayedStepAllocatesNothingAndWaitsForNothing) {
  Trainer run(small("rotation"), "cuda");
  for (std::uint32_t i = 1; i <= 3; ++i) run.advance(i);
  run.metric("loss");
  const auto before = counters();
  const cuda::EmulatorCounters driver = cuda::emulator_counters();
  for (std::uint32_t i = 4; i <= 6; ++i) {
    run.feed(i);
    run.program.run();
  }
  EXPECT_EQ(counters().replays - before.replays, 3u);
  EXPECT_EQ(counters().launches, before.launches);
  EXPECT_EQ(counters().allocations, before.allocations);
  EXPECT_EQ(counters().synchronisations, before.synchronisations);
  EXPECT_EQ(counters().live_bytes, before.live_bytes);
  // What the driver saw, of this library and of cuBLASLt alike. On a real one these are zeros.
  const cuda::EmulatorCounters seen = cuda::emulator_counters();
  EXPECT_EQ(seen.replays - driver.replays, device().tables().emulated ? 3u : 0u);
  EXPECT_EQ(seen.launches, driver.launches);
  EXPECT_EQ(seen.allocations, driver.allocations);
  EXPECT_EQ(seen.host_allocations, driver.host_allocations);
  EXPECT_EQ(seen.synchronisations, driver.synchronisations);
  EXPECT_TRUE(std::isfinite(run.metric("loss")));
}

TEST_F(CudaTraining, ACheckpointGoesFromCpuToCudaAndBack) {
  const TempFolder folder;
  const auto hand_over = [&](Trainer& from, Trainer& to) {
    save_safetensors(folder / "state.safetensors", from.state());
    to.restore(load_safetensors(folder / "state.safetensors"));
  };
  Trainer whole(small("rotation"), "cpu"), first(small("rotation"), "cpu"), second(small("rotation"), "cuda"),
      third(small("rotation"), "cpu");
  std::uint32_t batch = 1;
  for (Trainer* run : {&first, &second, &third}) {
    if (run == &second) hand_over(first, second);
    if (run == &third) hand_over(second, third);
    for (int i = 0; i < 4; ++i, ++batch) {
      run->advance(batch);
      whole.advance(batch);
    }
    expect_equal_metrics(*run, whole, fmt::format("after batch {}", batch - 1));
  }
  EXPECT_EQ(third.training.step().value().item(), 12);
  expect_equal_parameters(third, whole);
}

TEST_F(CudaTraining, TheDeviceHoldsWhatThePlanSays) {
  const auto before = counters().live_bytes;
  {
    Tape tape;
    VqVae model(small("ste"));
    VqVaeTraining training(model);
    const TrainStep step = build_train_step(tape, training);
    const Program program = compile(tape, step.fetches(), cuda_backend());
    const ProgramStats s = program.stats();
    EXPECT_GE(s.arena_bytes, s.lower_bound_bytes);
    std::size_t state = 0;
    for (const Variable* v : training.checkpoint()) state += v->type().bytes();
    EXPECT_EQ(counters().live_bytes - before,
              s.arena_bytes + s.scratch_bytes + s.persistent_bytes + s.feed_bytes + state);
  }
  EXPECT_EQ(counters().live_bytes, before) << "everything is released with the program";
}

}  // namespace
}  // namespace sg::test
