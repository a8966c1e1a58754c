// compile(): passes on a copy of the tape, a memory plan, one Step per instruction. Program: feed, run, fetch, replay.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/recompute.h"
#include "core/tape.h"

namespace sg {

struct CompileOptions {
  bool fuse = true;            // backend-specific fusion
  bool plan_memory = true;     // off: every value has its own buffer
  bool reorder = true;         // with plan_memory: another order of the instructions where fewer bytes live at once in it
  bool capture = true;         // backends that can replay a whole step as one graph do so
  bool exact_forward = true;   // a + stop_gradient(b - a) gets the bits of b
  bool optimize = true;        // common subexpressions, constant folding
  bool strict = true;          // an op that the backend has no kernel for is an error; off: it is decomposed, and explain() says so
  bool check_finite = false;   // a NaN or infinity in a fetch or an assign is an Error{non_finite}; nothing is committed
  bool profile = false;        // time each step; explain() reports it
  bool guard = false;          // pattern bytes around every buffer, checked after each run (tests)
  RecomputeOptions recompute = {};  // trade time for memory: values that only gradients need are computed again for them
};

struct ProgramStats {
  std::size_t steps = 0, reorders = 0, packs = 0, decomposed = 0;
  std::size_t inner_reorders = 0;    // layout changes of weights inside steps (a gradient back to the stored layout)
  std::size_t arena_bytes = 0;       // what was allocated for intermediate values
  std::size_t sum_bytes = 0;         // the same without reuse
  std::size_t lower_bound_bytes = 0; // the largest set of values alive at once
  RecomputeReport recompute;         // where CompileOptions asks for it
  std::size_t persistent_bytes = 0, scratch_bytes = 0, feed_bytes = 0;
};

class Program {
 public:
  Program(Program&&) noexcept;
  Program& operator=(Program&&) noexcept;
  ~Program();

  void feed(Value input, const Tensor& value);    // copies; Error{shape|dtype|usage}
  void feed(std::string_view name, const Tensor& value);
  void run();                                     // Error{usage} where an input was never fed
  Tensor fetch(Value value) const;                // copies; Error{usage} where the value was not among the fetches
  double fetch_scalar(Value value) const;         // no allocation
  void fetch_into(Value value, Tensor& out) const;  // copies into a tensor of the same type; no allocation

  std::string explain() const;                    // steps, reorders, memory against its bounds, time per step kind
  const Tape& compiled_tape() const;              // what the passes left, for tests and dumps
  ProgramStats stats() const;
  std::vector<std::pair<std::string, double>> profile() const;  // seconds per run by step kind, with CompileOptions::profile
  void fill_arena(std::byte pattern);             // tests: garbage between replays

  struct Impl;
  explicit Program(std::unique_ptr<Impl>);

 private:
  std::unique_ptr<Impl> impl_;
};

// fetches may be empty where the tape assigns something. The tape must outlive nothing: the program keeps its own copy,
// but the Variables that it reads and assigns must outlive it.
Program compile(const Tape& tape, std::span<const Value> fetches, Backend& backend, CompileOptions options = {});
Program compile(const Tape& tape, std::initializer_list<Value> fetches, Backend& backend, CompileOptions options = {});

// Compiles and runs once, for values that depend on no input. Nothing is assigned. For tests and interactive use.
Tensor eval(Value value, Backend& backend, CompileOptions options = {});

}  // namespace sg
