// The functions of the driver's table but for modules and launches (emulated_modules.cc).
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "tests/cuda_emulator/emulated_machine.h"

namespace sg::cuda::emulated {
namespace {

Machine& machine() { return Machine::instance(); }
std::uint64_t address(const void* p) { return reinterpret_cast<std::uint64_t>(p); }
unsigned char* bytes_at(std::uint64_t p) { return reinterpret_cast<unsigned char*>(p); }

// ---- device

void fill_device(DriverApi& table) {
  table.cuInit_ = [](unsigned flags) -> CUresult {
    return machine().call("cuInit", Needs::nothing, [&] {
      if (flags != 0) return machine().refuse(CUDA_ERROR_INVALID_VALUE, "cuInit: flags must be 0");
      machine().initialised = true;
      return CUDA_SUCCESS;
    });
  };
  table.cuDriverGetVersion_ = [](int* version) -> CUresult {
    *version = CUDA_VERSION;
    return CUDA_SUCCESS;
  };
  table.cuDeviceGetCount_ = [](int* count) -> CUresult {
    return machine().call("cuDeviceGetCount", Needs::driver, [&] {
      *count = 1;
      return CUDA_SUCCESS;
    });
  };
  table.cuDeviceGet_ = [](CUdevice* device, int ordinal) -> CUresult {
    return machine().call("cuDeviceGet", Needs::driver, [&] {
      *device = 0;
      return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
    });
  };
  table.cuDeviceGetName_ = [](char* name, int length, CUdevice device) -> CUresult {
    return machine().call("cuDeviceGetName", Needs::driver, [&] {
      if (device != 0 || length < 1) return CUDA_ERROR_INVALID_VALUE;
      std::snprintf(name, static_cast<std::size_t>(length), "EMULATED sm_90 (host interpreter, not a GPU)");
      return CUDA_SUCCESS;
    });
  };
  table.cuDeviceTotalMem_ = [](std::size_t* bytes, CUdevice device) -> CUresult {
    return machine().call("cuDeviceTotalMem", Needs::driver, [&] {
      *bytes = machine().options.memory;
      return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
    });
  };
  // Limits of sm_90, but for the number of multiprocessors: few, so that kernels that fill the device stay small.
  table.cuDeviceGetAttribute_ = [](int* value, CUdevice_attribute which, CUdevice device) -> CUresult {
    return machine().call("cuDeviceGetAttribute", Needs::driver, [&] {
      if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
      switch (which) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
          *value = 9;
          break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
          *value = 0;
          break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
          *value = 4;
          break;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
          *value = 32;
          break;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
          *value = 1024;
          break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
          *value = 48 << 10;
          break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
          *value = 227 << 10;
          break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
          *value = 228 << 10;
          break;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
          *value = 1 << 16;
          break;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
          *value = 2048;
          break;
        default:
          return machine().refuse(CUDA_ERROR_INVALID_VALUE, "cuDeviceGetAttribute: {} is not emulated",
                                  static_cast<int>(which));
      }
      return CUDA_SUCCESS;
    });
  };
  table.cuDevicePrimaryCtxRetain_ = [](CUcontext* context, CUdevice) -> CUresult {
    return machine().call("cuDevicePrimaryCtxRetain", Needs::driver, [&] {
      ++machine().retained;
      *context = primary_context();
      return CUDA_SUCCESS;
    });
  };
  table.cuDevicePrimaryCtxRelease_ = [](CUdevice) -> CUresult {
    return machine().call("cuDevicePrimaryCtxRelease", Needs::driver, [&] {
      Machine& m = machine();
      if (m.retained == 0) return m.refuse(CUDA_ERROR_INVALID_CONTEXT, "cuDevicePrimaryCtxRelease: once too often");
      if (--m.retained == 0) m.context_gone();
      return CUDA_SUCCESS;
    });
  };
  table.cuCtxSetCurrent_ = [](CUcontext context) -> CUresult {
    return machine().call("cuCtxSetCurrent", Needs::driver, [&] {
      if (context != nullptr && context != primary_context())
        return machine().refuse(CUDA_ERROR_INVALID_CONTEXT, "cuCtxSetCurrent: no such context");
      current_context() = context;
      return CUDA_SUCCESS;
    });
  };
  table.cuCtxSynchronize_ = []() -> CUresult {
    return machine().call("cuCtxSynchronize", Needs::waiting, [&] {
      Machine& m = machine();
      ++m.counters.synchronisations;
      m.drive([&] { m.streams.run_all(); });
      return m.failure;
    });
  };
}

// ---- memory

CUresult release_device(CUdeviceptr p) {
  return machine().call("cuMemFree", Needs::waiting, [&] {
    Machine& m = machine();
    m.drive([&] { m.streams.run_all(); });  // a driver waits here as well
    if (p != 0 && !m.memory.release(p))
      return m.refuse(CUDA_ERROR_INVALID_VALUE, "cuMemFree: no allocation begins at {:#x}", p);
    m.counters.live_bytes = m.memory.live_bytes();
    m.counters.live_allocations = m.memory.live_allocations();
    return m.failure;
  });
}

// Of a copy or a fill: that the ranges are there now. They are looked at again when it runs.
CUresult check_range(const char* function, const char* role, CUdeviceptr p, std::size_t bytes) {
  if (machine().memory.holds(p, bytes)) return CUDA_SUCCESS;
  return machine().refuse(CUDA_ERROR_INVALID_VALUE, "{}: {} bytes at {:#x} ({}) are not inside one allocation",
                          function, bytes, p, role);
}

CUresult check_stream(const char* function, CUstream stream) {
  if (machine().streams.known(stream)) return CUDA_SUCCESS;
  return machine().refuse(CUDA_ERROR_INVALID_HANDLE, "{}: {}", function,
                          stream == nullptr ? "on the default stream, which nothing here uses" : "no such stream");
}

bool capturing(CUstream stream) { return stream->position.capture != nullptr; }

CUresult pageable_in_capture(const char* function, CUstream stream) {
  stream->position.capture->spoiled = true;
  return machine().refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                          "{}: host memory that is not pinned, while a graph is captured", function);
}

