#include "backends/backends.h"

#include <fmt/format.h>
#include <omp.h>

#include <array>

namespace sg {
namespace {
struct Entry { std::string_view name; Backend& (*get)(); };
constexpr std::array kBackends{Entry{"cpu", cpu_backend}, Entry{"reference", reference_backend}};
}  // namespace

std::vector<std::string_view> backend_names() {
  std::vector<std::string_view> names;
  for (const auto& e : kBackends) names.push_back(e.name);
  return names;
}

Backend& backend(std::string_view name) {
  std::string have;
  for (const auto& e : kBackends) {
    if (e.name == name) return e.get();
    have += (have.empty() ? "" : ", ") + std::string(e.name);
  }
  fail(ErrorKind::backend, "unknown backend '{}'; this build has: {}", name, have);
}

std::string describe_backends() {
  std::string text;
  for (const auto& e : kBackends) text += fmt::format("{:<10} {}\n", e.name, e.get().describe());
  return text;
}

void set_threads(int threads) {
  if (threads < 1) fail(ErrorKind::usage, "threads: {} given; at least 1 is needed", threads);
  omp_set_dynamic(0);
  omp_set_num_threads(threads);
}

int threads() { return omp_get_max_threads(); }

}  // namespace sg
