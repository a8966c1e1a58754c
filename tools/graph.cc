#include "tools/graph.h"

#include <map>
#include <numeric>
#include <set>
#include <sstream>

#include "core/op.h"

namespace sg::tools {
namespace {

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

std::vector<std::int32_t> all_instructions(const Tape& tape) {
  std::vector<std::int32_t> all(tape.instrs().size());
  std::iota(all.begin(), all.end(), 0);
  return all;
}

std::vector<std::int32_t> instructions_behind(const Tape& tape, std::span<const Value> roots) {
  std::vector<bool> wanted(static_cast<std::size_t>(tape.value_count()));
  for (const Value& v : roots) wanted[static_cast<std::size_t>(v.id)] = true;
  std::vector<std::int32_t> found;
  const auto instrs = tape.instrs();
  for (std::size_t i = instrs.size(); i-- > 0;) {
    bool used = false;
    for (const std::int32_t v : instrs[i].outputs) used = used || wanted[static_cast<std::size_t>(v)];
    if (!used) continue;
    for (const std::int32_t v : instrs[i].inputs) wanted[static_cast<std::size_t>(v)] = true;
    found.push_back(static_cast<std::int32_t>(i));
  }
  return {found.rbegin(), found.rend()};
}

std::string to_text(const Tape& tape, std::span<const std::int32_t> instrs) {
  // Tape::to_string() writes one line per instruction, and "# scope" where the scope changes.
  std::istringstream lines(tape.to_string());
  std::string out, scope, written_scope;
  std::int32_t index = 0;
  std::size_t next = 0;
  for (std::string line; std::getline(lines, line) && next < instrs.size();) {
    if (line.starts_with('#')) {
      scope = line;
      continue;
    }
    if (index++ != instrs[next]) continue;
    ++next;
    if (scope != written_scope) out += (written_scope = scope) + '\n';
    out += line + '\n';
  }
  return out;
}

std::string to_dot(const Tape& tape, std::span<const std::int32_t> instrs, const std::string& title) {
  std::string edges;
  std::map<std::int32_t, std::string> nodes;  // by scope
  std::set<std::int32_t> scopes;              // that hold a node, with their parents
  for (const std::int32_t i : instrs) {
    const Instr& instr = tape.instrs()[static_cast<std::size_t>(i)];
    const OpDef& op = op_def(instr.op);
    std::string label(op.name), style;
    if (op.role == Role::constant && instr.attrs.has("value")) label += fmt::format(" {:g}", instr.attrs.d("value"));
    if (op.role == Role::read)
      label = tape.name_of(instr.outputs[0]), style = ", shape=box, style=filled, fillcolor=\"#e8f0e0\"";
    if (op.role == Role::assign)
      label = fmt::format("assign '{}'", tape.variable_of(instr)->name()),
      style = ", shape=box, style=filled, fillcolor=\"#f6ecd8\"";
    if (op.role == Role::input)
      label = tape.name_of(instr.outputs[0]), style = ", shape=box, style=filled, fillcolor=\"#dde8f6\"";
    if (op.grad == GradKind::barrier) style = ", shape=octagon, color=\"#c62828\", fontcolor=\"#c62828\", penwidth=2";
    label = escaped(label);
    for (const std::int32_t v : instr.outputs) label += fmt::format("\\n%{} {}", v, to_string(tape.type(v)));
    nodes[instr.scope] += fmt::format("    n{} [label=\"{}\"{}];\n", i, label, style);
    for (std::int32_t s = instr.scope; s >= 0 && scopes.insert(s).second;)
      s = tape.scopes()[static_cast<std::size_t>(s)].parent;
    for (const std::int32_t v : instr.inputs) {
      const std::int32_t from = tape.producer(v);
      const GradKind kind = op_def(tape.instrs()[static_cast<std::size_t>(from)].op).grad;
      std::string edge;
      if (op.grad == GradKind::barrier)
        edge = " [style=dashed, color=\"#c62828\", penwidth=2]";
      else if (kind == GradKind::piecewise)
        edge = " [style=dashed, color=\"#909090\"]";
      edges += fmt::format("  n{} -> n{}{};\n", from, i, edge);
    }
  }

  // Children come after their parents, so a nested box is complete once all later scopes were put into it.
  std::map<std::int32_t, std::string> boxes;
  for (auto it = scopes.rbegin(); it != scopes.rend(); ++it) {
    const ScopeInfo& info = tape.scopes()[static_cast<std::size_t>(*it)];
    std::string body = nodes[*it] + boxes[*it];
    if (info.parent < 0 && info.name.empty())
      boxes[-1] += body;
    else
      boxes[info.parent] +=
          fmt::format("  subgraph cluster_{} {{ label=\"{}\"; color=\"#b0b8c4\"; fontsize=16;\n{}  }}\n", *it,
                      escaped(info.name), body);
  }
  return fmt::format(
      "digraph tape {{\n  label=\"{}\\nred, dashed: no gradient passes (stop_gradient)\"; labelloc=t; "
      "fontname=Helvetica;\n"
      "  node [fontname=Helvetica, fontsize=11, shape=ellipse]; edge [color=\"#404850\"];\n{}{}}}\n",
      escaped(title), boxes[-1], edges);
}

}  // namespace sg::tools
