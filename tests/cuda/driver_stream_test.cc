// Streams and events of the emulated driver: lazy, in order within a stream, in any order between streams that no event
// orders.
#include <set>

#include "tests/cuda/driver_support.h"

namespace sg::test {
namespace {

class EmulatedStreams : public EmulatedTest {
 protected:
  float* pinned() {
    void* p = nullptr;
    EXPECT_EQ(api().cuMemHostAlloc_(&p, 64, 0), CUDA_SUCCESS);
    return static_cast<float*>(p);
  }
};

TEST_F(EmulatedStreams, NothingRunsBeforeSomethingWaitsForIt) {
  float* host = pinned();
  *host = 7;
  const CUdeviceptr p = allocate(sizeof(float));
  const std::uint64_t ran = cuda::emulator_counters().kernels;
  ASSERT_EQ(launch("fill", 1, 32, p, 1.0f, 1), CUDA_SUCCESS);
  ASSERT_EQ(api().cuMemcpyDtoHAsync_(host, p, sizeof(float), stream()), CUDA_SUCCESS);
  EXPECT_EQ(*host, 7);
  EXPECT_EQ(cuda::emulator_counters().kernels, ran);
  ASSERT_EQ(synchronize(), CUDA_SUCCESS);
  EXPECT_EQ(*host, 1);
  EXPECT_EQ(cuda::emulator_counters().kernels, ran + 1);
  EXPECT_EQ(api().cuMemFreeHost_(host), CUDA_SUCCESS);
}

TEST_F(EmulatedStreams, UnlessTheMachineIsNotLazy) {
  open({.lazy = false});
  const std::uint64_t ran = cuda::emulator_counters().kernels;
  ASSERT_EQ(launch("fill", 1, 32, allocate(4), 1.0f, 1), CUDA_SUCCESS);
  EXPECT_EQ(cuda::emulator_counters().kernels, ran + 1);
}

TEST_F(EmulatedStreams, AStreamKeepsItsOrder) {
  const CUdeviceptr p = upload<float>({1, 1});
  for (int i = 0; i < 5; ++i) ASSERT_EQ(launch("affine", 1, 32, p, 2.0f, static_cast<float>(i), 2), CUDA_SUCCESS);
  EXPECT_EQ(download<float>(p, 2), std::vector<float>(2, ((((2 * 1 + 0) * 2 + 1) * 2 + 2) * 2 + 3) * 2 + 4));
}

// Two streams write one number. Which one comes last is settled by an event, or by the seed.
TEST_F(EmulatedStreams, AForgottenWaitShows) {
  for (const bool waits : {true, false}) {
    std::set<float> seen;
    for (std::uint64_t seed = 1; seed <= 16; ++seed) {
      open({.seed = seed});
      const CUstream other = new_stream();
      const CUdeviceptr p = upload<float>({0});
      const CUevent done = new_event();
      ASSERT_EQ(launch_on(other, "fill", 1, 32, p, 1.0f, 1), CUDA_SUCCESS);
      ASSERT_EQ(api().cuEventRecord_(done, other), CUDA_SUCCESS);
      if (waits) {
        ASSERT_EQ(api().cuStreamWaitEvent_(stream(), done, 0), CUDA_SUCCESS);
      }
      ASSERT_EQ(launch("affine", 1, 32, p, 10.0f, 3.0f, 1), CUDA_SUCCESS);
      ASSERT_EQ(synchronize(), CUDA_SUCCESS);
      ASSERT_EQ(api().cuCtxSynchronize_(), CUDA_SUCCESS);
      seen.insert(download<float>(p, 1)[0]);
      EXPECT_EQ(api().cuEventDestroy_(done), CUDA_SUCCESS);
    }
    EXPECT_EQ(seen, waits ? std::set<float>{13} : (std::set<float>{1, 13}))
        << (waits ? "with" : "without") << " a wait";
  }
}

TEST_F(EmulatedStreams, PollingAnEventEnds) {
  const CUevent e = new_event();
  EXPECT_EQ(api().cuEventQuery_(e), CUDA_SUCCESS) << "of an event that was never recorded";
  const CUdeviceptr p = allocate(4);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(launch("fill", 1, 32, p, 1.0f, 1), CUDA_SUCCESS);
  ASSERT_EQ(api().cuEventRecord_(e, stream()), CUDA_SUCCESS);
  int polls = 0;
  CUresult r = CUDA_ERROR_NOT_READY;
  for (; r == CUDA_ERROR_NOT_READY && polls < 100; ++polls) r = api().cuEventQuery_(e);
  EXPECT_EQ(r, CUDA_SUCCESS);
  EXPECT_GT(polls, 1);
  EXPECT_EQ(api().cuEventDestroy_(e), CUDA_SUCCESS);
}

// A wait is for the recording that was there when it was enqueued.
TEST_F(EmulatedStreams, AnEventRecordedAgainHoldsUpNoEarlierWait) {
  const CUstream other = new_stream();
  const CUevent e = new_event();
  const CUdeviceptr p = upload<float>({1});
  ASSERT_EQ(api().cuEventRecord_(e, other), CUDA_SUCCESS);
  ASSERT_EQ(api().cuStreamWaitEvent_(stream(), e, 0), CUDA_SUCCESS);
  ASSERT_EQ(launch_on(other, "fill", 1, 32, p, 5.0f, 1), CUDA_SUCCESS);
  ASSERT_EQ(api().cuEventRecord_(e, other), CUDA_SUCCESS);
  EXPECT_EQ(download<float>(p, 1)[0], 1);
  ASSERT_EQ(api().cuEventSynchronize_(e), CUDA_SUCCESS);
  EXPECT_EQ(download<float>(p, 1)[0], 5);
  EXPECT_EQ(api().cuEventDestroy_(e), CUDA_SUCCESS);
}

TEST_F(EmulatedStreams, SynchronisationsAreCounted) {
  const CUevent e = new_event();
  const CUdeviceptr p = allocate(4);
  float* host = pinned();
  const auto count = [&](auto call) {
    const std::uint64_t before = cuda::emulator_counters().synchronisations;
    call();
    return cuda::emulator_counters().synchronisations - before;
  };
  EXPECT_EQ(count([&] { synchronize(); }), 1u);
  EXPECT_EQ(count([&] { api().cuCtxSynchronize_(); }), 1u);
  EXPECT_EQ(count([&] { api().cuEventSynchronize_(e); }), 1u);
  EXPECT_EQ(count([&] { launch("fill", 1, 32, p, 1.0f, 1); }), 0u);
  EXPECT_EQ(count([&] { api().cuMemcpyDtoHAsync_(host, p, 4, stream()); }), 0u);
  float pageable = 0;
  EXPECT_EQ(count([&] { api().cuMemcpyDtoHAsync_(&pageable, p, 4, stream()); }), 1u) << "a driver waits for it";
  ASSERT_EQ(synchronize(), CUDA_SUCCESS);
  EXPECT_EQ(api().cuMemFreeHost_(host), CUDA_SUCCESS);
  EXPECT_EQ(api().cuEventDestroy_(e), CUDA_SUCCESS);
}

TEST_F(EmulatedStreams, WhatIsNoStreamOrEventIsRefused) {
  const CUevent gone = new_event();
  ASSERT_EQ(api().cuEventDestroy_(gone), CUDA_SUCCESS);
  expect_refusal(api().cuEventRecord_(gone, stream()), CUDA_ERROR_INVALID_HANDLE, "cuEventRecord");
  expect_refusal(api().cuStreamWaitEvent_(stream(), gone, 0), CUDA_ERROR_INVALID_HANDLE, "cuStreamWaitEvent");
  expect_refusal(api().cuStreamSynchronize_(nullptr), CUDA_ERROR_INVALID_HANDLE, "default stream");
  expect_refusal(launch_on(nullptr, "fill", 1, 32, allocate(4), 1.0f, 1), CUDA_ERROR_INVALID_HANDLE, "no such stream");
  CUstream blocking = nullptr;
  expect_refusal(api().cuStreamCreate_(&blocking, CU_STREAM_DEFAULT), CUDA_ERROR_INVALID_VALUE, "non-blocking");
}

}  // namespace
}  // namespace sg::test
