#include "backends/cpu/row_passes.h"

#include <algorithm>
#include <optional>

namespace sg::cpu {
namespace {

using Layout = RowProgram::Layout;
using Kind = RowProgram::Kind;

std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }

class Passes {
 public:
  explicit Passes(const RowProgram& program)
      : p_(program), readers_(p_.registers.size(), 0), maker_(p_.registers.size(), -1) {
    for (std::size_t i = 0; i < p_.code.size(); ++i) {
      for (const int r : p_.code[i].in) ++readers_[ix(r)];
      maker_[ix(p_.code[i].out)] = static_cast<int>(i);
    }
    for (const int r : p_.outputs) ++readers_[ix(r)];
  }

  std::vector<RowPass> run() {
    std::vector<RowPass> passes;
    gone_.assign(p_.code.size(), false);
    for (std::size_t i = 0; i < p_.code.size(); ++i) passes.push_back(pass_of(static_cast<int>(i), passes));
    std::erase_if(passes, [&](const RowPass& pass) { return gone_[ix(pass.op)]; });
    return passes;
  }

 private:
  const RowProgram::Op& op(int i) const { return p_.code[ix(i)]; }
  Layout layout(int reg) const { return p_.registers[ix(reg)].layout; }
  // What varies along a row: an operand that is read in vectors.
  bool is_vector(int reg) const {
    return layout(reg) == Layout::full || layout(reg) == Layout::column || layout(reg) == Layout::segment;
  }

  std::optional<simd::Binary> binary(int i) const {
    const RowKernel kernel = row_kernel(op(i).op);
    if (op(i).kind != Kind::elementwise || layout(op(i).out) != Layout::full) return std::nullopt;
    if (kernel.kind == RowKernel::unary && static_cast<simd::Unary>(kernel.code) == simd::Unary::square)
      return simd::Binary::mul;
    if (kernel.kind != RowKernel::binary) return std::nullopt;
    const auto code = static_cast<simd::Binary>(kernel.code);
    const bool known = code == simd::Binary::add || code == simd::Binary::sub || code == simd::Binary::mul;
    return known ? std::optional(code) : std::nullopt;
  }

  // The op that makes a register which nothing else reads and which is not rounded, if that can join another pass.
  std::optional<int> joining(int reg, const std::vector<RowPass>& passes) const {
    const int i = maker_[ix(reg)];
    if (i < 0 || readers_[ix(reg)] != 1 || p_.registers[ix(reg)].dtype == DType::bf16) return std::nullopt;
    if (!binary(i) || passes[ix(i)].form != RowPass::single) return std::nullopt;
    return i;
  }

  // Operands of a sum, difference or product, a vector first; nothing where that would change a difference.
  std::optional<std::array<int, 2>> operands(int i) const {
    const auto& in = op(i).in;
    std::array<int, 2> out{in[0], in.size() > 1 ? in[1] : in[0]};
    if (is_vector(out[0])) return out;
    if (binary(i) == simd::Binary::sub) return std::nullopt;
    std::swap(out[0], out[1]);
    return is_vector(out[0]) ? std::optional(out) : std::nullopt;
  }

  RowPass pass_of(int i, const std::vector<RowPass>& passes) {
    const auto& in = op(i).in;
    RowPass pass{RowPass::single, i, 0, {}, static_cast<int>(in.size())};
    std::copy(in.begin(), in.end(), pass.in.begin());
    if (op(i).kind == Kind::reduce_row) {
      if (static_cast<Reduction>(row_kernel(op(i).op).code) != Reduction::sum) return pass;
      const auto inner = joining(in[0], passes);
      if (!inner || binary(*inner) != simd::Binary::mul) return pass;
      const auto factors = operands(*inner);
      if (!factors || !is_vector((*factors)[1])) return pass;
      gone_[ix(*inner)] = true;
      return {RowPass::row_products, i, 0, {(*factors)[0], (*factors)[1]}, 2};
    }
    const auto outer = binary(i);
    if (!outer || in.size() != 2) return pass;
    const std::array<std::optional<int>, 2> inner{joining(in[0], passes), joining(in[1], passes)};
    const auto product = [&](int k) { return inner[ix(k)] && binary(*inner[ix(k)]) == simd::Binary::mul; };
    if (*outer != simd::Binary::mul && in[0] != in[1] && product(0) && product(1)) {
      const auto left = operands(*inner[0]), right = operands(*inner[1]);
      if (left && right) {
        gone_[ix(*inner[0])] = gone_[ix(*inner[1])] = true;
        return {RowPass::two_products,
                i,
                *outer == simd::Binary::add ? 0 : 1,
                {(*left)[0], (*left)[1], (*right)[0], (*right)[1]},
                4};
      }
    }
    // A product first: it becomes a multiply-add.
    for (const int k : product(0) || !product(1) ? std::array{0, 1} : std::array{1, 0}) {
      if (!inner[ix(k)]) continue;
      const auto first = operands(*inner[ix(k)]);
      if (!first) continue;
      const auto f = binary(*inner[ix(k)]) == simd::Binary::add   ? simd::First::add
                     : binary(*inner[ix(k)]) == simd::Binary::sub ? simd::First::sub
                                                                  : simd::First::mul;
      const auto s = *outer == simd::Binary::add   ? simd::Second::add
                     : *outer == simd::Binary::mul ? simd::Second::mul
                     : k == 0                      ? simd::Second::sub
                                                   : simd::Second::sub_from;
      gone_[ix(*inner[ix(k)])] = true;
      return {RowPass::pair, i, simd::pair_code(f, s), {(*first)[0], (*first)[1], in[ix(1 - k)]}, 3};
    }
    return pass;
  }

  const RowProgram& p_;
  std::vector<int> readers_, maker_;  // by register; an output has one reader more
  std::vector<bool> gone_;            // by op: done in the pass of another
};

}  // namespace

std::vector<RowPass> passes_of(const RowProgram& program) { return Passes(program).run(); }

}  // namespace sg::cpu
