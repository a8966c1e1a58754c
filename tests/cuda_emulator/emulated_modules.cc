// Modules, kernels and launches of the emulated driver: the PTX of the image, run by the interpreter.
#include <algorithm>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#include "tests/cuda_emulator/emulated_machine.h"
#include "tests/cuda_emulator/ptx/machine.h"

struct CUfunc_st {
  const sg::ptx::Kernel* kernel = nullptr;
  std::string name;
  std::vector<sg::ptx::Parameter> parameters;
  std::size_t static_shared = 0;
  unsigned max_threads = 0;
  int dynamic_shared = 0;  // what it opted into, beyond kPlainShared in all
};

struct CUmod_st {
  std::shared_ptr<const sg::ptx::Module> module;  // kept by what was launched
  std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};

namespace sg::cuda::emulated {
namespace {

constexpr std::size_t kPlainShared = 48 << 10;  // static and dynamic, where a kernel opted into no more
constexpr std::size_t kMostShared = 227 << 10;

Machine& machine() { return Machine::instance(); }

std::vector<CUmodule>& modules() {
  static std::vector<CUmodule> all;
  return all;
}
bool known(CUmodule module) { return std::find(modules().begin(), modules().end(), module) != modules().end(); }
std::unordered_map<CUfunction, CUmodule>& owners() {
  static std::unordered_map<CUfunction, CUmodule> all;
  return all;
}
CUmodule owner(CUfunction f) {
  const auto found = owners().find(f);
  return found == owners().end() ? nullptr : found->second;
}

CUresult answer(ptx::Fault fault) {
  switch (fault) {
    case ptx::Fault::out_of_bounds:
      return CUDA_ERROR_ILLEGAL_ADDRESS;
    case ptx::Fault::misaligned:
      return CUDA_ERROR_MISALIGNED_ADDRESS;
    case ptx::Fault::assertion:
      return CUDA_ERROR_ASSERT;
    case ptx::Fault::endless:
      return CUDA_ERROR_LAUNCH_TIMEOUT;
    default:
      return CUDA_ERROR_LAUNCH_FAILED;
  }
}

void write_log(const std::string& text, unsigned count, const CUjit_option* options, void** values) {
  char* buffer = nullptr;
  std::size_t bytes = 0;
  for (unsigned i = 0; i < count; ++i) {
    if (options[i] == CU_JIT_ERROR_LOG_BUFFER) buffer = static_cast<char*>(values[i]);
    if (options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) bytes = reinterpret_cast<std::size_t>(values[i]);
  }
  if (buffer == nullptr || bytes == 0) return;
  const std::size_t n = std::min(text.size(), bytes - 1);
  std::memcpy(buffer, text.data(), n);
  buffer[n] = '\0';
}

CUresult load(CUmodule* module, const void* image, unsigned count, CUjit_option* options, void** values) {
  return machine().call("cuModuleLoadDataEx", Needs::waiting, [&] {
    if (std::memcmp(image, "\177ELF", 4) == 0)
      return machine().refuse(CUDA_ERROR_NO_BINARY_FOR_GPU, "cuModuleLoadDataEx: machine code cannot be emulated");
    try {
      auto made = std::make_unique<CUmod_st>();
      made->module = std::make_shared<const ptx::Module>(ptx::text_of_image(image));
      modules().push_back(made.release());
      *module = modules().back();
      return CUDA_SUCCESS;
    } catch (const std::exception& e) {
      write_log(e.what(), count, options, values);
      return machine().refuse(CUDA_ERROR_INVALID_PTX, "cuModuleLoadDataEx: {}", e.what());
    }
  });
}

CUresult get_function(CUfunction* f, CUmodule module, const char* name) {
  return machine().call("cuModuleGetFunction", Needs::context, [&] {
    if (!known(module)) return machine().refuse(CUDA_ERROR_INVALID_HANDLE, "cuModuleGetFunction: no such module");
    const ptx::Kernel* kernel = module->module->find(name);
    if (kernel == nullptr) return machine().refuse(CUDA_ERROR_NOT_FOUND, "cuModuleGetFunction: no kernel {}", name);
    auto& function = module->functions[name];
    if (!function)
      function = std::make_unique<CUfunc_st>(CUfunc_st{kernel, name, ptx::parameters(*kernel),
                                                       ptx::static_shared_bytes(*kernel), ptx::max_threads(*kernel)});
    owners()[function.get()] = module;
    *f = function.get();
    return CUDA_SUCCESS;
  });
}

CUresult get_attribute(int* value, CUfunction_attribute which, CUfunction f) {
  return machine().call("cuFuncGetAttribute", Needs::context, [&] {
    if (owner(f) == nullptr) return machine().refuse(CUDA_ERROR_INVALID_HANDLE, "cuFuncGetAttribute: no such kernel");
    switch (which) {
      // PTX has no end of registers. What ptxas would use is in the build's own report (test cuda_registers).
      case CU_FUNC_ATTRIBUTE_NUM_REGS:
        *value = std::min(ptx::registers_declared(*f->kernel), 255);
        break;
      case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
        *value = static_cast<int>(f->static_shared);
        break;
      case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
        *value = 0;
        break;
      case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *value = static_cast<int>(f->max_threads);
        break;
      case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        *value = f->dynamic_shared;
        break;
      default:
        return machine().refuse(CUDA_ERROR_INVALID_VALUE, "cuFuncGetAttribute: {} is not emulated",
                                static_cast<int>(which));
    }
    return CUDA_SUCCESS;
  });
}

CUresult set_attribute(CUfunction f, CUfunction_attribute which, int value) {
  return machine().call("cuFuncSetAttribute", Needs::context, [&] {
    if (owner(f) == nullptr) return machine().refuse(CUDA_ERROR_INVALID_HANDLE, "cuFuncSetAttribute: no such kernel");
    if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
      return machine().refuse(CUDA_ERROR_INVALID_VALUE, "cuFuncSetAttribute: {} is not emulated",
                              static_cast<int>(which));
    if (value < 0 || static_cast<std::size_t>(value) + f->static_shared > kMostShared)
      return machine().refuse(CUDA_ERROR_INVALID_VALUE, "cuFuncSetAttribute: {} bytes of shared memory for {}", value,
                              f->name);
    f->dynamic_shared = value;
    return CUDA_SUCCESS;
  });
}

// Resident blocks as threads and shared memory allow; registers are not known here.
CUresult occupancy(int* blocks, CUfunction f, int threads, std::size_t shared) {
  return machine().call("cuOccupancyMaxActiveBlocksPerMultiprocessor", Needs::context, [&] {
    if (owner(f) == nullptr || threads < 1)
      return machine().refuse(CUDA_ERROR_INVALID_VALUE, "cuOccupancyMaxActiveBlocksPerMultiprocessor: no such kernel");
    const int warps = (threads + 31) / 32;
    *blocks = static_cast<unsigned>(threads) > f->max_threads ? 0 : std::min(32, 64 / warps);
    const std::size_t each = f->static_shared + shared + 1024;  // a kibibyte of each block's is the system's
    *blocks = std::min(*blocks, static_cast<int>((228u << 10) / each));
    return CUDA_SUCCESS;
  });
}

CUresult check_launch(CUfunction f, const ptx::Dim& grid, const ptx::Dim& block, std::size_t shared, void** arguments,
                      void** extra) {
  const auto wrong = [&](CUresult r, const std::string& why) {
    return machine().refuse(r, "launch of {}, grid {}x{}x{}, block {}x{}x{}: {}", f->name, grid.x, grid.y, grid.z,
                            block.x, block.y, block.z, why);
  };
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0)
    return wrong(CUDA_ERROR_INVALID_VALUE, "an extent is 0");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return wrong(CUDA_ERROR_INVALID_VALUE, "the grid is too large");
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || threads > 1024)
    return wrong(CUDA_ERROR_INVALID_VALUE, "the block is too large");
  if (threads > f->max_threads)
    return wrong(CUDA_ERROR_INVALID_VALUE, fmt::format("its launch bounds allow {} threads", f->max_threads));
  const std::size_t allowed = f->dynamic_shared > 0 ? static_cast<std::size_t>(f->dynamic_shared)
                                                    : kPlainShared - std::min(kPlainShared, f->static_shared);
  if (shared > std::max(allowed, kPlainShared - std::min(kPlainShared, f->static_shared)))
    return wrong(CUDA_ERROR_INVALID_VALUE, fmt::format("{} bytes of shared memory, {} are allowed", shared, allowed));
  if (extra != nullptr) return wrong(CUDA_ERROR_INVALID_VALUE, "arguments in a buffer are not emulated");
  if (arguments == nullptr && !f->parameters.empty()) return wrong(CUDA_ERROR_INVALID_VALUE, "no arguments");
  for (std::size_t i = 0; i < f->parameters.size(); ++i)
    if (arguments[i] == nullptr) return wrong(CUDA_ERROR_INVALID_VALUE, fmt::format("argument {} is null", i));
  return CUDA_SUCCESS;
}

