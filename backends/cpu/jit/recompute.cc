#include "backends/cpu/jit/recompute.h"

#include <algorithm>

#include "backends/cpu/lowering.h"

namespace sg::cpu::jit {
namespace {

using Layout = RowProgram::Layout;
using Kind = RowProgram::Kind;

constexpr int kMaxCost = 3;           // ops per element that a store and a load are worth
constexpr std::size_t kMaxOps = 128;  // of a program: longer ones do not fit the straight-line code twice
constexpr int kDear = 1000;

std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }

bool is_cheap(const RowProgram& p, const RowProgram::Op& op) {
  const RowProgram::Register& out = p.registers[ix(op.out)];
  if (op.kind != Kind::elementwise || out.layout != Layout::full || out.dtype != DType::f32) return false;
  const RowKernel kernel = row_kernel(op.op);
  if (kernel.kind == RowKernel::unary) {
    const auto u = static_cast<simd::Unary>(kernel.code);
    return u == simd::Unary::neg || u == simd::Unary::square;
  }
  if (kernel.kind != RowKernel::binary) return false;
  const auto b = static_cast<simd::Binary>(kernel.code);
  return b == simd::Binary::add || b == simd::Binary::sub || b == simd::Binary::mul;
}

}  // namespace

std::vector<std::size_t> recompute_cheap(RowProgram& p, std::vector<int>& phase) {
  struct Node {
    RowProgram::Op op;
    int phase;
    int origin;  // -1: a repetition
  };
  std::vector<Node> nodes;
  std::vector<int> cost(p.registers.size(), 0);  // of having a register in a phase that does not make it
  for (std::size_t i = 0; i < p.code.size(); ++i) {
    const RowProgram::Op& op = p.code[i];
    nodes.push_back({op, phase[i], static_cast<int>(i)});
    // What is looked up is read again like an input.
    if (p.registers[ix(op.out)].layout == Layout::full && op.kind != Kind::gather) {
      int sum = is_cheap(p, op) ? 1 : kDear;
      for (const int r : op.in) sum = std::min(kDear, sum + cost[ix(r)]);
      cost[ix(op.out)] = sum;
    }
  }
  for (const int r : p.outputs) cost[ix(r)] = kDear;  // is in memory
  if (p.code.size() <= kMaxOps)
    for (std::size_t i = nodes.size(); i-- > 0;) {
      const int reg = nodes[i].op.out, made = nodes[i].phase;
      if (p.registers[ix(reg)].layout != Layout::full || cost[ix(reg)] > kMaxCost || nodes[i].op.kind == Kind::gather)
        continue;
      for (int later = *std::max_element(phase.begin(), phase.end()); later > made; --later) {
        const auto reads = [&](const Node& n) {
          return n.phase == later && std::find(n.op.in.begin(), n.op.in.end(), reg) != n.op.in.end();
        };
        const auto first = std::find_if(nodes.begin() + static_cast<std::ptrdiff_t>(i), nodes.end(), reads);
        if (first == nodes.end()) continue;
        const auto again = static_cast<int>(p.registers.size());
        p.registers.push_back(p.registers[ix(reg)]);
        for (auto n = first; n != nodes.end(); ++n)
          if (reads(*n)) std::replace(n->op.in.begin(), n->op.in.end(), reg, again);
        Node copy{nodes[i].op, later, -1};
        copy.op.out = again;
        nodes.insert(first, copy);
      }
    }
  // What nothing reads any more in its own phase.
  std::vector<bool> read(p.registers.size(), false);
  for (const int r : p.outputs) read[ix(r)] = true;
  std::vector<std::size_t> place(p.code.size(), 0);
  std::vector<Node> kept;
  for (auto n = nodes.rbegin(); n != nodes.rend(); ++n) {
    const bool full = p.registers[ix(n->op.out)].layout == Layout::full && n->op.kind == Kind::elementwise;
    if (full && !read[ix(n->op.out)]) continue;
    for (const int r : n->op.in) read[ix(r)] = true;
    kept.push_back(std::move(*n));
  }
  std::reverse(kept.begin(), kept.end());
  p.code.clear(), phase.clear();
  for (const Node& n : kept) {
    if (n.origin >= 0) place[ix(n.origin)] = p.code.size();
    p.code.push_back(n.op);
    phase.push_back(n.phase);
  }
  return place;
}

}  // namespace sg::cpu::jit
