// Substitution: a part of the graph recorded once more on the same tape, with some values exchanged. One mechanism for
// all that wants the same computation twice with a difference: a second decode with its parameters stopped (the exact
// gradient), one forward under several gradient estimators, a discriminator that is trained by one loss and only passed
// through by another.
#pragma once
#include <initializer_list>
#include <span>
#include <vector>

#include "core/tape.h"

namespace sg {

struct Substitution {
  Value from, to;
};

// Records again the instructions that lie between some `from` and the outputs, with each `from` replaced by its `to`,
// all at once: `to` is used as it stands, also where it depends on a `from` (stop_gradient(from) is the common case).
// What does not depend on a `from` is shared, not copied. Copies keep scope, line and attributes; a random instruction
// keeps its stream, so it gives the same numbers where its state is the same. Assigns are never copied.
// Returns the new outputs; the old ones where nothing that they depend on was replaced.
// Error{shape|dtype}: from and to differ in type. Error{usage}: a null Value, another tape, a `from` given twice.
std::vector<Value> substitute(std::span<const Value> outputs, std::span<const Substitution> substitutions,
                              Loc loc = Loc::current());
Value substitute(Value output, std::initializer_list<Substitution> substitutions, Loc loc = Loc::current());

}  // namespace sg