CUresult launch(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                unsigned shared, CUstream stream, void** arguments, void** extra) {
  return machine().call("cuLaunchKernel", Needs::context, [&] {
    Machine& m = machine();
    const CUmodule module = owner(f);
    if (module == nullptr) return m.refuse(CUDA_ERROR_INVALID_HANDLE, "cuLaunchKernel: no such kernel");
    if (!m.streams.known(stream)) return m.refuse(CUDA_ERROR_INVALID_HANDLE, "launch of {}: no such stream", f->name);
    const ptx::Dim grid{gx, gy, gz}, block{bx, by, bz};
    if (const CUresult r = check_launch(f, grid, block, shared, arguments, extra); r != CUDA_SUCCESS) return r;
    ++m.counters.launches;

    // Arguments are read now, as the driver does.
    const std::size_t count = f->parameters.size();
    auto values = std::make_shared<std::vector<std::vector<unsigned char>>>();
    for (std::size_t i = 0; i < count; ++i) {
      const auto* first = static_cast<const unsigned char*>(arguments[i]);
      values->emplace_back(first, first + f->parameters[i].size);
    }
    return m.enqueue(stream, [&m, kept = module->module, kernel = f->kernel, grid, block, shared, values] {
      std::vector<void*> pointers;
      for (auto& value : *values) pointers.push_back(value.data());
      ptx::Options options;
      options.check_races = m.options.check_races;
      options.check_initialised = m.options.check_initialised;
      options.seed = m.next_launch();
      ++m.counters.kernels;
      const ptx::Result result = ptx::launch(*kernel, grid, block, shared, pointers.data(), m.memory, options);
      if (!result.ok()) m.fail_running(answer(result.fault), result.report);
    });
  });
}

}  // namespace

