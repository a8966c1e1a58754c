// Tape: an append-only list of instructions in static single assignment. Record order is a topological order.
//
// Invariants (verify() checks them): 1. an instruction's inputs were produced by earlier instructions; 2. each value is
// produced once; 3. the recorded types are those that the op's inference gives; 4. a variable is read at most once and
// assigned at most once. Not thread-safe. Addresses of a Tape are kept by its Values: it can be neither copied nor moved.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/op.h"
#include "core/tensor.h"
#include "core/value.h"
#include "core/variable.h"

namespace sg {

struct RowProgram;

struct Instr {
  OpId op{};
  Attrs attrs;
  std::vector<std::int32_t> inputs;    // value ids
  std::vector<std::int32_t> outputs;   // value ids
  Loc loc;                             // the user's line
  std::int32_t scope = 0;              // index into Tape::scopes
  std::int32_t forward_of = -1;        // for instructions emitted by a VJP: the instruction that was differentiated
};

struct ScopeInfo { std::int32_t parent = -1; std::string name; Loc loc; };

class Tape {
 public:
  Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  Value input(std::string_view name, TensorType type, Loc loc = Loc::current());  // fed before each run; name is unique
  Value constant(double value, TensorType type, Loc loc = Loc::current());        // every element equal
  Value constant(const Tensor& value, Loc loc = Loc::current());
  Value read(Variable& variable, Loc loc = Loc::current());         // value at the START of the step; twice gives the same Value
  void assign(Variable& variable, Value value, Loc loc = Loc::current());  // committed at the END of the step

  // Appends an instruction after inferring its output types. Error{shape|dtype|attribute}: the op's message followed by
  // one line per operand (type, scope, where it was made) and the user's line.
  std::vector<Value> emit(OpId op, std::span<const Value> inputs, Attrs attrs = {}, Loc loc = Loc::current());
  Value emit1(OpId op, std::initializer_list<Value> inputs, Attrs attrs = {}, Loc loc = Loc::current());

  std::span<const Instr> instrs() const { return instrs_; }
  std::int32_t value_count() const { return static_cast<std::int32_t>(types_.size()); }
  const TensorType& type(std::int32_t value) const { return types_[static_cast<std::size_t>(value)]; }
  std::int32_t producer(std::int32_t value) const { return producers_[static_cast<std::size_t>(value)]; }  // instruction index
  Value value(std::int32_t id) { return {this, id}; }

  // Pools that attributes refer to: {"variable", i}, {"tensor", i}, {"program", i}.
  std::span<Variable* const> variables() const { return variables_; }
  const Tensor& constant_tensor(std::int64_t i) const { return constants_[static_cast<std::size_t>(i)]; }
  const RowProgram& row_program(std::int64_t i) const { return *programs_[static_cast<std::size_t>(i)]; }
  std::int64_t add_program(std::shared_ptr<const RowProgram> program);
  Variable* variable_of(const Instr& instr) const;      // of a read or an assign; null for other ops
  std::string name_of(std::int32_t value) const;        // "input 'x'", "variable 'conv.weight'" or "%12"
  Value find_input(std::string_view name) const;        // null Value where there is none

  void verify() const;                                  // Error{internal} naming the broken invariant
  std::string to_string() const;                        // stable text: no addresses, no paths of the machine
  std::string describe(std::int32_t value) const;       // "%14 f32[8,16]   relu   encoder/res1   models/autoencoder.cc:88"
  std::string describe_instr(std::int32_t instr) const;

  std::string scope_path(std::int32_t scope) const;     // "encoder/res1"; "" for the root
  std::span<const ScopeInfo> scopes() const { return scopes_; }
  std::int32_t current_scope() const { return scope_; }
  void push_scope(std::string_view name, Loc loc);
  void pop_scope();

  // Position under which instructions are recorded; autodiff and passes set it to that of the instruction they work on.
  struct Origin { std::int32_t scope; std::int32_t forward_of; Loc loc; bool override_loc; };
  Origin origin() const { return {scope_, forward_of_, origin_loc_, override_loc_}; }
  void set_origin(Origin);

  // For passes: an empty tape with this one's scopes, variables and constants, so that attributes keep their meaning.
  void adopt_pools(const Tape& other);
  std::int64_t next_stream() { return stream_++; }       // identity of a random instruction, kept by passes

 private:
  std::int64_t variable_index(Variable& variable);
  std::vector<Instr> instrs_;
  std::deque<TensorType> types_;                        // a deque: Value::type() and shape() stay valid while recording goes on
  std::vector<std::int32_t> producers_;
  std::vector<ScopeInfo> scopes_;
  std::vector<Variable*> variables_;
  std::vector<Value> reads_;                            // per variable: its read, or null
  std::vector<bool> assigned_;                          // per variable
  std::deque<Tensor> constants_;
  std::vector<std::shared_ptr<const RowProgram>> programs_;   // shared by the copies that passes make
  std::unordered_map<std::string, Value> inputs_;
  std::int32_t scope_ = 0, forward_of_ = -1;
  Loc origin_loc_;
  bool override_loc_ = false;
  std::int64_t stream_ = 0;
};

// Names the instructions recorded while it lives: Scope s(tape, "encoder");
class Scope {
 public:
  Scope(Tape& tape, std::string_view name, Loc loc = Loc::current()) : tape_(tape) { tape_.push_scope(name, loc); }
  ~Scope() { tape_.pop_scope(); }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  Tape& tape_;
};

}  // namespace sg
