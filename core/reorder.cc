#include "core/reorder.h"

#include <algorithm>
#include <numeric>
#include <set>

namespace sg {
namespace {

std::size_t ix(std::int32_t i) { return static_cast<std::size_t>(i); }

}  // namespace

Rewritten reorder(const Tape& tape, std::span<const std::int32_t> keep, const BytesFn& bytes) {
  constexpr std::size_t kLimit = 20000;  // instructions: beyond, compile time matters more
  const auto instrs = tape.instrs();
  if (instrs.size() > kLimit) return {nullptr, {}};
  const auto end = static_cast<std::int32_t>(instrs.size());

  std::vector<std::int32_t> root(ix(tape.value_count())), uses(ix(tape.value_count()), 0);
  std::vector<std::size_t> size(ix(tape.value_count()), 0);  // of what the arena holds
  std::iota(root.begin(), root.end(), 0);
  for (const Instr& instr : instrs) {
    const Role role = op_def(instr.op).role;
    if (role == Role::alias || role == Role::after || role == Role::stop_gradient) {
      root[ix(instr.outputs[0])] = root[ix(instr.inputs[0])];
      continue;
    }
    if (role == Role::input || role == Role::constant || role == Role::read) continue;
    for (std::int32_t v : instr.outputs) size[ix(v)] = bytes(tape.type(v));
  }
  const auto distinct_roots = [&](const Instr& instr) {
    std::vector<std::int32_t> roots;
    for (std::int32_t v : instr.inputs)
      if (std::find(roots.begin(), roots.end(), root[ix(v)]) == roots.end()) roots.push_back(root[ix(v)]);
    return roots;
  };
  for (std::int32_t v : keep) ++uses[ix(root[ix(v)])];
  std::vector<std::int32_t> waiting(instrs.size(), 0);
  std::vector<std::vector<std::int32_t>> users(ix(tape.value_count()));
  for (std::int32_t i = 0; i < end; ++i) {
    const Instr& instr = instrs[ix(i)];
    // What is assigned lives to the end of the step.
    for (std::int32_t v : distinct_roots(instr)) uses[ix(v)] += op_def(instr.op).role == Role::assign ? 2 : 1;
    waiting[ix(i)] = static_cast<std::int32_t>(instr.inputs.size());
    for (std::int32_t v : instr.inputs) users[ix(v)].push_back(i);
  }
  const auto frees_enough = [&](std::int32_t i) {
    const Instr& instr = instrs[ix(i)];
    std::size_t made = 0, freed = 0;
    for (std::int32_t v : instr.outputs) made += size[ix(root[ix(v)])] * (root[ix(v)] == v ? 1 : 0);
    for (std::int32_t v : distinct_roots(instr)) freed += uses[ix(v)] == 1 ? size[ix(v)] : 0;
    return freed >= made;
  };

  std::set<std::int32_t> ready;
  for (std::int32_t i = 0; i < end; ++i)
    if (waiting[ix(i)] == 0) ready.insert(i);
  Rewriter r(tape);
  bool moved = false;
  for (std::int32_t done = 0; done < end; ++done) {
    SG_CHECK(!ready.empty(), "reorder: {} of {} instructions are ready", done, end);
    const auto first = std::find_if(ready.begin(), ready.end(), frees_enough);
    const std::int32_t next = first != ready.end() ? *first : *ready.begin();
    moved = moved || next != *ready.begin();
    ready.erase(next);
    r.copy(next);
    const Instr& instr = instrs[ix(next)];
    for (std::int32_t v : distinct_roots(instr)) --uses[ix(v)];
    for (std::int32_t v : instr.outputs)
      for (std::int32_t u : users[ix(v)])
        if (--waiting[ix(u)] == 0) ready.insert(u);
  }
  if (!moved) return {nullptr, {}};
  return r.finish();
}

}  // namespace sg
