// An emulated CUDA driver behind DriverApi, and a stand-in for the cuBLASLt calls that are used. Kernels are the images
// that the product loads: the PTX in its fatbins, or PTX from NVRTC, run by the interpreter of ptx/. For tests only,
// and nothing about it says anything of speed.
//
// It is strict where a GPU is forgiving. Device memory cannot be touched by the host, and fresh memory is filled with
// 0xFF. Streams are lazy: work runs when something waits for it, and no sooner than its dependencies demand. What is
// not allowed while a graph is captured fails and spoils the capture. A fault of a kernel makes every later call fail.
//
// There is one emulated machine in a process, as there is one driver. Calls may come from several threads.
#pragma once
#include <cstdint>
#include <string>

#include "backends/cuda/api.h"

namespace sg::cuda {

struct EmulatorOptions {
  std::uint64_t seed = 1;  // of the order of warps and blocks, and of streams: odd seeds run what is waited for and
                           // nothing else; even seeds run work of other streams in between
  bool lazy = true;        // false: everything runs when it is enqueued
  bool check_races = false;
  bool check_initialised = false;
  std::size_t memory = std::size_t{4} << 30;  // of the device, bytes
  bool nvrtc = true;                          // the real NVRTC, where this machine has it: it needs no GPU
  bool blas = true;
};

// The machine behaves as `options` say from now on, whatever has been made of it already. The tables live for ever.
const Tables& emulated_tables(const EmulatorOptions& options = {});

// What went wrong since the last clear_emulated_failure(): reports of kernels with source line and thread, calls that
// were refused and why. Empty where all is well.
std::string emulated_report();
// Forgets the report and lets a machine that failed go on; work that is still waiting in streams is dropped.
void clear_emulated_failure();

// Since the process started. Those of memory count calls; `kernels` counts those that ran, also as nodes of graphs.
struct EmulatorCounters {
  std::uint64_t allocations = 0, host_allocations = 0, launches = 0, kernels = 0, copies = 0, products = 0, replays = 0,
                synchronisations = 0;
  std::uint64_t live_bytes = 0, live_allocations = 0;  // of device memory, now
};
const EmulatorCounters& emulator_counters();

// The nth call from now (1: the next) of a function of the driver, "cuMemAlloc", answers `result` and does nothing.
void fail_emulated_call(const std::string& function, int nth, CUresult result);

// Machine options for the life of one object; then those of before, and no failure left behind.
class EmulatorScope {
 public:
  explicit EmulatorScope(const EmulatorOptions& options);
  ~EmulatorScope();
  EmulatorScope(const EmulatorScope&) = delete;
  EmulatorScope& operator=(const EmulatorScope&) = delete;
  const Tables& tables() const { return *tables_; }

 private:
  EmulatorOptions before_;
  const Tables* tables_;
};

}  // namespace sg::cuda