CUresult copy_to_device(CUdeviceptr dst, const void* src, std::size_t bytes, CUstream stream) {
  static constexpr const char* name = "cuMemcpyHtoDAsync";
  return machine().call(name, Needs::context, [&] {
    Machine& m = machine();
    if (const CUresult r = check_stream(name, stream); r != CUDA_SUCCESS) return r;
    if (const CUresult r = check_range(name, "destination", dst, bytes); r != CUDA_SUCCESS) return r;
    ++m.counters.copies;
    const bool pinned = m.memory.pinned(src, bytes);
    if (!pinned && capturing(stream)) return pageable_in_capture(name, stream);
    // What is not pinned has left the caller's memory at return.
    std::shared_ptr<std::vector<unsigned char>> kept;
    if (!pinned) {
      const auto* first = static_cast<const unsigned char*>(src);
      kept = std::make_shared<std::vector<unsigned char>>(first, first + bytes);
    }
    return m.enqueue(stream, [&m, dst, src, bytes, kept] {
      if (!m.writable(dst, bytes, name)) return;
      if (!kept && !m.memory.pinned(src, bytes))
        return m.fail_running(CUDA_ERROR_ILLEGAL_ADDRESS,
                              "cuMemcpyHtoDAsync: its pinned source was freed before it ran");
      std::memcpy(bytes_at(dst), kept ? kept->data() : src, bytes);
      m.memory.mark_written(dst, bytes);
    });
  });
}

CUresult copy_to_host(void* dst, CUdeviceptr src, std::size_t bytes, CUstream stream) {
  static constexpr const char* name = "cuMemcpyDtoHAsync";
  return machine().call(name, Needs::context, [&] {
    Machine& m = machine();
    if (const CUresult r = check_stream(name, stream); r != CUDA_SUCCESS) return r;
    if (const CUresult r = check_range(name, "source", src, bytes); r != CUDA_SUCCESS) return r;
    if (m.memory.holds(address(dst), 1))
      return m.refuse(CUDA_ERROR_INVALID_VALUE, "{}: the destination is on the device", name);
    ++m.counters.copies;
    if (!m.memory.pinned(dst, bytes)) {
      if (capturing(stream)) return pageable_in_capture(name, stream);
      ++m.counters.synchronisations;  // a driver waits for it; here the caller must, as for pinned memory
    }
    return m.enqueue(stream, [&m, dst, src, bytes] {
      if (m.readable(src, bytes, name)) std::memcpy(dst, bytes_at(src), bytes);
    });
  });
}

