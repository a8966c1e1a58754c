// One instruction of PTX text -> Instructions of a Kernel. What is not understood is refused: every modifier of an
// instruction must have been looked at.
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/cuda_emulator/ptx/lanes.h"
#include "tests/cuda_emulator/ptx/operands.h"

namespace sg::ptx {

class Decoder {
 public:
  Decoder(Kernel& kernel, const ModuleNames& names) : operands(kernel, names), kernel_(kernel), names_(names) {}
  Operands operands;

  // Where the next instructions were written: file, line, and those of the call where they were inlined.
  using Location = std::array<int, 4>;
  void location(const Location& location) { location_ = location; }
  void label(const std::string& name);
  void branch_targets(const std::string& name, const std::string& list);
  void instruction(const std::string& text, int line);
  void finish();

 private:
  // An instruction while it is taken apart.
  struct Op {
    std::string text, base;
    std::vector<std::string> modifiers, operands;
    Instruction in;
    bool take(std::string_view modifier);
    std::string last() const { return modifiers.empty() ? std::string() : modifiers.back(); }
  };
  using Handler = void (Decoder::*)(Op&);
  static const std::map<std::string, Handler>& handlers();

  void emit(Op& op);  // after all of it was understood
  void emit(const Instruction& in);
  [[noreturn]] void unknown(const Op& op) const;
  void expect_operands(const Op& op, std::size_t least, std::size_t most) const;
  u32 list(const std::vector<u32>& slots);
  bool take_space(Op& op, Space& space);
  std::string take_type(Op& op);
  void take_memory_modifiers(Op& op);
  u32 vector_slots(Op& op, const std::string& text, int bytes, bool write, int& register_bytes);

  void by_table(Op& op);
  void plain_form(Op& op, const Form& form, bool conversion);
  void compare_form(Op& op, const Form& form, BoolOp bool_op);
  void set(Op& op);
  void mov(Op& op);
  void cvt(Op& op);
  void branch(Op& op);
  void branch_table(Op& op);
  void exit(Op& op);
  void trap(Op& op);
  void barrier(Op& op);
  void warp_barrier(Op& op);
  void barrier_or_warp_barrier(Op& op);
  void load(Op& op);
  void store(Op& op);
  void atomic(Op& op);
  void copy_async(Op& op);
  void fence(Op& op);
  void prefetch(Op& op);
  void call(Op& op);
  void call_inline(Op& op, const Function& function, const std::string& result,
                   const std::vector<std::string>& arguments);
  std::string local_label(const std::string& name) const { return name + suffix_; }
  void shuffle(Op& op);
  void vote(Op& op);
  void match(Op& op);
  void redux(Op& op);
  void active_mask(Op& op);
  void matrix_product(Op& op);
  void load_matrix(Op& op);

  Kernel& kernel_;
  const ModuleNames& names_;
  Origin origin_;
  Location location_{};
  int calls_ = 0, call_depth_ = 0;
  std::string suffix_;  // of labels in the function that is being put in the place of a call
  std::map<std::string, s32> labels_;
  std::map<std::string, std::vector<std::string>> targets_;
  struct Fix {
    std::size_t instruction;
    std::string label;
    int line;
  };
  std::vector<Fix> fixes_;
};

// Decodes what is between { and }, in module.cc.
void decode_body(Reader& reader, Decoder& decoder);

}  // namespace sg::ptx
