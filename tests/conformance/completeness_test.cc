// Every op of the table has a case, a gradient where it is smooth, and a way to run on every backend; what an op says
// it means (decompose) is what it computes.
#include "tests/conformance/completeness.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "backends/backends.h"
#include "core/rewrite.h"

namespace sg::test {
namespace {

TEST(Completeness, EveryOpHasCasesGradientsAndKernels) {
  for (const OpDef& def : op_table()) {
    if (!takes_cases(def)) continue;
    for (const auto& hole : cover(def, false).holes) ADD_FAILURE() << def.name << ": " << hole;
  }
}

TEST(Completeness, EveryCaseOfAnOpUsesIt) {
  for (const auto& c : all_cases()) {
    const OpDef* def = nullptr;
    for (const OpDef& d : op_table())
      if (d.name == c.op) def = &d;
    if (!def) continue;
    CaseGraph graph;
    record_case(graph, c, draw_inputs(c, 1), false);
    bool used = false;
    for (const Instr& instr : graph.tape.instrs()) used = used || &op_def(instr.op) == def;
    EXPECT_TRUE(used) << c.op << "." << c.name;
  }
}

TEST(Completeness, CaseNamesAreUnique) {
  std::set<std::string> seen;
  for (const auto& c : all_cases()) EXPECT_TRUE(seen.insert(c.op + "." + c.name).second) << c.op << "." << c.name;
}

TEST(Completeness, CasesDrawTheSameInputsAgain) {
  const Case& c = all_cases().front();
  const Tensor a = draw_inputs(c, 3)[0], b = draw_inputs(c, 3)[0], other = draw_inputs(c, 4)[0];
  EXPECT_TRUE(std::equal(a.data(), a.data() + a.bytes(), b.data()));
  EXPECT_FALSE(std::equal(a.data(), a.data() + a.bytes(), other.data()));
}

TEST(Completeness, TableIsConsistent) {
  for (const OpDef& def : op_table()) {
    EXPECT_FALSE(def.name.empty());
    EXPECT_NE(def.infer, nullptr) << def.name;
    EXPECT_TRUE(!def.elementwise || def.scalar)
        << def.name << " is elementwise: its meaning for one element is missing";
  }
}

// The tape with every instruction that states a decomposition replaced by it; whether there was one.
bool decompose_all(const Tape& tape, Rewritten& out) {
  Rewriter w(tape);
  bool any = false;
  for (std::size_t i = 0; i < tape.instrs().size(); ++i) {
    const Instr& instr = tape.instrs()[i];
    const auto decompose = op_def(instr.op).decompose;
    if (!decompose) {
      w.copy(static_cast<std::int32_t>(i));
      continue;
    }
    any = true;
    w.at(static_cast<std::int32_t>(i));
    const std::vector<Value> inputs = w.mapped_inputs(instr);
    const std::vector<Value> results = decompose(w.out(), inputs, instr.attrs);
    for (std::size_t k = 0; k < results.size(); ++k) w.replace(instr.outputs[k], results[k]);
  }
  out = w.finish();
  return any;
}

TEST(Completeness, DecompositionsMeanTheOp) {
  CompileOptions plain;
  plain.optimize = plain.fuse = false;
  int checked = 0;
  for (const auto& c : all_cases()) {
    CaseGraph graph;
    std::vector<Tensor> inputs;
    for (const auto& t : draw_inputs(c, 1)) inputs.push_back(is_real(t.dtype()) ? t.cast(DType::f64) : t);
    record_case(graph, c, inputs, false);
    Rewritten simple;
    if (!decompose_all(graph.tape, simple)) continue;
    ++checked;
    const Value simple_output{simple.tape.get(), simple.map[static_cast<std::size_t>(graph.output.id)]};
    ASSERT_EQ(simple_output.type(), graph.output.type()) << c.op << "." << c.name;
    Program whole = compile(graph.tape, {graph.output}, backend("reference"), plain);
    Program parts = compile(*simple.tape, {simple_output}, backend("reference"), plain);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      whole.feed(fmt::format("x{}", i), inputs[i]);
      parts.feed(fmt::format("x{}", i), inputs[i]);
    }
    whole.run();
    parts.run();
    CaseResults got{inputs, {parts.fetch(simple_output)}}, want{inputs, {whole.fetch(graph.output)}};
    EXPECT_EQ(compare_results(c, got, want), "") << c.op << "." << c.name;
  }
  EXPECT_GT(checked, 0);
}

}  // namespace
}  // namespace sg::test
