#include "tests/cuda_emulator/emulated_machine.h"

namespace sg::cuda {
namespace emulated {
namespace {
constexpr std::size_t kLongestReport = 1 << 16;
}

Machine& Machine::instance() {
  static Machine* const machine = new Machine;
  return *machine;
}

CUcontext primary_context() {
  static int tag = 0;
  return reinterpret_cast<CUcontext>(&tag);
}

CUcontext& current_context() {
  thread_local CUcontext current = nullptr;
  return current;
}

void Machine::set_options(const EmulatorOptions& wanted) {
  const std::lock_guard lock(mutex);
  drive([&] { streams.run_all(); });
  if (options.check_initialised && !wanted.check_initialised) memory.stop_tracking();
  options = wanted;
  launch_ = 0;
  streams.set_order(wanted.seed, wanted.lazy);
}

void Machine::add_report(const std::string& text) {
  if (report.size() < kLongestReport) report += text + (text.ends_with('\n') ? "" : "\n");
}

CUresult Machine::enter(const char* function, Needs needs) {
  if (const auto found = injected.find(function); found != injected.end() && --found->second.first == 0) {
    const CUresult r = found->second.second;
    injected.erase(found);
    return r;
  }
  if (needs == Needs::nothing) return CUDA_SUCCESS;
  if (!initialised) return refuse(CUDA_ERROR_NOT_INITIALIZED, "{}: before cuInit", function);
  if (needs == Needs::driver) return CUDA_SUCCESS;
  if (current_context() == nullptr || retained == 0)
    return refuse(CUDA_ERROR_INVALID_CONTEXT, "{}: the calling thread has no current context", function);
  if (failure != CUDA_SUCCESS) return failure;
  if (needs == Needs::waiting && streams.forbids_waiting()) {
    streams.spoil_forbidding();
    return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "{}: not allowed while a graph is captured", function);
  }
  return CUDA_SUCCESS;
}

void Machine::fail_running(CUresult r, const std::string& text) {
  add_report(text);
  if (failure == CUDA_SUCCESS) failure = r;
}

CUresult Machine::enqueue(CUstream stream, Work work) {
  return streams.enqueue(stream, [this, work = std::move(work)] {
    if (failure != CUDA_SUCCESS) return;
    const DeviceMemory::Open open(memory);
    work();
  });
}

bool Machine::readable(std::uint64_t p, std::size_t bytes, const std::string& by) {
  if (!memory.holds(p, bytes)) {
    fail_running(CUDA_ERROR_ILLEGAL_ADDRESS,
                 fmt::format("{}: reads {} bytes at {:#x}, which are not inside one allocation", by, bytes, p));
    return false;
  }
  if (options.check_initialised && !memory.all_written(p, bytes)) {
    fail_running(CUDA_ERROR_LAUNCH_FAILED,
                 fmt::format("{}: reads {} bytes at {:#x}, not all of which were written", by, bytes, p));
    return false;
  }
  return true;
}

bool Machine::writable(std::uint64_t p, std::size_t bytes, const std::string& by) {
  if (memory.holds(p, bytes)) return true;
  fail_running(CUDA_ERROR_ILLEGAL_ADDRESS,
               fmt::format("{}: writes {} bytes at {:#x}, which are not inside one allocation", by, bytes, p));
  return false;
}

void Machine::context_gone() {
  drive([&] { streams.run_all(); });
  streams.drop_all();
  if (memory.live_allocations() > 0 && failure == CUDA_SUCCESS)
    add_report(fmt::format("cuDevicePrimaryCtxRelease: {} allocations of {} bytes were left", memory.live_allocations(),
                           memory.live_bytes()));
  memory.release_all();
  counters.live_bytes = counters.live_allocations = 0;
}

}  // namespace emulated

using emulated::Machine;

const Tables& emulated_tables(const EmulatorOptions& options) {
  static const auto make = [](bool nvrtc, bool blas) {
    auto* t = new Tables;
    t->emulated = true;
    emulated::fill_driver(t->driver);
    emulated::fill_modules(t->driver);
    if (blas)
      emulated::fill_blas(t->blas);
    else
      t->no_blas = "switched off in the emulated driver";
    t->no_nvrtc = nvrtc ? open_nvrtc(t->nvrtc) : "switched off in the emulated driver";
    return t;
  };
  static const Tables* const tables[2][2] = {{make(false, false), make(false, true)},
                                             {make(true, false), make(true, true)}};
  Machine::instance().set_options(options);
  return *tables[options.nvrtc][options.blas];
}

std::string emulated_report() {
  Machine& m = Machine::instance();
  const std::lock_guard lock(m.mutex);
  return m.report;
}

void clear_emulated_failure() {
  Machine& m = Machine::instance();
  const std::lock_guard lock(m.mutex);
  if (m.failure != CUDA_SUCCESS) m.streams.drop_all();
  m.failure = CUDA_SUCCESS;
  m.report.clear();
  m.injected.clear();
}

const EmulatorCounters& emulator_counters() { return Machine::instance().counters; }

void fail_emulated_call(const std::string& function, int nth, CUresult result) {
  Machine& m = Machine::instance();
  const std::lock_guard lock(m.mutex);
  m.injected[function] = {nth, result};
}

EmulatorScope::EmulatorScope(const EmulatorOptions& options)
    : before_(Machine::instance().options), tables_(&emulated_tables(options)) {}

EmulatorScope::~EmulatorScope() {
  Machine::instance().set_options(before_);
  clear_emulated_failure();
}

}  // namespace sg::cuda
