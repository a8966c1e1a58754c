#include "backends/cuda/device.h"

#include <algorithm>
#include <atomic>
#include <unordered_map>

#include "backends/cuda/images.h"
#include "backends/cuda/staging.h"

namespace sg::cuda {
namespace {

CUdeviceptr address(const void* p) { return reinterpret_cast<CUdeviceptr>(p); }

std::string mebibytes(std::size_t bytes) { return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20)); }

// The device whose context the calling thread uses; 0: none of ours.
thread_local std::uint64_t current_device = 0;

}  // namespace

struct Device::Impl {
  explicit Impl(Device& owner) : staging(owner) {}

  static std::uint64_t next_id() {
    static std::atomic<std::uint64_t> last{0};
    return ++last;
  }

  const std::uint64_t id = next_id();
  CUdevice ordinal = 0;
  CUcontext context = nullptr;
  std::map<std::string, CUmodule, std::less<>> embedded;
  std::vector<CUmodule> loaded;
  std::unordered_map<CUfunction, std::string> names;
  std::unordered_map<void*, std::size_t> sizes;
  StagingRing staging;
  cublasLtHandle_t blas = nullptr;
  bool capturing = false;

  // The context belongs to a thread, and a program may run on another one than it was compiled on.
  void make_current(const Device& device) const {
    if (current_device == id) return;
    device.check(device.driver().cuCtxSetCurrent_(context), "cuCtxSetCurrent");
    current_device = id;
  }
  void not_while_capturing(std::string_view what) const { SG_CHECK(!capturing, "{} while a graph is captured", what); }
  CUmodule load(const Device& device, const void* image, const std::string& what) const;
};

