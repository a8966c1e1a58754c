#include "tests/support/alloc_counter.h"

#include <link.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>

namespace sg::test {
namespace {

constexpr int kMaxRanges = 16;
struct Range {
  std::uintptr_t begin, end;
};
Range library_ranges[kMaxRanges];
int range_count = 0;
std::atomic<bool> counting{false};
std::atomic<std::int64_t> by_framework{0}, by_libraries{0};

int note_library(dl_phdr_info* info, std::size_t, void*) {
  if (!std::strstr(info->dlpi_name, "libdnnl") && !std::strstr(info->dlpi_name, "libgomp")) return 0;
  for (int i = 0; i < info->dlpi_phnum && range_count < kMaxRanges; ++i)
    if (info->dlpi_phdr[i].p_type == PT_LOAD) {
      const std::uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
      library_ranges[range_count++] = {begin, begin + info->dlpi_phdr[i].p_memsz};
    }
  return 0;
}

}  // namespace

// Called by the replaced allocation functions with their caller's address.
void note_allocation(const void* caller) {
  if (!counting.load(std::memory_order_relaxed)) return;
  const auto address = reinterpret_cast<std::uintptr_t>(caller);
  for (int i = 0; i < range_count; ++i)
    if (address >= library_ranges[i].begin && address < library_ranges[i].end) {
      ++by_libraries;
      return;
    }
  ++by_framework;
}

AllocCounter::AllocCounter() {
  if (range_count == 0) dl_iterate_phdr(note_library, nullptr);
  by_framework = by_libraries = 0;
  counting = true;
}
AllocCounter::~AllocCounter() { counting = false; }
std::int64_t AllocCounter::framework() const { return by_framework; }
std::int64_t AllocCounter::libraries() const { return by_libraries; }

}  // namespace sg::test

#ifdef SG_SANITIZE

bool sg::test::AllocCounter::available() { return false; }

#else

bool sg::test::AllocCounter::available() { return true; }

// glibc lets a program define these; the shared libraries call them too. operator new is replaced as well, so that the
// caller seen is its caller and not libstdc++.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t bytes) {
  sg::test::note_allocation(__builtin_return_address(0));
  return __libc_malloc(bytes);
}
void* calloc(std::size_t n, std::size_t bytes) {
  sg::test::note_allocation(__builtin_return_address(0));
  return __libc_calloc(n, bytes);
}
void* realloc(void* p, std::size_t bytes) {
  sg::test::note_allocation(__builtin_return_address(0));
  return __libc_realloc(p, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) {
  sg::test::note_allocation(__builtin_return_address(0));
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** p, std::size_t alignment, std::size_t bytes) {
  sg::test::note_allocation(__builtin_return_address(0));
  *p = __libc_memalign(alignment, bytes);
  return *p ? 0 : ENOMEM;
}
}

#include <new>

void* operator new(std::size_t bytes) {
  sg::test::note_allocation(__builtin_return_address(0));
  if (void* p = __libc_malloc(bytes)) return p;
  throw std::bad_alloc();
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  sg::test::note_allocation(__builtin_return_address(0));
  if (void* p = __libc_memalign(static_cast<std::size_t>(alignment), bytes)) return p;
  throw std::bad_alloc();
}
extern "C" void __libc_free(void*);
void operator delete(void* p) noexcept { __libc_free(p); }
void operator delete(void* p, std::size_t) noexcept { __libc_free(p); }
void operator delete(void* p, std::align_val_t) noexcept { __libc_free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { __libc_free(p); }

#endif
