#include "backends/backends.h"

#include <fmt/format.h>
#include <omp.h>

#include <array>

#ifdef SG_CUDA
#include "backends/cuda/cuda_backend.h"
#endif

namespace sg {
namespace {

const std::string& present() {
  static const std::string nothing;
  return nothing;
}

#ifdef SG_CUDA
using cuda::no_cuda;
#else
#ifndef SG_NO_CUDA
#define SG_NO_CUDA "this build was made without CUDA"
#endif
const std::string& no_cuda() {
  static const std::string why = SG_NO_CUDA;
  return why;
}
Backend& cuda_backend() { throw Error(ErrorKind::backend, no_cuda()); }
#endif

void set_tf32(bool on) {
#ifdef SG_CUDA
  cuda::set_tf32(on);
#else
  if (on) throw Error(ErrorKind::backend, no_cuda());
#endif
}

struct Entry {
  std::string_view name;
  Backend& (*get)();
  const std::string& (*absent)();  // why it cannot be used here; empty where it can
};
constexpr std::array kBackends{Entry{"cpu", cpu_backend, present}, Entry{"cuda", cuda_backend, no_cuda},
                               Entry{"reference", reference_backend, present}};

}  // namespace

void set_cuda_options(const CudaOptions& options) { set_tf32(options.tf32); }

std::vector<std::string_view> backend_names() {
  std::vector<std::string_view> names;
  for (const auto& e : kBackends)
    if (e.absent().empty()) names.push_back(e.name);
  return names;
}

std::vector<std::string_view> known_backend_names() {
  std::vector<std::string_view> names;
  for (const auto& e : kBackends) names.push_back(e.name);
  return names;
}

Backend& backend(std::string_view name) {
  std::string have;
  for (const auto& e : kBackends) {
    if (e.name == name) return e.get();
    if (e.absent().empty()) have += (have.empty() ? "" : ", ") + std::string(e.name);
  }
  fail(ErrorKind::backend, "unknown backend '{}'; this build has: {}", name, have);
}

std::string describe_backends() {
  std::string text;
  for (const auto& e : kBackends)
    text += fmt::format("{:<10} {}\n", e.name, e.absent().empty() ? e.get().describe() : "absent: " + e.absent());
  return text;
}

void set_threads(int threads) {
  if (threads < 1) fail(ErrorKind::usage, "threads: {} given; at least 1 is needed", threads);
  omp_set_dynamic(0);
  omp_set_num_threads(threads);
}

int threads() { return omp_get_max_threads(); }

}  // namespace sg