Device::Device(const Tables& tables, int ordinal) : tables_(tables), impl_(std::make_unique<Impl>(*this)) {
  if (!tables.no_driver.empty())
    fail(ErrorKind::backend, "cuda: no CUDA driver ({}); install NVIDIA's driver, or use --backend cpu",
         tables.no_driver);
  const DriverApi& d = tables.driver;
  check(d.cuInit_(0), "cuInit");
  int count = 0;
  check(d.cuDeviceGetCount_(&count), "cuDeviceGetCount");
  if (ordinal < 0 || ordinal >= count)
    fail(ErrorKind::backend, "cuda: GPU {} was asked for, the driver has {}; see nvidia-smi and CUDA_VISIBLE_DEVICES",
         ordinal, count);
  check(d.cuDeviceGet_(&impl_->ordinal, ordinal), "cuDeviceGet");
  char text[256] = "";
  check(d.cuDeviceGetName_(text, sizeof text, impl_->ordinal), "cuDeviceGetName");
  name_ = text;
  const auto attribute = [&](CUdevice_attribute which) {
    int value = 0;
    check(d.cuDeviceGetAttribute_(&value, which, impl_->ordinal), "cuDeviceGetAttribute");
    return value;
  };
  arch_ = 10 * attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) +
          attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  if (arch_ < 80)
    fail(ErrorKind::backend, "cuda: {} has compute capability {}.{}, the kernels need 8.0 or newer", name_, arch_ / 10,
         arch_ % 10);
  multiprocessors_ = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  max_shared_ = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  check(d.cuDevicePrimaryCtxRetain_(&impl_->context, impl_->ordinal), "cuDevicePrimaryCtxRetain");
  try {
    impl_->make_current(*this);
    check(d.cuStreamCreate_(&stream_, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  } catch (...) {
    d.cuDevicePrimaryCtxRelease_(impl_->ordinal);
    current_device = 0;
    throw;
  }
}

Device::~Device() {
  const DriverApi& d = driver();
  d.cuCtxSetCurrent_(impl_->context);
  if (impl_->capturing) abandon_capture();
  d.cuStreamSynchronize_(stream_);
  if (impl_->blas != nullptr) tables_.blas.cublasLtDestroy_(impl_->blas);
  for (const auto& [file, module] : impl_->embedded) d.cuModuleUnload_(module);
  for (const CUmodule module : impl_->loaded) d.cuModuleUnload_(module);
  for (const auto& [p, bytes] : impl_->sizes) d.cuMemFree_(address(p));
  const CUdevice ordinal = impl_->ordinal;
  d.cuStreamDestroy_(stream_);
  impl_.reset();  // frees the pinned memory, which needs the context
  d.cuCtxSetCurrent_(nullptr);
  d.cuDevicePrimaryCtxRelease_(ordinal);
  current_device = 0;
}

void Device::check(CUresult r, const char* call) const {
  if (r == CUDA_SUCCESS) return;
  const char *name = nullptr, *words = nullptr;
  driver().cuGetErrorName_(r, &name);
  driver().cuGetErrorString_(r, &words);
  fail(ErrorKind::backend, "cuda: {} failed on {}: {} ({}), {}", call, name_.empty() ? "this machine" : name_,
       name == nullptr ? "unknown error" : name, static_cast<int>(r), words == nullptr ? "no description" : words);
}

CUmodule Device::Impl::load(const Device& device, const void* image, const std::string& what) const {
  device.impl_->make_current(device);
  char log[4096] = "";
  CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
  void* values[] = {log, reinterpret_cast<void*>(sizeof log)};  // the driver takes the size in the pointer itself
  CUmodule module = nullptr;
  const CUresult r = device.driver().cuModuleLoadDataEx_(&module, image, 2, options, values);
  device.check(r, fmt::format("cuModuleLoadDataEx of {}{}{}", what, log[0] == '\0' ? "" : ": ", log).c_str());
  return module;
}

CUfunction Device::embedded(std::string_view file, const std::string& kernel) {
  auto found = impl_->embedded.find(file);
  if (found == impl_->embedded.end()) {
    const auto images = kernel_images();
    const auto image = std::find_if(images.begin(), images.end(), [&](const Image& i) { return i.name == file; });
    SG_CHECK(image != images.end(), "no kernels of backends/cuda/kernels/{}.cu are in this library", file);
    const std::string name(file);
    found = impl_->embedded.emplace(name, impl_->load(*this, image->begin, name + ".cu")).first;
  }
  return function(found->second, kernel);
}

CUmodule Device::load(const void* image, const std::string& what) {
  impl_->loaded.push_back(impl_->load(*this, image, what));
  return impl_->loaded.back();
}

CUfunction Device::function(CUmodule module, const std::string& kernel) {
  impl_->make_current(*this);
  CUfunction f = nullptr;
  check(driver().cuModuleGetFunction_(&f, module, kernel.c_str()),
        fmt::format("cuModuleGetFunction of {}", kernel).c_str());
  impl_->names[f] = kernel;
  return f;
}

KernelFacts Device::facts(CUfunction f, std::string name) const {
  const auto attribute = [&](CUfunction_attribute which) {
    int value = 0;
    check(driver().cuFuncGetAttribute_(&value, which, f), "cuFuncGetAttribute");
    return value;
  };
  return {std::move(name), attribute(CU_FUNC_ATTRIBUTE_NUM_REGS), attribute(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES),
          attribute(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES), attribute(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)};
}

void Device::allow_shared(CUfunction f, unsigned bytes) {
  check(driver().cuFuncSetAttribute_(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, static_cast<int>(bytes)),
        "cuFuncSetAttribute");
}

int Device::blocks_per_multiprocessor(CUfunction f, int threads, unsigned shared) const {
  impl_->make_current(*this);
  int blocks = 0;
  check(driver().cuOccupancyMaxActiveBlocksPerMultiprocessor_(&blocks, f, threads, shared),
        "cuOccupancyMaxActiveBlocksPerMultiprocessor");
  return blocks;
}

cublasLtHandle_t Device::blas() {
  if (!tables_.no_blas.empty())
    fail(ErrorKind::backend,
         "cuda: matrix products need cuBLASLt ({}); install the CUDA toolkit's libcublas, or use --backend cpu",
         tables_.no_blas);
  impl_->make_current(*this);
  if (impl_->blas == nullptr) {
    const cublasStatus_t r = tables_.blas.cublasLtCreate_(&impl_->blas);
    if (r != CUBLAS_STATUS_SUCCESS)
      fail(ErrorKind::backend, "cuda: cublasLtCreate failed on {}: {}", name_,
           tables_.blas.cublasLtGetStatusString_(r));
  }
  return impl_->blas;
}

void Device::launch(CUfunction f, const Launch& how, void** parameters) {
  impl_->make_current(*this);
  const CUresult r = driver().cuLaunchKernel_(f, how.grid.x, how.grid.y, how.grid.z, how.block.x, how.block.y,
                                              how.block.z, how.shared, stream_, parameters, nullptr);
  if (r != CUDA_SUCCESS) {
    const auto name = impl_->names.find(f);
    check(r, fmt::format("launch of {} (grid {}x{}x{}, block {}x{}x{}, {} bytes of shared memory)",
                         name == impl_->names.end() ? "a kernel" : name->second, how.grid.x, how.grid.y, how.grid.z,
                         how.block.x, how.block.y, how.block.z, how.shared)
                 .c_str());
  }
  ++counters_.launches;
}

void Device::check_parameters(CUfunction f, const std::string& name, const std::size_t* sizes,
                              std::size_t count) const {
  std::size_t offset = 0, size = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const bool there = driver().cuFuncGetParamInfo_(f, i, &offset, &size) == CUDA_SUCCESS;
    SG_CHECK(there, "kernel {} has {} parameters, {} are passed", name, i, count);
    SG_CHECK(size == sizes[i], "kernel {}: parameter {} has {} bytes, {} are passed", name, i, size, sizes[i]);
  }
  SG_CHECK(driver().cuFuncGetParamInfo_(f, count, &offset, &size) != CUDA_SUCCESS,
           "kernel {} has more than the {} parameters that are passed", name, count);
}