void fill_modules(DriverApi& table) {
  table.cuModuleLoadDataEx_ = load;
  table.cuModuleUnload_ = [](CUmodule module) -> CUresult {
    return machine().call("cuModuleUnload", Needs::driver, [&] {
      if (!known(module)) return machine().refuse(CUDA_ERROR_INVALID_HANDLE, "cuModuleUnload: no such module");
      machine().drive([&] { machine().streams.run_all(); });
      std::erase(modules(), module);
      for (const auto& [name, function] : module->functions) owners().erase(function.get());
      delete module;
      return CUDA_SUCCESS;
    });
  };
  table.cuModuleGetFunction_ = get_function;
  table.cuFuncGetAttribute_ = get_attribute;
  table.cuFuncSetAttribute_ = set_attribute;
  table.cuFuncGetParamInfo_ = [](CUfunction f, std::size_t i, std::size_t* offset, std::size_t* size) -> CUresult {
    return machine().call("cuFuncGetParamInfo", Needs::context, [&] {
      if (owner(f) == nullptr) return machine().refuse(CUDA_ERROR_INVALID_HANDLE, "cuFuncGetParamInfo: no such kernel");
      if (i >= f->parameters.size()) return CUDA_ERROR_INVALID_VALUE;
      *offset = f->parameters[i].offset;
      *size = f->parameters[i].size;
      return CUDA_SUCCESS;
    });
  };
  table.cuOccupancyMaxActiveBlocksPerMultiprocessor_ = occupancy;
  table.cuLaunchKernel_ = launch;
}

}  // namespace sg::cuda::emulated
