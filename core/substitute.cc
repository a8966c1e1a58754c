#include "core/substitute.h"

#include <algorithm>
#include <unordered_map>

namespace sg {
namespace {

std::size_t ix(std::int32_t i) { return static_cast<std::size_t>(i); }

[[noreturn]] void refuse(ErrorKind kind, const std::string& what, Loc loc) {
  throw Error(kind, fmt::format("substitute: {}\n  at {}", what, to_string(loc)), loc);
}

void check(Tape& tape, std::span<const Value> outputs, std::span<const Substitution> substitutions, Loc loc) {
  const auto on_tape = [&](const Value& v, std::string_view which) {
    if (v.tape != &tape)
      refuse(ErrorKind::usage, fmt::format("{} is {}", which, v ? "on another tape" : "a null Value"), loc);
  };
  for (const Value& v : outputs) on_tape(v, "an output");
  for (const auto& [from, to] : substitutions) {
    on_tape(from, "a 'from'");
    on_tape(to, "a 'to'");
    if (from.type() != to.type())
      refuse(from.dtype() != to.dtype() ? ErrorKind::dtype : ErrorKind::shape,
             fmt::format("{} cannot take the place of {}\n  from {}\n  to   {}", to_string(to.type()),
                         to_string(from.type()), tape.describe(from.id), tape.describe(to.id)),
             loc);
  }
}

}  // namespace

std::vector<Value> substitute(std::span<const Value> outputs, std::span<const Substitution> substitutions, Loc loc) {
  if (outputs.empty()) return {};
  if (!outputs[0]) refuse(ErrorKind::usage, "an output is a null Value", loc);
  Tape& tape = *outputs[0].tape;
  check(tape, outputs, substitutions, loc);

  std::unordered_map<std::int32_t, Value> replaced;
  for (const auto& [from, to] : substitutions)
    if (!replaced.emplace(from.id, to).second)
      refuse(ErrorKind::usage, fmt::format("{} is to be replaced twice", tape.name_of(from.id)), loc);

  // What the outputs depend on; nothing behind a `from` matters, for it is no longer used.
  const std::size_t end = tape.instrs().size();
  std::vector<char> used(ix(tape.value_count()), 0);
  for (const Value& v : outputs) used[ix(v.id)] = 1;
  std::vector<char> wanted(end, 0);
  for (std::size_t i = end; i-- > 0;) {
    const Instr& instr = tape.instrs()[i];
    wanted[i] = std::any_of(instr.outputs.begin(), instr.outputs.end(),
                            [&](std::int32_t v) { return used[ix(v)] != 0 && !replaced.contains(v); });
    if (wanted[i])
      for (std::int32_t v : instr.inputs) used[ix(v)] = 1;
  }

  const auto successor = [&](std::int32_t v) {
    const auto it = replaced.find(v);
    return it == replaced.end() ? tape.value(v) : it->second;
  };
  std::unordered_map<std::int32_t, std::int32_t> copies;  // instruction -> its copy
  const Tape::Origin saved = tape.origin();
  for (std::size_t i = 0; i < end; ++i) {
    const Instr instr = tape.instrs()[i];  // a copy: emit appends to the list
    if (!wanted[i] ||
        std::none_of(instr.inputs.begin(), instr.inputs.end(), [&](std::int32_t v) { return replaced.contains(v); }))
      continue;
    std::vector<Value> inputs;
    for (std::int32_t v : instr.inputs) inputs.push_back(successor(v));
    const auto differentiated = copies.find(instr.forward_of);
    tape.set_origin(
        {instr.scope, differentiated == copies.end() ? instr.forward_of : differentiated->second, instr.loc, true});
    copies.emplace(static_cast<std::int32_t>(i), static_cast<std::int32_t>(tape.instrs().size()));
    const std::vector<Value> values = tape.emit(instr.op, inputs, instr.attrs);
    // A `from` among the outputs of an instruction with several keeps its `to`.
    for (std::size_t k = 0; k < values.size(); ++k) replaced.emplace(instr.outputs[k], values[k]);
  }
  tape.set_origin(saved);

  std::vector<Value> result;
  for (const Value& v : outputs) result.push_back(successor(v.id));
  return result;
}

Value substitute(Value output, std::initializer_list<Substitution> substitutions, Loc loc) {
  return substitute(std::span<const Value>(&output, 1),
                    std::span<const Substitution>(substitutions.begin(), substitutions.size()), loc)[0];
}

}  // namespace sg
