// Memory of the emulated device: closed to the host, fresh memory told from written, wrong pointers refused.
#include <cmath>
#include <csignal>

#include "tests/cuda/driver_support.h"

namespace sg::test {
namespace {

class EmulatedMemory : public EmulatedTest {};
using EmulatedMemoryDeathTest = EmulatedMemory;

TEST_F(EmulatedMemory, FreshMemoryIsNan) {
  for (const float x : download<float>(allocate(64 * sizeof(float)), 64)) EXPECT_TRUE(std::isnan(x));
}

TEST_F(EmulatedMemoryDeathTest, TheHostCannotTouchIt) {
  auto* p = reinterpret_cast<volatile float*>(upload<float>({1, 2, 3}));
  EXPECT_EXIT(p[0] = 1, testing::KilledBySignal(SIGSEGV), "");
  EXPECT_EXIT(static_cast<void>(p[0] + 0), testing::KilledBySignal(SIGSEGV), "");
}

TEST_F(EmulatedMemory, AddressesAreNotUsedTwice) {
  const CUdeviceptr first = allocate(1000);
  EXPECT_EQ(first % 256, 0u);
  release(first);
  EXPECT_NE(allocate(1000), first);
}

TEST_F(EmulatedMemory, AKernelOnFreedMemoryIsReported) {
  const CUdeviceptr p = allocate(256);
  release(p);
  EXPECT_EQ(launch("fill", 1, 64, p, 1.0f, 64), CUDA_SUCCESS);
  EXPECT_EQ(synchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
  SG_EXPECT_CONTAINS(report(), "fill");
  clear();
}

TEST_F(EmulatedMemory, CopiesStayInsideOneAllocation) {
  const CUdeviceptr p = allocate(100), q = allocate(100);
  char host[256] = {};
  expect_refusal(api().cuMemcpyHtoDAsync_(p, host, 101, stream()), CUDA_ERROR_INVALID_VALUE, "101 bytes");
  expect_refusal(api().cuMemcpyDtoHAsync_(host, p + 90, 11, stream()), CUDA_ERROR_INVALID_VALUE, "source");
  expect_refusal(api().cuMemcpyDtoDAsync_(q, p + 1, 100, stream()), CUDA_ERROR_INVALID_VALUE, "source");
  expect_refusal(api().cuMemcpyDtoDAsync_(p + 10, p, 20, stream()), CUDA_ERROR_INVALID_VALUE, "overlap");
  expect_refusal(api().cuMemsetD8Async_(p, 0, 101, stream()), CUDA_ERROR_INVALID_VALUE, "destination");
  expect_refusal(api().cuMemcpyHtoDAsync_(reinterpret_cast<CUdeviceptr>(host), host, 8, stream()),
                 CUDA_ERROR_INVALID_VALUE, "not inside one allocation");
  expect_refusal(api().cuMemFree_(p + 1), CUDA_ERROR_INVALID_VALUE, "no allocation begins");
  expect_refusal(api().cuMemFreeHost_(host), CUDA_ERROR_INVALID_VALUE, "no pinned allocation begins");
}

TEST_F(EmulatedMemory, ACopyToFreedMemoryFailsWhenItRuns) {
  const CUdeviceptr p = upload<float>({1});
  float* pinned = nullptr;
  ASSERT_EQ(api().cuMemHostAlloc_(reinterpret_cast<void**>(&pinned), 64, 0), CUDA_SUCCESS);
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;
  ASSERT_EQ(api().cuStreamBeginCapture_(stream(), CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), CUDA_SUCCESS);
  ASSERT_EQ(api().cuMemcpyDtoHAsync_(pinned, p, sizeof(float), stream()), CUDA_SUCCESS);
  ASSERT_EQ(api().cuStreamEndCapture_(stream(), &graph), CUDA_SUCCESS);
  ASSERT_EQ(api().cuGraphInstantiateWithFlags_(&exec, graph, 0), CUDA_SUCCESS);
  release(p);
  EXPECT_EQ(api().cuGraphLaunch_(exec, stream()), CUDA_SUCCESS);
  EXPECT_EQ(synchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
  SG_EXPECT_CONTAINS(report(), "cuMemcpyDtoHAsync: reads 4 bytes");
  clear();
  EXPECT_EQ(api().cuMemFreeHost_(pinned), CUDA_SUCCESS);
  api().cuGraphExecDestroy_(exec);
  api().cuGraphDestroy_(graph);
}

// A driver stages pageable memory before it returns; pinned memory is read when the copy runs.
TEST_F(EmulatedMemory, PinnedMemoryIsReadWhenTheCopyRuns) {
  float* pinned = nullptr;
  ASSERT_EQ(api().cuMemHostAlloc_(reinterpret_cast<void**>(&pinned), 64, 0), CUDA_SUCCESS);
  float pageable = 1;
  *pinned = 1;
  const CUdeviceptr p = allocate(sizeof(float)), q = allocate(sizeof(float));
  ASSERT_EQ(api().cuMemcpyHtoDAsync_(p, pinned, sizeof(float), stream()), CUDA_SUCCESS);
  ASSERT_EQ(api().cuMemcpyHtoDAsync_(q, &pageable, sizeof(float), stream()), CUDA_SUCCESS);
  *pinned = pageable = 2;
  EXPECT_EQ(download<float>(p, 1)[0], 2);
  EXPECT_EQ(download<float>(q, 1)[0], 1);
  EXPECT_EQ(api().cuMemFreeHost_(pinned), CUDA_SUCCESS);
}

TEST_F(EmulatedMemory, ReadingWhatNobodyWroteIsReported) {
  open({.check_initialised = true});
  const CUdeviceptr p = allocate(64 * sizeof(float)), x = upload<float>(std::vector<float>(64, 1));
  float host[64];
  ASSERT_EQ(launch("fill", 1, 32, p, 1.0f, 32), CUDA_SUCCESS);
  EXPECT_EQ(download<float>(p, 32), std::vector<float>(32, 1));
  ASSERT_EQ(api().cuMemcpyDtoHAsync_(host, p, 33 * sizeof(float), stream()), CUDA_SUCCESS);
  EXPECT_EQ(synchronize(), CUDA_ERROR_LAUNCH_FAILED);
  SG_EXPECT_CONTAINS(report(), "not all of which were written");
  clear();
  ASSERT_EQ(launch("add_to", 1, 64, p, x, 64), CUDA_SUCCESS);
  EXPECT_EQ(synchronize(), CUDA_ERROR_LAUNCH_FAILED);
  SG_EXPECT_CONTAINS(report(), "driver_kernels.cu:");
  clear();

  // What nobody wrote may be copied, and stays what it is.
  const CUdeviceptr q = allocate(64 * sizeof(float));
  ASSERT_EQ(api().cuMemsetD8Async_(q, 0, 64 * sizeof(float), stream()), CUDA_SUCCESS);
  ASSERT_EQ(api().cuMemcpyDtoDAsync_(q, p, 64 * sizeof(float), stream()), CUDA_SUCCESS);
  EXPECT_EQ(download<float>(q, 32), std::vector<float>(32, 1));
  ASSERT_EQ(launch("add_to", 1, 64, q, x, 64), CUDA_SUCCESS);
  EXPECT_EQ(synchronize(), CUDA_ERROR_LAUNCH_FAILED);
  clear();
}

TEST_F(EmulatedMemory, ThereIsAnEndOfIt) {
  open({.memory = 1 << 20});
  const auto before = cuda::emulator_counters();
  std::size_t free = 0, total = 0;
  ASSERT_EQ(api().cuMemGetInfo_(&free, &total), CUDA_SUCCESS);
  EXPECT_EQ(free, total);
  const CUdeviceptr p = allocate(1 << 19);
  CUdeviceptr q = 0;
  EXPECT_EQ(api().cuMemAlloc_(&q, (1 << 19) + 1), CUDA_ERROR_OUT_OF_MEMORY);
  ASSERT_EQ(api().cuMemGetInfo_(&free, &total), CUDA_SUCCESS);
  EXPECT_EQ(free, std::size_t{1} << 19);
  EXPECT_EQ(cuda::emulator_counters().live_bytes, std::uint64_t{1} << 19);
  release(p);
  release(allocate(1 << 20));
  EXPECT_EQ(cuda::emulator_counters().allocations - before.allocations, 2u);
  EXPECT_EQ(cuda::emulator_counters().live_allocations, before.live_allocations);

  cuda::Device device(tables());
  SG_EXPECT_ERROR(backend, "out of memory", device.allocate((1 << 20) + 1));
  SG_EXPECT_ERROR(backend, "1.0 MiB free of 1.0 MiB", device.allocate(std::size_t{1} << 40));
}

TEST_F(EmulatedMemory, WhatIsLeftWithTheContextIsReported) {
  if (cuda::emulator_counters().live_allocations != 0) GTEST_SKIP() << "a backend of the process holds the context";
  CUdeviceptr p = 0;
  ASSERT_EQ(api().cuMemAlloc_(&p, 100), CUDA_SUCCESS);
  ASSERT_EQ(api().cuDevicePrimaryCtxRelease_(0), CUDA_SUCCESS);
  SG_EXPECT_CONTAINS(report(), "1 allocations of 100 bytes were left");
  clear();
  CUcontext again = nullptr;
  EXPECT_EQ(api().cuMemAlloc_(&p, 100), CUDA_ERROR_INVALID_CONTEXT);
  clear();
  ASSERT_EQ(api().cuDevicePrimaryCtxRetain_(&again, 0), CUDA_SUCCESS);
}

TEST_F(EmulatedMemory, ACallCanBeMadeToFail) {
  cuda::fail_emulated_call("cuMemAlloc", 2, CUDA_ERROR_OUT_OF_MEMORY);
  allocate(8);
  CUdeviceptr p = 0;
  EXPECT_EQ(api().cuMemAlloc_(&p, 8), CUDA_ERROR_OUT_OF_MEMORY);
  allocate(8);
}

}  // namespace
}  // namespace sg::test