CUresult copy_on_device(CUdeviceptr dst, CUdeviceptr src, std::size_t bytes, CUstream stream) {
  static constexpr const char* name = "cuMemcpyDtoDAsync";
  return machine().call(name, Needs::context, [&] {
    Machine& m = machine();
    if (const CUresult r = check_stream(name, stream); r != CUDA_SUCCESS) return r;
    if (const CUresult r = check_range(name, "source", src, bytes); r != CUDA_SUCCESS) return r;
    if (const CUresult r = check_range(name, "destination", dst, bytes); r != CUDA_SUCCESS) return r;
    if (dst < src + bytes && src < dst + bytes && bytes > 0)
      return m.refuse(CUDA_ERROR_INVALID_VALUE, "{}: source and destination overlap", name);
    ++m.counters.copies;
    return m.enqueue(stream, [&m, dst, src, bytes] {
      if (!m.writable(dst, bytes, name) || !m.memory.holds(src, bytes)) {
        m.readable(src, bytes, name);
        return;
      }
      std::memcpy(bytes_at(dst), bytes_at(src), bytes);
      m.memory.copied(dst, src, bytes);  // what nobody wrote may be copied; only using it is an error
    });
  });
}

void fill_memory(DriverApi& table) {
  table.cuMemGetInfo_ = [](std::size_t* free, std::size_t* total) -> CUresult {
    return machine().call("cuMemGetInfo", Needs::context, [&] {
      *total = machine().options.memory;
      *free = *total - std::min(*total, machine().memory.live_bytes());
      return CUDA_SUCCESS;
    });
  };
  table.cuMemAlloc_ = [](CUdeviceptr* p, std::size_t bytes) -> CUresult {
    return machine().call("cuMemAlloc", Needs::waiting, [&] {
      Machine& m = machine();
      if (bytes == 0) return m.refuse(CUDA_ERROR_INVALID_VALUE, "cuMemAlloc: of 0 bytes");
      *p = m.memory.allocate(bytes, m.options.memory, m.options.check_initialised);
      if (*p == 0) return CUDA_ERROR_OUT_OF_MEMORY;
      ++m.counters.allocations;
      m.counters.live_bytes = m.memory.live_bytes();
      m.counters.live_allocations = m.memory.live_allocations();
      return CUDA_SUCCESS;
    });
  };
  table.cuMemFree_ = release_device;
  table.cuMemHostAlloc_ = [](void** p, std::size_t bytes, unsigned flags) -> CUresult {
    return machine().call("cuMemHostAlloc", Needs::waiting, [&] {
      Machine& m = machine();
      if (bytes == 0 || flags != 0) return m.refuse(CUDA_ERROR_INVALID_VALUE, "cuMemHostAlloc: of 0 bytes, or flags");
      *p = m.memory.allocate_pinned(bytes);
      if (*p == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
      ++m.counters.host_allocations;
      return CUDA_SUCCESS;
    });
  };
  table.cuMemFreeHost_ = [](void* p) -> CUresult {
    return machine().call("cuMemFreeHost", Needs::waiting, [&] {
      Machine& m = machine();
      m.drive([&] { m.streams.run_all(); });
      if (!m.memory.release_pinned(p))
        return m.refuse(CUDA_ERROR_INVALID_VALUE, "cuMemFreeHost: no pinned allocation begins at {}", p);
      return m.failure;
    });
  };
  table.cuMemcpyHtoDAsync_ = copy_to_device;
  table.cuMemcpyDtoHAsync_ = copy_to_host;
  table.cuMemcpyDtoDAsync_ = copy_on_device;
  table.cuMemsetD8Async_ = [](CUdeviceptr dst, unsigned char value, std::size_t bytes, CUstream stream) -> CUresult {
    static constexpr const char* name = "cuMemsetD8Async";
    return machine().call(name, Needs::context, [&] {
      Machine& m = machine();
      if (const CUresult r = check_stream(name, stream); r != CUDA_SUCCESS) return r;
      if (const CUresult r = check_range(name, "destination", dst, bytes); r != CUDA_SUCCESS) return r;
      return m.enqueue(stream, [&m, dst, value, bytes] {
        if (!m.writable(dst, bytes, name)) return;
        std::memset(bytes_at(dst), value, bytes);
        m.memory.mark_written(dst, bytes);
      });
    });
  };
}

// ---- streams and events

// What Streams answered, with a line in the report where it is a refusal.
CUresult told(const char* function, CUresult r) {
  if (r == CUDA_SUCCESS || r == CUDA_ERROR_NOT_READY) return r;
  const char* name = "";
  error_name(r, &name);
  return machine().refuse(r, "{}: {}", function, name);
}

void fill_streams(DriverApi& table) {
  table.cuStreamCreate_ = [](CUstream* stream, unsigned flags) -> CUresult {
    return machine().call("cuStreamCreate", Needs::context, [&] {
      if (flags != CU_STREAM_NON_BLOCKING)
        return machine().refuse(CUDA_ERROR_INVALID_VALUE, "cuStreamCreate: only non-blocking streams are emulated");
      *stream = machine().streams.create_stream();
      return CUDA_SUCCESS;
    });
  };
  table.cuStreamDestroy_ = [](CUstream stream) -> CUresult {
    return machine().call("cuStreamDestroy", Needs::driver, [&] {
      CUresult r = CUDA_SUCCESS;
      machine().drive([&] { r = machine().streams.destroy(stream); });
      return told("cuStreamDestroy", r);
    });
  };
  table.cuStreamSynchronize_ = [](CUstream stream) -> CUresult {
    return machine().call("cuStreamSynchronize", Needs::context, [&] {
      Machine& m = machine();
      if (const CUresult r = check_stream("cuStreamSynchronize", stream); r != CUDA_SUCCESS) return r;
      if (capturing(stream) || m.streams.forbids_waiting()) {
        if (capturing(stream)) stream->position.capture->spoiled = true;
        m.streams.spoil_forbidding();
        return told("cuStreamSynchronize", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
      }
      ++m.counters.synchronisations;
      m.drive([&] { m.streams.run_until_empty(stream); });
      return m.failure;
    });
  };
  table.cuStreamWaitEvent_ = [](CUstream stream, CUevent event, unsigned flags) -> CUresult {
    return machine().call("cuStreamWaitEvent", Needs::context, [&] {
      if (flags != 0) return machine().refuse(CUDA_ERROR_INVALID_VALUE, "cuStreamWaitEvent: flags must be 0");
      return told("cuStreamWaitEvent", machine().streams.wait(stream, event));
    });
  };
  table.cuStreamIsCapturing_ = [](CUstream stream, CUstreamCaptureStatus* status) -> CUresult {
    return machine().call("cuStreamIsCapturing", Needs::context, [&] {
      if (const CUresult r = check_stream("cuStreamIsCapturing", stream); r != CUDA_SUCCESS) return r;
      *status = !capturing(stream)                  ? CU_STREAM_CAPTURE_STATUS_NONE
                : stream->position.capture->spoiled ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                                    : CU_STREAM_CAPTURE_STATUS_ACTIVE;
      return CUDA_SUCCESS;
    });
  };
  table.cuEventCreate_ = [](CUevent* event, unsigned flags) -> CUresult {
    return machine().call("cuEventCreate", Needs::context, [&] {
      *event = machine().streams.create_event((flags & CU_EVENT_DISABLE_TIMING) == 0);
      return CUDA_SUCCESS;
    });
  };
  table.cuEventDestroy_ = [](CUevent event) -> CUresult {
    return machine().call("cuEventDestroy", Needs::driver,
                          [&] { return told("cuEventDestroy", machine().streams.destroy(event)); });
  };
  table.cuEventRecord_ = [](CUevent event, CUstream stream) -> CUresult {
    return machine().call("cuEventRecord", Needs::context,
                          [&] { return told("cuEventRecord", machine().streams.record(event, stream)); });
  };
  table.cuEventQuery_ = [](CUevent event) -> CUresult {
    return machine().call("cuEventQuery", Needs::waiting, [&] {
      const CUresult r = machine().streams.query(event);
      return machine().failure != CUDA_SUCCESS ? machine().failure : told("cuEventQuery", r);
    });
  };
  table.cuEventSynchronize_ = [](CUevent event) -> CUresult {
    return machine().call("cuEventSynchronize", Needs::waiting, [&] {
      Machine& m = machine();
      if (!m.streams.known(event)) return told("cuEventSynchronize", CUDA_ERROR_INVALID_HANDLE);
      if (event->captured.capture) return told("cuEventSynchronize", CUDA_ERROR_CAPTURED_EVENT);
      ++m.counters.synchronisations;
      m.drive([&] { m.streams.run_until_done(event); });
      return m.failure;
    });
  };
  table.cuEventElapsedTime_ = [](float*, CUevent, CUevent) -> CUresult {
    return machine().refuse(CUDA_ERROR_NOT_SUPPORTED, "cuEventElapsedTime: the emulated device has no clock");
  };
}

// ---- graphs

void fill_graphs(DriverApi& table) {
  table.cuStreamBeginCapture_ = [](CUstream stream, CUstreamCaptureMode mode) -> CUresult {
    return machine().call("cuStreamBeginCapture", Needs::context,
                          [&] { return told("cuStreamBeginCapture", machine().streams.begin_capture(stream, mode)); });
  };
  table.cuStreamEndCapture_ = [](CUstream stream, CUgraph* graph) -> CUresult {
    return machine().call("cuStreamEndCapture", Needs::context,
                          [&] { return told("cuStreamEndCapture", machine().streams.end_capture(stream, graph)); });
  };
  table.cuGraphInstantiateWithFlags_ = [](CUgraphExec* exec, CUgraph graph, unsigned long long flags) -> CUresult {
    return machine().call("cuGraphInstantiateWithFlags", Needs::context, [&] {
      if (graph == nullptr || flags != 0)
        return machine().refuse(CUDA_ERROR_INVALID_VALUE, "cuGraphInstantiateWithFlags: no graph, or flags");
      *exec = new CUgraphExec_st{graph->nodes};
      return CUDA_SUCCESS;
    });
  };
  table.cuGraphLaunch_ = [](CUgraphExec exec, CUstream stream) -> CUresult {
    return machine().call("cuGraphLaunch", Needs::context, [&] {
      if (exec == nullptr) return machine().refuse(CUDA_ERROR_INVALID_HANDLE, "cuGraphLaunch: no graph");
      ++machine().counters.replays;
      return told("cuGraphLaunch", machine().streams.launch(exec, stream));
    });
  };
  table.cuGraphGetNodes_ = [](CUgraph graph, CUgraphNode* nodes, std::size_t* count) -> CUresult {
    return machine().call("cuGraphGetNodes", Needs::driver, [&] {
      if (graph == nullptr || nodes != nullptr)
        return machine().refuse(CUDA_ERROR_INVALID_VALUE,
                                "cuGraphGetNodes: no graph, or more than the number is asked for");
      *count = graph->nodes->size();
      return CUDA_SUCCESS;
    });
  };
  table.cuGraphDestroy_ = [](CUgraph graph) -> CUresult {
    delete graph;
    return graph == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
  };
  table.cuGraphExecDestroy_ = [](CUgraphExec exec) -> CUresult {
    delete exec;
    return exec == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
  };
}

}  // namespace

void fill_driver(DriverApi& table) {
  fill_device(table);
  fill_memory(table);
  fill_streams(table);
  fill_graphs(table);
  fill_errors(table);
}

}  // namespace sg::cuda::emulated
