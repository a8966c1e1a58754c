// What the tests of the emulated driver share: a machine with a current context, the kernels of driver_kernels.cu, and
// memory by vectors. Whatever the report says at the end of a test is a failure, unless the test asked for it.
#pragma once
#include <gtest/gtest.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "backends/cuda/device.h"
#include "backends/cuda/images.h"
#include "tests/cuda_emulator/emulated_driver.h"
#include "tests/support/expect.h"

namespace sg::cuda {
std::span<const Image> test_kernel_images();  // of tests/cuda/kernels
}

namespace sg::test {

class EmulatedTest : public testing::Test {
 protected:
  void SetUp() override { open({}); }
  void TearDown() override {
    EXPECT_EQ(report(), "");
    clear();
    close();
  }

  // A machine with these options instead of that of SetUp.
  void open(const cuda::EmulatorOptions& options) {
    close();
    scope_.emplace(options);
    ASSERT_EQ(api().cuInit_(0), CUDA_SUCCESS);
    ASSERT_EQ(api().cuDevicePrimaryCtxRetain_(&context_, 0), CUDA_SUCCESS);
    ASSERT_EQ(api().cuCtxSetCurrent_(context_), CUDA_SUCCESS);
    stream_ = new_stream();
    ASSERT_EQ(api().cuModuleLoadDataEx_(&module_, image(), 0, nullptr, nullptr), CUDA_SUCCESS);
  }
  void close() {
    if (!scope_) return;
    for (const CUstream s : streams_) api().cuStreamDestroy_(s);
    streams_.clear();
    api().cuModuleUnload_(module_);
    for (const CUdeviceptr p : allocated_) api().cuMemFree_(p);
    allocated_.clear();
    api().cuCtxSetCurrent_(nullptr);
    api().cuDevicePrimaryCtxRelease_(0);
    scope_.reset();
  }

  static const void* image() {
    for (const cuda::Image& image : cuda::test_kernel_images())
      if (image.name == "driver_kernels") return image.begin;
    throw std::runtime_error("no image driver_kernels");
  }

  const cuda::Tables& tables() const { return scope_->tables(); }
  const cuda::DriverApi& api() const { return tables().driver; }
  CUstream stream() const { return stream_; }
  CUcontext context() const { return context_; }
  CUmodule module() const { return module_; }
  static std::string report() { return cuda::emulated_report(); }
  static void clear() { cuda::clear_emulated_failure(); }

  // The call is refused with `wanted`, and the report says `words`.
  static void expect_refusal(CUresult got, CUresult wanted, const std::string& words) {
    EXPECT_EQ(got, wanted);
    SG_EXPECT_CONTAINS(report(), words);
    clear();
  }

  CUstream new_stream() {
    CUstream s = nullptr;
    EXPECT_EQ(api().cuStreamCreate_(&s, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
    streams_.push_back(s);
    return s;
  }
  CUevent new_event() {
    CUevent e = nullptr;
    EXPECT_EQ(api().cuEventCreate_(&e, CU_EVENT_DISABLE_TIMING), CUDA_SUCCESS);
    return e;
  }
  CUfunction function(const char* name) {
    CUfunction f = nullptr;
    EXPECT_EQ(api().cuModuleGetFunction_(&f, module_, name), CUDA_SUCCESS) << name;
    return f;
  }
  CUdeviceptr allocate(std::size_t bytes) {
    CUdeviceptr p = 0;
    EXPECT_EQ(api().cuMemAlloc_(&p, bytes), CUDA_SUCCESS);
    allocated_.push_back(p);
    return p;
  }
  void release(CUdeviceptr p) {
    EXPECT_EQ(api().cuMemFree_(p), CUDA_SUCCESS);
    std::erase(allocated_, p);
  }
  template <class T>
  CUdeviceptr upload(const std::vector<T>& values) {
    const CUdeviceptr p = allocate(values.size() * sizeof(T));
    EXPECT_EQ(api().cuMemcpyHtoDAsync_(p, values.data(), values.size() * sizeof(T), stream_), CUDA_SUCCESS);
    EXPECT_EQ(api().cuStreamSynchronize_(stream_), CUDA_SUCCESS);
    return p;
  }
  template <class T>
  std::vector<T> download(CUdeviceptr p, std::size_t count, CUstream on = nullptr) {
    std::vector<T> values(count);
    const CUstream s = on == nullptr ? stream_ : on;
    EXPECT_EQ(api().cuMemcpyDtoHAsync_(values.data(), p, count * sizeof(T), s), CUDA_SUCCESS);
    EXPECT_EQ(api().cuStreamSynchronize_(s), CUDA_SUCCESS);
    return values;
  }
  template <class... P>
  CUresult launch_on(CUstream s, const char* name, unsigned blocks, unsigned threads, P... parameters) {
    void* arguments[] = {&parameters...};
    return api().cuLaunchKernel_(function(name), blocks, 1, 1, threads, 1, 1, 0, s, arguments, nullptr);
  }
  template <class... P>
  CUresult launch(const char* name, unsigned blocks, unsigned threads, P... parameters) {
    return launch_on(stream_, name, blocks, threads, parameters...);
  }
  CUresult synchronize() { return api().cuStreamSynchronize_(stream_); }

 private:
  std::optional<cuda::EmulatorScope> scope_;
  CUcontext context_ = nullptr;
  CUstream stream_ = nullptr;
  CUmodule module_ = nullptr;
  std::vector<CUstream> streams_;
  std::vector<CUdeviceptr> allocated_;
};

}  // namespace sg::test
