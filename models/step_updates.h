// What the variables are after a training step, while the step is being recorded. The optimizer sets its parameters'
// new values, quantizers then change what is theirs (a revived code, an averaged codebook), and commit() assigns each
// variable once.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "core/tape.h"

namespace sg {

class StepUpdates {
 public:
  explicit StepUpdates(Tape& tape) : tape_(tape) {}
  // The value that the variable is to have after the step: what was set last, else its value at the start of the step.
  Value next(Variable& variable) const;
  bool has(const Variable& variable) const;
  void set(Variable& variable, Value value);
  void commit(Loc loc = Loc::current());  // assigns all that was set

 private:
  Tape& tape_;
  std::vector<std::pair<Variable*, Value>> values_;
};

}  // namespace sg
