// Modules and launches on the emulated driver: limits, parameters, faults with kernel, line and thread, NVRTC's PTX.
#include "backends/cuda/jit.h"
#include "tests/cuda/driver_support.h"

namespace sg::test {
namespace {

class EmulatedLaunch : public EmulatedTest {
 protected:
  CUresult launch_as(const char* name, cuda::Grid grid, cuda::Grid block, unsigned shared, CUdeviceptr p, int n) {
    void* arguments[] = {&p, &n};
    return api().cuLaunchKernel_(function(name), grid.x, grid.y, grid.z, block.x, block.y, block.z, shared, stream(),
                                 arguments, nullptr);
  }
};

TEST_F(EmulatedLaunch, SaysThatItIsEmulated) {
  char name[64] = "";
  ASSERT_EQ(api().cuDeviceGetName_(name, sizeof name, 0), CUDA_SUCCESS);
  EXPECT_STREQ(name, "EMULATED sm_90 (host interpreter, not a GPU)");
  EXPECT_TRUE(tables().emulated);
}

TEST_F(EmulatedLaunch, LimitsOfGridAndBlock) {
  const CUdeviceptr p = allocate(4);
  const struct {
    cuda::Grid grid, block;
    const char* words;
  } wrong[] = {{{0, 1, 1}, {1, 1, 1}, "an extent is 0"}, {{1, 1, 1}, {32, 0, 1}, "an extent is 0"},
               {{1, 65536, 1}, {1, 1, 1}, "grid"},       {{1, 1, 65536}, {1, 1, 1}, "grid"},
               {{1, 1, 1}, {1025, 1, 1}, "block"},       {{1, 1, 1}, {64, 32, 1}, "block"},
               {{1, 1, 1}, {1, 1, 65}, "block"}};
  for (const auto& w : wrong)
    expect_refusal(launch_as("in_shared_memory", w.grid, w.block, 64, p, 1), CUDA_ERROR_INVALID_VALUE, w.words);
  EXPECT_EQ(launch("bounded", 1, 64, p), CUDA_SUCCESS);
  expect_refusal(launch("bounded", 1, 96, p), CUDA_ERROR_INVALID_VALUE, "its launch bounds allow 64 threads");
  EXPECT_EQ(download<float>(p, 1)[0], 64);
}

TEST_F(EmulatedLaunch, SharedMemoryBeyond48KiBIsOptedInto) {
  const CUdeviceptr p = allocate(4);
  const auto run = [&](int n) { return launch_as("in_shared_memory", {}, {128}, static_cast<unsigned>(n) * 4, p, n); };
  EXPECT_EQ(run(12 << 10), CUDA_SUCCESS);
  EXPECT_EQ(download<float>(p, 1)[0], (12 << 10) - 1);
  expect_refusal(run((12 << 10) + 1), CUDA_ERROR_INVALID_VALUE, "shared memory");
  const CUfunction f = function("in_shared_memory");
  const auto allow = [&](int bytes) {
    return api().cuFuncSetAttribute_(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes);
  };
  expect_refusal(allow((227 << 10) + 1), CUDA_ERROR_INVALID_VALUE, "shared memory");
  EXPECT_EQ(allow(80 << 10), CUDA_SUCCESS);
  EXPECT_EQ(run(20 << 10), CUDA_SUCCESS);
  EXPECT_EQ(download<float>(p, 1)[0], (20 << 10) - 1);
  expect_refusal(run((20 << 10) + 1), CUDA_ERROR_INVALID_VALUE, "shared memory");
}

TEST_F(EmulatedLaunch, ParametersAreHeldAgainstTheKernel) {
  cuda::Device device(tables());
  const CUmodule m = device.load(image(), "driver_kernels.cu");
  const CUfunction f = device.function(m, "fill");
  EXPECT_NO_THROW((cuda::Kernel<float*, float, int>(device, f, "fill")));
  SG_EXPECT_ERROR(internal, "kernel fill has 3 parameters, 4 are passed",
                  (cuda::Kernel<float*, float, int, int>(device, f, "fill")));
  SG_EXPECT_ERROR(internal, "more than the 2 parameters", (cuda::Kernel<float*, float>(device, f, "fill")));
  SG_EXPECT_ERROR(internal, "parameter 1 has 4 bytes, 8 are passed",
                  (cuda::Kernel<float*, double, int>(device, f, "fill")));
  SG_EXPECT_ERROR(backend, "cuModuleGetFunction of nosuch", device.function(m, "nosuch"));
  clear();
}

TEST_F(EmulatedLaunch, WhatIsNoKernelIsRefused) {
  CUmodule m = nullptr;
  char log[512] = "";
  CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
  void* values[] = {log, reinterpret_cast<void*>(sizeof log)};
  const char* broken =
      ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\nfrobnicate.u32 %r1;\nret;\n}\n";
  expect_refusal(api().cuModuleLoadDataEx_(&m, broken, 2, options, values), CUDA_ERROR_INVALID_PTX, "frobnicate");
  SG_EXPECT_CONTAINS(std::string(log), "frobnicate");
  expect_refusal(api().cuModuleLoadDataEx_(&m, "\177ELF...", 0, nullptr, nullptr), CUDA_ERROR_NO_BINARY_FOR_GPU,
                 "machine code");
  CUfunction f = nullptr;
  expect_refusal(api().cuModuleGetFunction_(&f, module(), "nosuch"), CUDA_ERROR_NOT_FOUND, "no kernel nosuch");
  expect_refusal(api().cuLaunchKernel_(nullptr, 1, 1, 1, 1, 1, 1, 0, stream(), nullptr, nullptr),
                 CUDA_ERROR_INVALID_HANDLE, "no such kernel");
}

TEST_F(EmulatedLaunch, AFaultNamesKernelLineAndThreadAndStays) {
  const CUdeviceptr p = allocate(40 * sizeof(float));
  ASSERT_EQ(launch("writes_past_the_end", 1, 64, p, 40), CUDA_SUCCESS);
  EXPECT_EQ(synchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
  for (const char* part : {"writes_past_the_end", "driver_kernels.cu:20", "thread"}) SG_EXPECT_CONTAINS(report(), part);
  const char* words = nullptr;
  EXPECT_EQ(api().cuGetErrorString_(CUDA_ERROR_ILLEGAL_ADDRESS, &words), CUDA_SUCCESS);
  SG_EXPECT_CONTAINS(std::string(words), "driver_kernels.cu:20");

  CUdeviceptr q = 0;
  EXPECT_EQ(api().cuMemAlloc_(&q, 8), CUDA_ERROR_ILLEGAL_ADDRESS) << "every later call answers it";
  EXPECT_EQ(api().cuMemsetD8Async_(p, 0, 8, stream()), CUDA_ERROR_ILLEGAL_ADDRESS);
  clear();
}

TEST_F(EmulatedLaunch, MisalignedAccessesAreReported) {
  ASSERT_EQ(launch("misaligned", 1, 1, allocate(64)), CUDA_SUCCESS);
  EXPECT_EQ(synchronize(), CUDA_ERROR_MISALIGNED_ADDRESS);
  SG_EXPECT_CONTAINS(report(), "misaligned");
  clear();
}

TEST_F(EmulatedLaunch, BlocksThatAddToOneNumberAreARace) {
  open({.check_races = true});
  const CUdeviceptr p = upload<float>(std::vector<float>(32, 0)), x = upload<float>(std::vector<float>(32, 1));
  ASSERT_EQ(launch("add_to", 1, 32, p, x, 32), CUDA_SUCCESS);
  ASSERT_EQ(synchronize(), CUDA_SUCCESS);
  ASSERT_EQ(launch("bounded", 2, 32, p), CUDA_SUCCESS);  // every thread writes element 0
  EXPECT_EQ(synchronize(), CUDA_ERROR_LAUNCH_FAILED);
  SG_EXPECT_CONTAINS(report(), "race");
  clear();
}

TEST_F(EmulatedLaunch, AThreadNeedsAContext) {
  ASSERT_EQ(api().cuCtxSetCurrent_(nullptr), CUDA_SUCCESS);
  CUdeviceptr p = 0;
  expect_refusal(api().cuMemAlloc_(&p, 8), CUDA_ERROR_INVALID_CONTEXT, "no current context");
  ASSERT_EQ(api().cuCtxSetCurrent_(context()), CUDA_SUCCESS);
}

// The real NVRTC, which needs no GPU.
TEST_F(EmulatedLaunch, TextCompiledByNvrtcRuns) {
  if (!tables().no_nvrtc.empty()) GTEST_SKIP() << tables().no_nvrtc;
  const std::string folder = cuda::jit_cache_folder();
  cuda::set_jit_cache_folder("");
  cuda::Device device(tables());
  const CUfunction f =
      cuda::jit_kernel(device, "extern \"C\" __global__ void twice(float* y) { y[threadIdx.x] *= 2.0f; }", "twice");
  cuda::set_jit_cache_folder(folder);
  const CUdeviceptr p = upload<float>({1, 2, 3});
  const cuda::Kernel<CUdeviceptr> twice(device, f, "twice");
  twice({{1}, {3}}, p);
  device.synchronize();
  EXPECT_EQ(download<float>(p, 3), (std::vector<float>{2, 4, 6}));
}

TEST_F(EmulatedLaunch, CanBeWithoutNvrtcAndBlas) {
  open({.nvrtc = false, .blas = false});
  SG_EXPECT_CONTAINS(tables().no_nvrtc, "switched off");
  SG_EXPECT_CONTAINS(tables().no_blas, "switched off");
  open({});
  EXPECT_EQ(tables().no_blas, "");
}

}  // namespace
}  // namespace sg::test
