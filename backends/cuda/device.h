// One GPU: its primary context, one stream, the kernels embedded in this library, and typed launches. All work of the
// backend is enqueued on stream(); while a graph is captured, what is enqueued becomes nodes of it.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "backends/cuda/api.h"
#include "core/error.h"

namespace sg::cuda {

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

// What a launch needs beside its arguments. shared: bytes of dynamic shared memory per block.
struct Launch {
  Grid grid, block;
  unsigned shared = 0;
};

// Static facts of a loaded kernel, for explain() and the checks of CI.
struct KernelFacts {
  std::string name;
  int registers = 0, static_shared = 0, local_bytes = 0, max_threads = 0;
};

class Device {
 public:
  // Error{backend} saying what is missing (no driver, no GPU) and what the driver answered.
  explicit Device(const Tables& tables, int ordinal = 0);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Tables& tables() const { return tables_; }
  const DriverApi& driver() const { return tables_.driver; }
  CUstream stream() const { return stream_; }
  const std::string& name() const { return name_; }       // "NVIDIA H100 ..." or "EMULATED sm_90 (host interpreter, not a GPU)"
  int arch() const { return arch_; }                       // 80, 90, ...
  int multiprocessors() const { return multiprocessors_; }
  int max_shared() const { return max_shared_; }           // bytes of shared memory that a block may opt into

  // Throws Error{backend} naming the call and the driver's words where r is not CUDA_SUCCESS.
  void check(CUresult r, const char* call) const;

  // A kernel of the embedded image `file` (backends/cuda/kernels/<file>.cu), loaded at the first use of the file.
  CUfunction embedded(std::string_view file, const std::string& kernel);
  // A module made at run time: a cubin or PTX text. Kept until the device goes.
  CUmodule load(const void* image, const std::string& what);
  CUfunction function(CUmodule module, const std::string& kernel);
  std::map<std::string, CUmodule>& made() { return made_; }  // at run time, by what they were made of (jit.cc)
  KernelFacts facts(CUfunction f, std::string name) const;
  void allow_shared(CUfunction f, unsigned bytes);          // opt in to more than 48 KiB of dynamic shared memory
  int blocks_per_multiprocessor(CUfunction f, int threads, unsigned shared) const;

  // cuBLASLt's handle, made at the first call; the calling thread may then use it with stream(). Error{backend} saying
  // what is missing where the library is absent.
  cublasLtHandle_t blas();

  // Enqueues. The number and sizes of the parameters are checked against the kernel once, at Kernel's construction.
  void launch(CUfunction f, const Launch& how, void** parameters);
  void check_parameters(CUfunction f, const std::string& name, const std::size_t* sizes, std::size_t count) const;

  // Device memory, 256-byte aligned. Out of memory: Error{backend} with what was asked for and what is free.
  void* allocate(std::size_t bytes);
  void release(void* p) noexcept;
  void fill(void* p, std::byte value, std::size_t bytes);    // enqueued
  void zero(void* p, std::size_t bytes) { fill(p, std::byte{0}, bytes); }
  void copy(void* dst, const void* src, std::size_t bytes);  // device to device, enqueued
  void upload(void* dst, const void* src, std::size_t bytes);    // through pinned staging; src may be reused at return; no synchronisation unless the ring is full
  void download(void* dst, const void* src, std::size_t bytes);  // waits for the stream
  void synchronize();

  // Capture of everything enqueued between the two calls; end_capture gives the instantiated graph, ready to launch.
  void begin_capture();
  CUgraphExec end_capture(std::size_t* nodes = nullptr);
  void abandon_capture() noexcept;
  void replay(CUgraphExec graph);
  void destroy(CUgraphExec graph) noexcept;

  struct Counters { std::uint64_t allocations = 0, launches = 0, replays = 0, synchronisations = 0, live_bytes = 0; };
  const Counters& counters() const { return counters_; }

 private:
  struct Impl;
  const Tables& tables_;
  std::string name_;
  int arch_ = 0, multiprocessors_ = 0, max_shared_ = 0;
  CUstream stream_ = nullptr;
  Counters counters_;
  std::map<std::string, CUmodule> made_;
  std::unique_ptr<Impl> impl_;
};

// A kernel whose parameters the compiler checks against the call and the driver against the kernel.
//   Kernel<const float*, float*, std::int64_t> scale(device, "elementwise", "scale_f32");
//   scale({{blocks}, {256}}, x, y, n);
template <class... P>
class Kernel {
 public:
  static_assert((std::is_trivially_copyable_v<P> && ...), "kernel parameters are copied as bytes");
  Kernel() = default;
  Kernel(Device& device, std::string_view file, const std::string& name) : Kernel(device, device.embedded(file, name), name) {}
  Kernel(Device& device, CUfunction f, const std::string& name) : device_(&device), f_(f) {
    const std::array<std::size_t, sizeof...(P)> sizes{sizeof(P)...};
    device.check_parameters(f, name, sizes.data(), sizes.size());
  }
  void operator()(const Launch& how, P... args) const {
    std::array<void*, sizeof...(P)> parameters{const_cast<void*>(static_cast<const void*>(&args))...};
    device_->launch(f_, how, parameters.data());
  }
  CUfunction handle() const { return f_; }

 private:
  Device* device_ = nullptr;
  CUfunction f_ = nullptr;
};

}  // namespace sg::cuda
