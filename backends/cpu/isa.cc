// Chooses the table of inner loops for the processor that the program runs on.
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "backends/backends.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/lowering.h"
#include "backends/cpu/row_jit.h"
#include "backends/cpu/tune.h"

namespace sg {
namespace {

// Best first.
std::vector<const simd::Table*> available() {
  std::vector<const simd::Table*> tables;
#ifdef SG_X86_TABLES
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    tables.push_back(&simd::table_avx512());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables.push_back(&simd::table_avx2());
#endif
  tables.push_back(&simd::table_generic());
  return tables;
}

std::atomic<const simd::Table*>& chosen() {
  static std::atomic<const simd::Table*> table{available().front()};
  return table;
}

}  // namespace

namespace cpu {
const simd::Table& simd_table() { return *chosen().load(); }
}  // namespace cpu

std::string isa_name() { return cpu::simd_table().name; }

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const simd::Table* table : available()) names.emplace_back(table->name);
  return names;
}

void set_isa(std::string_view name) {
  for (const simd::Table* table : available())
    if (table->name == name) {
      chosen() = table;
      return;
    }
  fail(ErrorKind::usage, "isa: '{}' is not available; this processor and build have: {}", name,
       fmt::join(isa_names(), ", "));
}

void set_cpu_options(const CpuOptions& options) {
  const auto index_of = [](std::string_view setting, const std::string& word,
                           std::initializer_list<const char*> words) {
    const auto it = std::find(words.begin(), words.end(), word);
    if (it == words.end())
      fail(ErrorKind::usage, "{}: '{}' is unknown; choose one of: {}", setting, word, fmt::join(words, ", "));
    return it - words.begin();
  };
  constexpr WinogradUse kUse[] = {WinogradUse::where_faster, WinogradUse::always, WinogradUse::never};
  const WinogradUse use = kUse[index_of("winograd", options.winograd, {"auto", "on", "off"})];
  const auto tune = static_cast<cpu::Tuning>(index_of("tune", options.tune, {"off", "cached", "on"}));
  set_isa(options.isa == "auto" ? isa_names().front() : options.isa);
  cpu::set_code_generation(isa_name() != "generic");
  set_winograd(use);
  cpu::set_tuning(tune);
}

}  // namespace sg
