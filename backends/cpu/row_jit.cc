#include "backends/cpu/row_jit.h"

#include <atomic>

#include "backends/cpu/kernels.h"
#ifdef SG_ROW_JIT
#include "backends/cpu/jit/program.h"
#endif

namespace sg::cpu {
namespace {

std::atomic<bool>& generation_on() {
  static std::atomic<bool> on{true};
  return on;
}

}  // namespace

std::unique_ptr<RowJit> RowJit::make([[maybe_unused]] const RowProgram& program,
                                     [[maybe_unused]] const RowMemory& memory) {
#ifdef SG_ROW_JIT
  if (has_generator() && program.rows > 0 && program.columns > 0)
    return jit::make_program(program, memory, isa_name() == "avx512");
#endif
  return nullptr;
}

bool has_generator() {
#ifdef SG_ROW_JIT
  const std::string isa = isa_name();
  return code_generation() && (isa == "avx512" || isa == "avx2");
#else
  return false;
#endif
}

void set_code_generation(bool on) { generation_on() = on; }
bool code_generation() { return generation_on(); }

}  // namespace sg::cpu
