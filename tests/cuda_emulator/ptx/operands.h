// Names of a kernel and the slots they stand for: registers by scope, constants, special registers, addresses of
// variables.
#pragma once
#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tests/cuda_emulator/ptx/program.h"
#include "tests/cuda_emulator/ptx/text.h"

namespace sg::ptx {

struct Function {
  std::string result;  // names of its parameters
  std::vector<std::string> parameters;
  std::optional<Reader> body;  // from its {; none: only declared
};

// What a module declares. Variables in shared memory: a kernel has those that it names.
struct ModuleNames {
  std::map<std::string, Declaration> shared;
  std::map<std::string, Function> functions;
};

struct Register {
  u32 slot = kNoSlot;  // predicate number where bytes is 0
  int bytes = 0;
};

class Operands {
 public:
  Operands(Kernel& kernel, const ModuleNames& names) : kernel_(kernel), names_(names), scopes_(1) {}
  int line = 0;  // for errors

  void open_scope(bool function = false) { scopes_.emplace_back().function = function; }
  void close_scope() { scopes_.pop_back(); }
  void declare_registers(const std::string& text);  // ".b32 %r<10>"
  void declare_shared(const std::string& text);
  void declare_local(const std::string& text);
  void declare_kernel_parameter(const std::string& text);
  void declare_call_parameter(const std::string& text);
  void finish();  // the place of dynamic shared memory is known

  const Register* find_register(const std::string& name);
  // A value to read, of this many bytes; `or_wider`: a register may be wider.
  u32 source(const std::string& text, int bytes, bool or_wider = false, int* register_bytes = nullptr);
  u32 destination(const std::string& text, int bytes);
  u32 predicate(const std::string& text);                  // to read, not inverted
  u32 predicate(const std::string& text, bool& negated);   // perhaps !p
  void address(const std::string& text, Instruction& in);  // [...]: a, address64, offset
  std::size_t parameter_offset(const std::string& name);
  bool is_call_parameter(const std::string& name) const;
  // The register that stands for the bytes at an offset of a parameter of a call.
  Register call_parameter(const std::string& name, u64 offset, int bytes);
  // In the scope of a function: the parameter of this name is what the caller calls `argument`.
  void bind_parameter(const std::string& name, const std::string& argument);
  u32 constant(u64 bits, int bytes);
  u32 fresh_predicate() { return kernel_.predicate_count++; }

 private:
  using CallParameter = std::map<u64, Register>;  // by offset
  struct Scope {
    bool function = false;  // what is around it is another function's
    std::map<std::string, std::shared_ptr<CallParameter>> parameters;
    std::map<std::string, Register> names;
    std::map<std::string, std::pair<u64, int>> ranges;  // %r<10>: prefix, count, bytes
  };
  std::shared_ptr<CallParameter> find_parameter(const std::string& name) const;
  u32 new_slot(int bytes);
  u32 special(const std::string& name);
  bool symbol(const std::string& name, u64& address);  // of shared, local, module memory
  bool dynamic_shared(const std::string& name) const;
  u32 dynamic_address(u64 offset, int bytes);
  std::size_t place_shared(const Declaration& d);

  Kernel& kernel_;
  const ModuleNames& names_;
  std::vector<Scope> scopes_;
  std::map<u32, u32> constants32_;
  std::map<u64, u32> constants64_;
  std::map<std::string, u32> specials_;
  std::map<std::string, std::size_t> shared_, local_, parameters_;
  std::map<std::pair<u64, int>, u32> dynamic_;  // offset, bytes
};

}  // namespace sg::ptx
