// Times of the emulated device mean nothing, and no command of `bench` takes any.
#include "ops/elementwise.h"
#include "tests/cuda/support.h"
#include "tools/bench_runner.h"
#include "tools/bench_step.h"
#include "tools/config.h"

namespace sg::test {
namespace {

using CudaBench = CudaTest;

TEST_F(CudaBench, RefusesTheEmulatedDevice) {
  if (!cuda_backend().emulated()) GTEST_SKIP() << "the device is real";
  tools::BenchOptions options;
  options.backend = "cuda";
  SG_EXPECT_ERROR(usage, "cuda is emulated, its times mean nothing", tools::start_bench(options));
  tools::TrainConfig config = tools::default_config("vqvae");
  config.backend = "cuda";
  SG_EXPECT_ERROR(usage, "emulated", tools::BenchStep(config, false));
}

TEST_F(CudaBench, ATimeEndsWhenTheDeviceIsDone) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {1000}});
  Program program = compile(tape, std::vector<Value>{x * 3.0}, cuda_backend());
  program.feed(x, Tensor::full(x.type(), 2));
  const auto before = counters().synchronisations;
  program.run();
  EXPECT_EQ(counters().synchronisations, before);
  cuda_backend().wait();
  EXPECT_GT(counters().synchronisations, before);
}

}  // namespace
}  // namespace sg::test
