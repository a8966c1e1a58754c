#include <dlfcn.h>
#include <fmt/format.h>

#include <initializer_list>

#include "backends/cuda/api.h"

namespace sg::cuda {
namespace {

#define SG_CUDA_QUOTE_(x) #x
#define SG_CUDA_QUOTE(x) SG_CUDA_QUOTE_(x)  // after expansion: cuda.h renames cuMemAlloc to cuMemAlloc_v2

// The first of these libraries that can be opened; null and the reason of the first where none can.
void* open_first(std::initializer_list<const char*> names, std::string& why) {
  for (const char* name : names) {
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
    if (why.empty()) why = dlerror();
  }
  return nullptr;
}

template <class F>
void find(void* library, const char* name, F& function, std::string& why) {
  function = reinterpret_cast<F>(dlsym(library, name));
  if (function == nullptr && why.empty())
    why = fmt::format("it has no {}, so it is too old; install a newer one", name);
}

std::string open_driver(DriverApi& table) {
  std::string why;
  void* library = open_first({"libcuda.so.1"}, why);
  if (library == nullptr) return why;
#define SG_CUDA_FIND(f) find(library, SG_CUDA_QUOTE(f), table.f##_, why);
  SG_CUDA_DRIVER_FUNCTIONS(SG_CUDA_FIND)
  return why.empty() ? why : "libcuda.so.1: " + why;
}

std::string open_blas(BlasApi& table) {
  std::string why;
  void* library = open_first({"libcublasLt.so.13", "libcublasLt.so.12"}, why);
  if (library == nullptr) return why;
  SG_CUDA_BLAS_FUNCTIONS(SG_CUDA_FIND)
  return why.empty() ? why : "libcublasLt: " + why;
}

}  // namespace

std::string open_nvrtc(NvrtcApi& table) {
  std::string why;
  void* library = open_first({"libnvrtc.so.13", "libnvrtc.so.12"}, why);
  if (library == nullptr) return why;
  SG_CUDA_NVRTC_FUNCTIONS(SG_CUDA_FIND)
  return why.empty() ? why : "libnvrtc: " + why;
}

const Tables& system_tables() {
  static const Tables* const tables = [] {
    auto* t = new Tables;  // never destroyed: objects with static storage may still call through it
    t->no_driver = open_driver(t->driver);
    // cuBLASLt alone is half a gigabyte to map, and nothing runs without a driver.
    if (t->no_driver.empty()) {
      t->no_blas = open_blas(t->blas);
      t->no_nvrtc = open_nvrtc(t->nvrtc);
    } else {
      t->no_blas = t->no_nvrtc = "not looked for, as there is no driver";
    }
    return t;
  }();
  return *tables;
}

}  // namespace sg::cuda
