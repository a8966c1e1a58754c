#include "backends/cpu/bf16.h"

#include <atomic>
#include <oneapi/dnnl/dnnl.hpp>

#include "core/error.h"

namespace sg::cpu {
namespace {

std::atomic<bool>& emulation() {
  static std::atomic<bool> on{false};
  return on;
}

bool has_isa(dnnl_cpu_isa_t isa) {
  const auto wanted = static_cast<unsigned>(isa);
  return (static_cast<unsigned>(dnnl_get_effective_cpu_isa()) & wanted) == wanted;
}

}  // namespace

bool has_bf16() { return has_isa(dnnl_cpu_isa_avx512_core_bf16); }
bool has_amx() { return has_isa(dnnl_cpu_isa_avx512_core_amx); }

void allow_emulated_bf16(bool on) { emulation() = on; }
bool emulated_bf16_allowed() { return emulation(); }

void require_bf16(std::string_view what) {
  if (has_bf16() || emulated_bf16_allowed()) return;
  fail(ErrorKind::backend, "{}: bf16 needs a processor with avx512_bf16, which this one lacks; use f32", what);
}

}  // namespace sg::cpu
