// The one emulated machine of a process: its memory, its streams, what it counts and what went wrong. What the
// functions of the driver's table and those of the stand-in for cuBLASLt share.
#pragma once
#include <cuda.h>
#include <fmt/format.h>

#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "tests/cuda_emulator/emulated_driver.h"
#include "tests/cuda_emulator/emulated_memory.h"
#include "tests/cuda_emulator/emulated_streams.h"

namespace sg::cuda::emulated {

// What a function of the driver asks before it does anything.
enum class Needs : std::uint8_t {
  nothing,
  driver,   // cuInit
  context,  // of the calling thread, in a machine that did not fail
  waiting   // a context; and it may wait for the device, which is forbidden while a graph is captured
};

class Machine {
 public:
  static Machine& instance();  // lives for ever

  std::recursive_mutex mutex;
  EmulatorOptions options;
  DeviceMemory memory;
  Streams streams;
  EmulatorCounters counters;
  CUresult failure = CUDA_SUCCESS;  // of a kernel or a copy that ran: every later call answers it
  bool initialised = false;
  int retained = 0;  // how often the primary context is

  // Runs everything that waits first, because it was enqueued under the options of before.
  void set_options(const EmulatorOptions& wanted);

  // All functions of the driver begin here.
  template <class F>
  CUresult call(const char* function, Needs needs, F body) {
    const std::lock_guard lock(mutex);
    if (const CUresult r = enter(function, needs); r != CUDA_SUCCESS) return r;
    return body();
  }

  // Answers `r`, and the report says why.
  template <class... A>
  CUresult refuse(CUresult r, fmt::format_string<A...> format, A&&... arguments) {
    add_report(fmt::format(format, std::forward<A>(arguments)...));
    return r;
  }
  // Something that ran failed: the machine answers `r` from now on.
  void fail_running(CUresult r, const std::string& report);

  // Streams run inside, with the memory open from the first to the last of what they run.
  template <class F>
  void drive(F body) {
    if (streams.idle()) return body();
    const DeviceMemory::Open open(memory);
    body();
  }
  // Work that is skipped where the machine has failed by then, and runs with the memory open.
  CUresult enqueue(CUstream stream, Work work);

  // Whether [p, p + bytes) can be read, or written, by work that runs now: fails where it cannot.
  bool readable(std::uint64_t p, std::size_t bytes, const std::string& by);
  bool writable(std::uint64_t p, std::size_t bytes, const std::string& by);

  void context_gone();
  std::uint64_t next_launch() { return options.seed + launch_++; }

  std::string report;
  std::map<std::string, std::pair<int, CUresult>> injected;  // by function: after how many calls, and what

 private:
  Machine() = default;
  CUresult enter(const char* function, Needs needs);
  void add_report(const std::string& text);
  std::uint64_t launch_ = 0;
};

CUcontext& current_context();  // of the calling thread
CUcontext primary_context();

CUresult error_name(CUresult r, const char** text);

void fill_driver(DriverApi& table);   // all but modules
void fill_errors(DriverApi& table);   // names and words; part of fill_driver
void fill_modules(DriverApi& table);  // modules, functions, launches
void fill_blas(BlasApi& table);

}  // namespace sg::cuda::emulated
