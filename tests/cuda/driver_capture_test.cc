// Capture of graphs on the emulated driver, with the rules that CUDA's has.
#include <functional>
#include <thread>

#include "tests/cuda/driver_support.h"

namespace sg::test {
namespace {

class EmulatedCapture : public EmulatedTest {
 protected:
  void begin(CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) {
    ASSERT_EQ(api().cuStreamBeginCapture_(stream(), mode), CUDA_SUCCESS);
  }
  CUresult end(CUgraph* graph = nullptr) {
    CUgraph made = nullptr;
    const CUresult r = api().cuStreamEndCapture_(stream(), &made);
    if (graph != nullptr)
      *graph = made;
    else if (made != nullptr)
      api().cuGraphDestroy_(made);
    return r;
  }
};

TEST_F(EmulatedCapture, ALaunchReplaysWhatWasCaptured) {
  const CUdeviceptr p = upload<float>({1});
  begin();
  for (const float b : {1.0f, 2.0f}) ASSERT_EQ(launch("affine", 1, 32, p, 3.0f, b, 1), CUDA_SUCCESS);
  CUgraph graph = nullptr;
  ASSERT_EQ(end(&graph), CUDA_SUCCESS);
  std::size_t nodes = 0;
  EXPECT_EQ(api().cuGraphGetNodes_(graph, nullptr, &nodes), CUDA_SUCCESS);
  EXPECT_EQ(nodes, 2u);
  CUgraphExec exec = nullptr;
  ASSERT_EQ(api().cuGraphInstantiateWithFlags_(&exec, graph, 0), CUDA_SUCCESS);
  EXPECT_EQ(api().cuGraphDestroy_(graph), CUDA_SUCCESS);
  EXPECT_EQ(download<float>(p, 1)[0], 1) << "nothing ran while it was captured";

  const auto before = cuda::emulator_counters();
  float wanted = 1;
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(api().cuGraphLaunch_(exec, stream()), CUDA_SUCCESS);
    wanted = 3 * (3 * wanted + 1) + 2;
  }
  EXPECT_EQ(download<float>(p, 1)[0], wanted);
  const auto& now = cuda::emulator_counters();
  EXPECT_EQ(now.replays - before.replays, 3u);
  EXPECT_EQ(now.kernels - before.kernels, 6u);
  EXPECT_EQ(now.launches, before.launches);
  EXPECT_EQ(now.allocations, before.allocations);
  EXPECT_EQ(api().cuGraphExecDestroy_(exec), CUDA_SUCCESS);
}

// Each of them is refused, and the capture it interrupts comes to nothing.
TEST_F(EmulatedCapture, WhatMayWaitForTheDeviceIsForbidden) {
  const CUdeviceptr p = upload<float>({1});
  const CUevent e = new_event();
  void* pinned = nullptr;
  ASSERT_EQ(api().cuMemHostAlloc_(&pinned, 64, 0), CUDA_SUCCESS);
  float host = 0;
  const std::pair<const char*, std::function<CUresult()>> forbidden[] = {
      {"cuMemAlloc",
       [&] {
         CUdeviceptr q = 0;
         return api().cuMemAlloc_(&q, 8);
       }},
      {"cuMemFree", [&] { return api().cuMemFree_(p); }},
      {"cuMemHostAlloc",
       [&] {
         void* q = nullptr;
         return api().cuMemHostAlloc_(&q, 8, 0);
       }},
      {"cuMemFreeHost", [&] { return api().cuMemFreeHost_(pinned); }},
      {"cuStreamSynchronize", [&] { return synchronize(); }},
      {"cuCtxSynchronize", [&] { return api().cuCtxSynchronize_(); }},
      {"cuEventSynchronize", [&] { return api().cuEventSynchronize_(e); }},
      {"cuEventQuery", [&] { return api().cuEventQuery_(e); }},
      {"cuModuleLoadDataEx",
       [&] {
         CUmodule m = nullptr;
         return api().cuModuleLoadDataEx_(&m, "", 0, nullptr, nullptr);
       }},
      {"cuMemcpyHtoDAsync", [&] { return api().cuMemcpyHtoDAsync_(p, &host, 4, stream()); }},
      {"cuMemcpyDtoHAsync", [&] { return api().cuMemcpyDtoHAsync_(&host, p, 4, stream()); }},
  };
  for (const auto& [name, call] : forbidden) {
    SCOPED_TRACE(name);
    begin();
    ASSERT_EQ(launch("fill", 1, 32, p, 1.0f, 1), CUDA_SUCCESS);
    expect_refusal(call(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, name);
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    EXPECT_EQ(api().cuStreamIsCapturing_(stream(), &status), CUDA_SUCCESS);
    EXPECT_EQ(status, CU_STREAM_CAPTURE_STATUS_INVALIDATED);
    EXPECT_EQ(launch("fill", 1, 32, p, 1.0f, 1), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    expect_refusal(end(), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "cuStreamEndCapture");
  }
  begin();  // nothing of it is left
  ASSERT_EQ(launch("fill", 1, 32, p, 1.0f, 1), CUDA_SUCCESS);
  EXPECT_EQ(end(), CUDA_SUCCESS);
  EXPECT_EQ(api().cuMemFreeHost_(pinned), CUDA_SUCCESS);
  EXPECT_EQ(api().cuEventDestroy_(e), CUDA_SUCCESS);
}

TEST_F(EmulatedCapture, AnotherThreadMayWorkOnUnlessTheModeIsGlobal) {
  for (const auto mode : {CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_GLOBAL}) {
    begin(mode);
    CUresult allocated = CUDA_SUCCESS;
    CUdeviceptr p = 0;
    std::thread([&] {
      api().cuCtxSetCurrent_(context());
      allocated = api().cuMemAlloc_(&p, 8);
    }).join();
    if (mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) {
      EXPECT_EQ(allocated, CUDA_SUCCESS);
      EXPECT_EQ(end(), CUDA_SUCCESS);
      EXPECT_EQ(api().cuMemFree_(p), CUDA_SUCCESS);
    } else {
      expect_refusal(allocated, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuMemAlloc");
      expect_refusal(end(), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "");
    }
  }
}

// A second stream joins by an event, and its work must be joined in turn. Between them any order will do.
TEST_F(EmulatedCapture, ForkAndJoin) {
  const CUstream side = new_stream();
  const CUevent fork = new_event(), join = new_event();
  const CUdeviceptr x = upload<float>({0}), y = upload<float>({0});
  begin();
  ASSERT_EQ(launch("fill", 1, 32, x, 2.0f, 1), CUDA_SUCCESS);
  ASSERT_EQ(api().cuEventRecord_(fork, stream()), CUDA_SUCCESS);
  ASSERT_EQ(api().cuStreamWaitEvent_(side, fork, 0), CUDA_SUCCESS);
  ASSERT_EQ(launch_on(side, "fill", 1, 32, y, 3.0f, 1), CUDA_SUCCESS);
  ASSERT_EQ(launch("affine", 1, 32, x, 10.0f, 0.0f, 1), CUDA_SUCCESS);
  ASSERT_EQ(api().cuEventRecord_(join, side), CUDA_SUCCESS);
  ASSERT_EQ(api().cuStreamWaitEvent_(stream(), join, 0), CUDA_SUCCESS);
  ASSERT_EQ(launch("add_to", 1, 32, x, y, 1), CUDA_SUCCESS);
  CUgraph graph = nullptr;
  ASSERT_EQ(end(&graph), CUDA_SUCCESS);
  CUgraphExec exec = nullptr;
  ASSERT_EQ(api().cuGraphInstantiateWithFlags_(&exec, graph, 0), CUDA_SUCCESS);
  for (int i = 0; i < 8; ++i) {
    ASSERT_EQ(api().cuGraphLaunch_(exec, stream()), CUDA_SUCCESS);
    EXPECT_EQ(download<float>(x, 1)[0], 23);
  }
  api().cuGraphExecDestroy_(exec);
  api().cuGraphDestroy_(graph);
  api().cuEventDestroy_(fork);
  api().cuEventDestroy_(join);
}

TEST_F(EmulatedCapture, LooseEndsAndWorkFromOutsideAreErrors) {
  const CUstream side = new_stream();
  const CUevent e = new_event(), outside = new_event();
  const CUdeviceptr p = upload<float>({0});
  begin();
  ASSERT_EQ(api().cuEventRecord_(e, stream()), CUDA_SUCCESS);
  ASSERT_EQ(api().cuStreamWaitEvent_(side, e, 0), CUDA_SUCCESS);
  ASSERT_EQ(launch_on(side, "fill", 1, 32, p, 1.0f, 1), CUDA_SUCCESS);
  expect_refusal(end(), CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "cuStreamEndCapture");

  ASSERT_EQ(api().cuEventRecord_(outside, side), CUDA_SUCCESS);
  begin();
  expect_refusal(api().cuStreamWaitEvent_(stream(), outside, 0), CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                 "cuStreamWaitEvent");
  expect_refusal(end(), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "cuStreamEndCapture");

  begin();
  expect_refusal(api().cuStreamBeginCapture_(stream(), CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), CUDA_ERROR_ILLEGAL_STATE,
                 "cuStreamBeginCapture");
  EXPECT_EQ(end(), CUDA_SUCCESS);
  expect_refusal(end(), CUDA_ERROR_ILLEGAL_STATE, "cuStreamEndCapture");
  api().cuEventDestroy_(e);
  api().cuEventDestroy_(outside);
}

// As the backend does it.
TEST_F(EmulatedCapture, TheDeviceCapturesReplaysAndAbandons) {
  cuda::Device device(tables());
  void* p = device.allocate(64);
  device.zero(p, 64);
  const cuda::Device::Counters before = device.counters();
  device.begin_capture();
  SG_EXPECT_ERROR(internal, "while a graph is captured", device.synchronize());
  device.abandon_capture();
  device.begin_capture();
  device.zero(p, 32);
  std::size_t nodes = 0;
  const CUgraphExec graph = device.end_capture(&nodes);
  EXPECT_EQ(nodes, 1u);
  device.replay(graph);
  EXPECT_EQ(device.counters().replays, before.replays + 1);
  device.synchronize();
  device.destroy(graph);
  device.begin_capture();
  SG_EXPECT_ERROR(backend, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", device.allocate(8));
  SG_EXPECT_ERROR(backend, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", device.end_capture());
  clear();
  device.release(p);
}

}  // namespace
}  // namespace sg::test
