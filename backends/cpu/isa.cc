// Chooses the table of inner loops for the processor that the program runs on.
#include <atomic>
#include <vector>

#include "backends/cpu/kernels.h"
#include "backends/cpu/lowering.h"

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

void set_isa(std::string_view name) {
  std::string have;
  for (const simd::Table* table : available()) {
    if (table->name == name) {
      chosen() = table;
      return;
    }
    have += (have.empty() ? "" : ", ") + std::string(table->name);
  }
  fail(ErrorKind::usage, "isa: '{}' is not available; this processor and build have: {}", name, have);
}

}  // namespace sg
