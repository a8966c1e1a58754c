// A tape as text or as a Graphviz graph.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/tape.h"

namespace sg::tools {

std::vector<std::int32_t> all_instructions(const Tape& tape);
// What `roots` are computed from, in order.
std::vector<std::int32_t> instructions_behind(const Tape& tape, std::span<const Value> roots);

// The lines of Tape::to_string() that belong to the given instructions (in ascending order), under their scopes.
std::string to_text(const Tape& tape, std::span<const std::int32_t> instrs);
// Scopes are boxes. A stop_gradient is a red octagon and the edges into it, which no gradient crosses, are dashed and
// red; edges out of other ops without a gradient (argmin, compare) are dashed and grey.
std::string to_dot(const Tape& tape, std::span<const std::int32_t> instrs, const std::string& title);

}  // namespace sg::tools
