#include "models/step_updates.h"

#include <algorithm>

namespace sg {

Value StepUpdates::next(Variable& variable) const {
  for (const auto& [v, value] : values_)
    if (v == &variable) return value;
  return tape_.read(variable);
}

bool StepUpdates::has(const Variable& variable) const {
  return std::any_of(values_.begin(), values_.end(), [&](const auto& entry) { return entry.first == &variable; });
}

void StepUpdates::set(Variable& variable, Value value) {
  for (auto& [v, old] : values_)
    if (v == &variable) {
      old = value;
      return;
    }
  values_.emplace_back(&variable, value);
}

void StepUpdates::commit(Loc loc) {
  for (const auto& [v, value] : values_) tape_.assign(*v, value, loc);
  values_.clear();
}

}  // namespace sg