void* Device::allocate(std::size_t bytes) {
  impl_->make_current(*this);
  CUdeviceptr p = 0;
  const CUresult r = driver().cuMemAlloc_(&p, bytes);
  if (r == CUDA_ERROR_OUT_OF_MEMORY) {
    std::size_t free = 0, total = 0;
    check(driver().cuMemGetInfo_(&free, &total), "cuMemGetInfo");
    fail(ErrorKind::backend,
         "cuda: out of memory on {}: {} needed, {} free of {} ({} held here); use a smaller batch or --recompute",
         name_, mebibytes(bytes), mebibytes(free), mebibytes(total), mebibytes(counters_.live_bytes));
  }
  check(r, "cuMemAlloc");
  void* memory = reinterpret_cast<void*>(p);
  impl_->sizes.emplace(memory, bytes);
  ++counters_.allocations;
  counters_.live_bytes += bytes;
  return memory;
}

void Device::release(void* p) noexcept {
  const auto found = impl_->sizes.find(p);
  if (found == impl_->sizes.end()) return;
  driver().cuCtxSetCurrent_(impl_->context);
  current_device = impl_->id;
  driver().cuMemFree_(address(p));
  counters_.live_bytes -= found->second;
  impl_->sizes.erase(found);
}

void Device::fill(void* p, std::byte value, std::size_t bytes) {
  if (bytes == 0) return;
  impl_->make_current(*this);
  check(driver().cuMemsetD8Async_(address(p), std::to_integer<unsigned char>(value), bytes, stream_),
        "cuMemsetD8Async");
}

void Device::copy(void* dst, const void* src, std::size_t bytes) {
  if (bytes == 0) return;
  impl_->make_current(*this);
  check(driver().cuMemcpyDtoDAsync_(address(dst), address(src), bytes, stream_), "cuMemcpyDtoDAsync");
}

void Device::upload(void* dst, const void* src, std::size_t bytes) {
  impl_->not_while_capturing("upload");
  impl_->make_current(*this);
  counters_.synchronisations +=
      static_cast<std::uint64_t>(impl_->staging.upload(address(dst), static_cast<const std::byte*>(src), bytes));
}

void Device::download(void* dst, const void* src, std::size_t bytes) {
  impl_->not_while_capturing("download");
  if (bytes == 0) return;
  impl_->make_current(*this);
  check(driver().cuMemcpyDtoHAsync_(dst, address(src), bytes, stream_), "cuMemcpyDtoHAsync");
  synchronize();
}

void Device::synchronize() {
  impl_->not_while_capturing("synchronize");
  impl_->make_current(*this);
  ++counters_.synchronisations;
  check(driver().cuStreamSynchronize_(stream_), "cuStreamSynchronize");
}

void Device::begin_capture() {
  impl_->not_while_capturing("begin_capture");
  impl_->make_current(*this);
  check(driver().cuStreamBeginCapture_(stream_, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "cuStreamBeginCapture");
  impl_->capturing = true;
}

CUgraphExec Device::end_capture(std::size_t* nodes) {
  SG_CHECK(impl_->capturing, "end_capture without begin_capture");
  impl_->capturing = false;
  CUgraph graph = nullptr;
  check(driver().cuStreamEndCapture_(stream_, &graph), "cuStreamEndCapture");
  CUgraphExec exec = nullptr;
  std::size_t count = 0;
  const CUresult counted = driver().cuGraphGetNodes_(graph, nullptr, &count);
  const CUresult made = driver().cuGraphInstantiateWithFlags_(&exec, graph, 0);
  driver().cuGraphDestroy_(graph);
  check(counted, "cuGraphGetNodes");
  check(made, "cuGraphInstantiateWithFlags");
  if (nodes != nullptr) *nodes = count;
  return exec;
}

void Device::abandon_capture() noexcept {
  if (!impl_->capturing) return;
  impl_->capturing = false;
  CUgraph graph = nullptr;
  driver().cuStreamEndCapture_(stream_, &graph);
  if (graph != nullptr) driver().cuGraphDestroy_(graph);
}

void Device::replay(CUgraphExec graph) {
  impl_->make_current(*this);
  check(driver().cuGraphLaunch_(graph, stream_), "cuGraphLaunch");
  ++counters_.replays;
}

void Device::destroy(CUgraphExec graph) noexcept {
  if (graph != nullptr) driver().cuGraphExecDestroy_(graph);
}

}  // namespace sg::cuda
