#include "backends/rewrites.h"

#include <algorithm>

#include "ops/op_ids.h"

namespace sg {
namespace {

constexpr std::int32_t kNone = -1;

struct Chain {
  std::int32_t conv, bias;  // instruction; value
  bool relu;
};

// Per value, the last instruction that reads it.
std::vector<std::int32_t> last_users(const Tape& tape) {
  std::vector<std::int32_t> users(static_cast<std::size_t>(tape.value_count()), kNone);
  const auto instrs = tape.instrs();
  for (std::size_t i = 0; i < instrs.size(); ++i)
    for (const auto v : instrs[i].inputs) users[static_cast<std::size_t>(v)] = static_cast<std::int32_t>(i);
  return users;
}

class Matcher {
 public:
  Matcher(const Tape& tape, std::span<const std::int32_t> keep)
      : tape_(tape), uses_(use_counts(tape, keep)), users_(last_users(tape)) {}

  // Where the convolution starts a chain: fills it in and returns the chain's last instruction; else kNone.
  std::int32_t match(std::int32_t conv, Chain& chain) const {
    if (at(conv).op != OpId::conv2d) return kNone;
    const std::int32_t y = at(conv).outputs[0], add = only_user(y, OpId::add);
    if (add == kNone) return kNone;
    const auto& operands = at(add).inputs;
    const std::int32_t bias = operands[0] == y ? operands[1] : operands[0];
    if (tape_.type(bias).shape != Shape{tape_.type(y).shape[3]} || has_no_elements(at(conv))) return kNone;
    const std::int32_t relu = only_user(at(add).outputs[0], OpId::relu);
    chain = {conv, bias, relu != kNone};
    return relu != kNone ? relu : add;
  }

 private:
  const Instr& at(std::int32_t i) const { return tape_.instrs()[static_cast<std::size_t>(i)]; }
  bool has_no_elements(const Instr& conv) const { return tape_.type(conv.inputs[0]).shape.elements() == 0; }
  std::int32_t only_user(std::int32_t value, OpId op) const {
    const auto v = static_cast<std::size_t>(value);
    if (uses_[v] != 1 || users_[v] == kNone || at(users_[v]).op != op) return kNone;
    return users_[v];
  }

  const Tape& tape_;
  std::vector<std::int32_t> uses_, users_;
};

}  // namespace

void RewriteChain::then(Rewritten next) {
  if (next.tape == nullptr) return;
  for (std::int32_t& v : keep_) v = next.map[static_cast<std::size_t>(v)];
  if (result_.tape != nullptr) next.map = compose(result_.map, next.map);
  result_ = std::move(next);
}

Rewritten decompose_where(const Tape& tape, const std::function<bool(const Tape&, const Instr&)>& wanted,
                          std::string_view backend) {
  const auto instrs = tape.instrs();
  if (std::none_of(instrs.begin(), instrs.end(), [&](const Instr& instr) { return wanted(tape, instr); })) return {};
  std::size_t count = 0;
  Rewritten open = decompose_unsupported(
      tape, [&](const Tape& t, const Instr& instr) { return !wanted(t, instr); }, backend, false, &count);
  for (const auto pass : {forward_aliases, simplify}) {
    Rewritten next = pass(*open.tape);
    next.map = compose(open.map, next.map);
    open = std::move(next);
  }
  return open;
}

Rewritten fuse_conv_bias(const Tape& tape, std::span<const std::int32_t> keep) {
  const auto instrs = tape.instrs();
  const auto count = static_cast<std::int32_t>(instrs.size());
  std::vector<Chain> chains;
  std::vector<bool> inner(instrs.size());                    // swallowed by a chain that ends later
  std::vector<std::int32_t> chain_at(instrs.size(), kNone);  // at a chain's last instruction: its index
  const Matcher matcher(tape, keep);
  for (std::int32_t i = 0; i < count; ++i) {
    Chain chain{};
    const std::int32_t last = matcher.match(i, chain);
    if (last == kNone) continue;
    inner[static_cast<std::size_t>(i)] = true;
    if (chain.relu)
      inner[static_cast<std::size_t>(tape.producer(instrs[static_cast<std::size_t>(last)].inputs[0]))] = true;
    chain_at[static_cast<std::size_t>(last)] = static_cast<std::int32_t>(chains.size());
    chains.push_back(chain);
  }
  if (chains.empty()) return {};

  Rewriter rewriter(tape);
  for (std::int32_t i = 0; i < count; ++i) {
    const auto index = static_cast<std::size_t>(i);
    if (inner[index]) continue;
    if (chain_at[index] == kNone) {
      rewriter.copy(i);
      continue;
    }
    const Chain& chain = chains[static_cast<std::size_t>(chain_at[index])];
    const Instr& conv = instrs[static_cast<std::size_t>(chain.conv)];
    Attrs attrs = conv.attrs;
    attrs.set("relu", std::int64_t{chain.relu});
    rewriter.at(chain.conv);
    rewriter.replace(instrs[index].outputs[0],
                     rewriter.out().emit1(OpId::conv2d_bias,
                                          {rewriter.mapped(conv.inputs[0]), rewriter.mapped(conv.inputs[1]),
                                           rewriter.mapped(chain.bias)},
                                          std::move(attrs), conv.loc));
  }
  return rewriter.finish();
}

}  // namespace sg
