#include "tests/conformance/completeness.h"

#include <fmt/format.h>

#include <algorithm>

#include "backends/backends.h"
#include "core/gradcheck.h"

namespace sg::test {
namespace {

std::vector<const Case*> cases_of(std::string_view op) {
  std::vector<const Case*> found;
  for (const auto& c : all_cases())
    if (c.op == op) found.push_back(&c);
  return found;
}

std::string order2_of(const std::vector<const Case*>& cases) {
  for (const Case* c : cases) {
    if (!c->gradcheck || c->forward_only) continue;
    const std::vector<Tensor> inputs = draw_inputs(*c, 1);
    CaseGraph graph;
    record_case(graph, *c, inputs, true);
    if (graph.wrt.empty()) continue;
    GradcheckOptions options;
    options.order = 2, options.wrt.assign(inputs.size(), false);
    for (const auto i : graph.wrt) options.wrt[i] = true;
    return gradcheck([&](Tape& t, std::span<const Value> x) { return c->build(t, x); }, inputs, backend("reference"),
                     options)
                   .ok
               ? "ok"
               : "fails";
  }
  return "missing";
}

// How a backend runs the op's instructions in every case; "missing" where one can be neither run nor decomposed.
std::string kernel_of(const OpDef& def, const std::vector<const Case*>& cases, Backend& backend) {
  if (def.role == Role::alias || def.role == Role::after || def.role == Role::stop_gradient) return "alias";
  bool all = true;
  for (const Case* c : cases) {
    CaseGraph graph;
    record_case(graph, *c, draw_inputs(*c, 1), false);
    for (const Instr& instr : graph.tape.instrs())
      if (&op_def(instr.op) == &def) all = all && backend.supports(graph.tape, instr);
  }
  return all ? "kernel" : def.decompose ? "decompose" : "missing";
}

}  // namespace

bool takes_cases(const OpDef& def) {
  return def.role != Role::input && def.role != Role::constant && def.role != Role::read && def.role != Role::assign &&
         def.role != Role::region && def.role != Role::bundle;
}

OpCoverage cover(const OpDef& def, bool with_order2) {
  OpCoverage row;
  const std::vector<const Case*> cases = cases_of(def.name);
  row.cases = cases.size();
  if (cases.empty()) row.holes.push_back("no case; add one to tests/conformance");
  if (def.grad != GradKind::smooth) {
    row.vjp = row.order2 = "-";
    if (def.vjp && def.grad != GradKind::barrier) row.holes.push_back("has a vjp although it is not smooth");
  } else {
    row.vjp = def.vjp ? "own" : def.decompose ? "decompose" : "missing";
    if (row.vjp == "missing") row.holes.push_back("smooth, but neither vjp nor decompose");
    row.order2 = with_order2 ? order2_of(cases) : "-";
    if (row.order2 == "missing") row.holes.push_back("smooth, but no case that gradcheck runs on");
    if (row.order2 == "fails") row.holes.push_back("gradcheck fails");
  }
  for (const auto name : backend_names()) {
    row.kernels[std::string(name)] = kernel_of(def, cases, backend(name));
    if (row.kernels[std::string(name)] == "missing")
      row.holes.push_back(fmt::format("backend {} has no kernel for a case, and there is no decompose", name));
  }
  return row;
}

}  // namespace sg::test
