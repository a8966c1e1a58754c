#include "backends/rewrites.h"

#include <algorithm>

#include "ops/op_ids.h"

namespace sg {
namespace {

constexpr std::int32_t kNone = -1;

std::size_t ix(std::int32_t i) { return static_cast<std::size_t>(i); }

// What a product and the instructions after it become: one instruction in the place of the last of them.
struct Chain {
  std::int32_t product = kNone, last = kNone;  // instructions
  std::int32_t bias = kNone, skip = kNone;     // values
  bool relu = false;
  std::vector<std::int32_t> inner;  // the instructions that go, without the last
};

// The value in whose memory this one lies: reshapes and the like are the same memory.
std::int32_t memory_of(const Tape& tape, std::int32_t value) {
  for (;;) {
    const Instr& maker = tape.instrs()[ix(tape.producer(value))];
    const Role role = op_def(maker.op).role;
    if (role != Role::alias && role != Role::after && role != Role::stop_gradient) return value;
    value = maker.inputs[0];
  }
}

// What may follow a product: who uses a value, what it may overwrite. Instructions belong to one chain at most.
class Uses {
 public:
  Uses(const Tape& tape, std::span<const std::int32_t> keep)
      : tape_(tape),
        keep_(keep),
        count_(use_counts(tape, keep)),
        users_(ix(tape.value_count())),
        taken_(tape.instrs().size()) {
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(tape.instrs().size()); ++i)
      for (const std::int32_t v : at(i).inputs) users_[ix(v)].push_back(i);
  }

  const Instr& at(std::int32_t i) const { return tape_.instrs()[ix(i)]; }
  const Shape& shape(std::int32_t value) const { return tape_.type(value).shape; }
  std::int64_t columns(std::int32_t value) const { return shape(value).rank() == 0 ? 1 : shape(value)[-1]; }
  std::int32_t result(std::int32_t i) const { return at(i).outputs[0]; }
  const std::vector<std::int32_t>& users(std::int32_t value) const { return users_[ix(value)]; }

  // The only instruction that uses the value, where that is such an op and of no chain yet; else kNone.
  std::int32_t only_user(std::int32_t value, OpId op) const {
    if (count_[ix(value)] != 1 || users(value).size() != 1) return kNone;
    const std::int32_t user = users(value)[0];
    return at(user).op == op && !taken_[ix(user)] ? user : kNone;
  }
  std::int32_t other_operand(std::int32_t add, std::int32_t value) const {
    return at(add).inputs[0] == value ? at(add).inputs[1] : at(add).inputs[0];
  }

  // Whether nobody needs the memory of `value` once `add` has read it, in whatever order the rest runs, and it may be
  // written over: all others that read it come before `product`.
  bool ends_at(std::int32_t value, std::int32_t add, std::int32_t product) const {
    const std::int32_t memory = memory_of(tape_, value);
    const Role maker = op_def(at(tape_.producer(memory)).op).role;
    if (maker == Role::input || maker == Role::constant || maker == Role::read) return false;
    for (const std::int32_t v : keep_)
      if (memory_of(tape_, v) == memory) return false;
    const std::vector<bool> before = instructions_before(product);
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(tape_.instrs().size()); ++i) {
      if (i == add || before[ix(i)] || op_def(at(i).op).role == Role::alias) continue;
      for (const std::int32_t v : at(i).inputs)
        if (memory_of(tape_, v) == memory) return false;
    }
    return true;
  }

  // Whether a row op that reads the value could be of one region with the instruction that makes it: it has the same
  // columns and does not wait for what other readers make.
  bool joined_by_rows(std::int32_t value, const Asked& in_rows) const {
    std::vector<std::int32_t> names{value}, near, open;
    std::vector<bool> waits(tape_.instrs().size());
    for (std::size_t k = 0; k < names.size(); ++k)
      for (const std::int32_t user : users(names[k])) {
        const bool alias = op_def(at(user).op).role == Role::alias;
        if (alias)
          names.push_back(result(user));
        else if (in_rows(tape_, at(user)) && columns(names[k]) == columns(value))
          near.push_back(user);
        else
          open.push_back(user);
      }
    while (!open.empty()) {
      const std::int32_t i = open.back();
      open.pop_back();
      if (waits[ix(i)]) continue;
      waits[ix(i)] = true;
      for (const std::int32_t v : at(i).outputs) open.insert(open.end(), users(v).begin(), users(v).end());
    }
    return std::any_of(near.begin(), near.end(), [&](std::int32_t i) { return !waits[ix(i)]; });
  }

  // The same of the row op that makes a skip: it must not come before the product that the skip is added to.
  bool made_by_rows(std::int32_t skip, std::int32_t product, const Asked& in_rows) const {
    const std::int32_t maker = tape_.producer(memory_of(tape_, skip));
    return in_rows(tape_, at(maker)) && columns(result(maker)) == columns(skip) &&
           !instructions_before(product)[ix(maker)];
  }

  void take(const Chain& chain) {
    taken_[ix(chain.last)] = true;
    for (const std::int32_t i : chain.inner) taken_[ix(i)] = true;
  }

 private:
  std::vector<bool> instructions_before(std::int32_t last) const {
    std::vector<bool> before(tape_.instrs().size());
    std::vector<std::int32_t> open(at(last).inputs.begin(), at(last).inputs.end());
    while (!open.empty()) {
      const std::int32_t maker = tape_.producer(open.back());
      open.pop_back();
      if (before[ix(maker)]) continue;
      before[ix(maker)] = true;
      open.insert(open.end(), at(maker).inputs.begin(), at(maker).inputs.end());
    }
    return before;
  }

  const Tape& tape_;
  std::span<const std::int32_t> keep_;
  std::vector<std::int32_t> count_;
  std::vector<std::vector<std::int32_t>> users_;
  std::vector<bool> taken_;
};

Chain chain_from(std::int32_t product) {
  Chain chain;
  chain.product = chain.last = product;
  return chain;
}

// Follows the chain over `next`, whose result it then ends in.
void go_on(Chain& chain, std::int32_t next) {
  chain.inner.push_back(chain.last);
  chain.last = next;
}

// Takes the relu along that alone uses the chain's result.
void go_on_over_relu(const Uses& uses, Chain& chain) {
  const std::int32_t relu = uses.only_user(uses.result(chain.last), OpId::relu);
  if (relu == kNone) return;
  chain.relu = true;
  go_on(chain, relu);
}

// Each chain as one instruction in the place of its last, made by emit(rewriter, chain).
template <class Emit>
Rewritten replace_chains(const Tape& tape, const std::vector<Chain>& chains, Emit emit) {
  if (chains.empty()) return {};
  std::vector<bool> inner(tape.instrs().size());
  std::vector<const Chain*> chain_at(tape.instrs().size());
  for (const Chain& chain : chains) {
    for (const std::int32_t i : chain.inner) inner[ix(i)] = true;
    chain_at[ix(chain.last)] = &chain;
  }
  Rewriter rewriter(tape);
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(tape.instrs().size()); ++i) {
    if (inner[ix(i)]) continue;
    if (chain_at[ix(i)] == nullptr) {
      rewriter.copy(i);
      continue;
    }
    rewriter.at(chain_at[ix(i)]->product);
    rewriter.replace(tape.instrs()[ix(i)].outputs[0], emit(rewriter, *chain_at[ix(i)]));
  }
  return rewriter.finish();
}

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

bool shares_memory(const Tape& tape, const Instr& instr, int i) {
  const std::int32_t memory = memory_of(tape, instr.inputs[ix(i)]);
  for (std::size_t k = 0; k < instr.inputs.size(); ++k)
    if (k != ix(i) && memory_of(tape, instr.inputs[k]) == memory) return true;
  return false;
}

Rewritten fuse_conv_bias(const Tape& tape, std::span<const std::int32_t> keep) {
  Uses uses(tape, keep);
  std::vector<Chain> chains;
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(tape.instrs().size()); ++i) {
    if (uses.at(i).op != OpId::conv2d || uses.shape(uses.at(i).inputs[0]).elements() == 0) continue;
    Chain chain = chain_from(i);
    const std::int32_t y = uses.result(i), add = uses.only_user(y, OpId::add);
    if (add == kNone) continue;
    chain.bias = uses.other_operand(add, y);
    if (uses.shape(chain.bias) != Shape{uses.columns(y)}) continue;
    go_on(chain, add);
    go_on_over_relu(uses, chain);
    uses.take(chain);
    chains.push_back(std::move(chain));
  }
  return replace_chains(tape, chains, [&](Rewriter& rewriter, const Chain& chain) {
    const Instr& conv = uses.at(chain.product);
    Attrs attrs = conv.attrs;
    attrs.set("relu", std::int64_t{chain.relu});
    return rewriter.out().emit1(
        OpId::conv2d_bias,
        {rewriter.mapped(conv.inputs[0]), rewriter.mapped(conv.inputs[1]), rewriter.mapped(chain.bias)},
        std::move(attrs), conv.loc);
  });
}

Rewritten fuse_conv_skip(const Tape& tape, std::span<const std::int32_t> keep,
                         const std::function<TakesSkip(const Tape&, const Instr&)>& takes, const Asked& in_rows) {
  Uses uses(tape, keep);
  std::vector<Chain> chains;
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(tape.instrs().size()); ++i) {
    const Instr& conv = uses.at(i);
    if (conv.op != OpId::conv2d_bias || conv.inputs.size() != 3 || conv.attrs.i("relu") != 0) continue;
    const TakesSkip where = takes(tape, conv);
    Chain chain = chain_from(i);
    const std::int32_t y = uses.result(i), sum = uses.only_user(y, OpId::add);
    if (sum == kNone || where == TakesSkip::never) continue;
    chain.skip = uses.other_operand(sum, y);
    go_on(chain, sum);
    go_on_over_relu(uses, chain);
    if (uses.shape(chain.skip) != uses.shape(y) || uses.joined_by_rows(uses.result(chain.last), in_rows) ||
        uses.made_by_rows(chain.skip, i, in_rows) ||
        (where == TakesSkip::where_it_ends && !uses.ends_at(chain.skip, sum, i)))
      continue;
    uses.take(chain);
    chains.push_back(std::move(chain));
  }
  return replace_chains(tape, chains, [&](Rewriter& rewriter, const Chain& chain) {
    const Instr& conv = uses.at(chain.product);
    Attrs attrs = conv.attrs;
    attrs.set("relu", std::int64_t{chain.relu});
    std::vector<Value> operands = rewriter.mapped_inputs(conv);
    operands.push_back(rewriter.mapped(chain.skip));
    return rewriter.out().emit(OpId::conv2d_bias, operands, std::move(attrs), conv.loc)[0];
  });
}

Rewritten fuse_matmul_bias(const Tape& tape, std::span<const std::int32_t> keep, const Asked& takes,
                           const Asked& in_rows) {
  Uses uses(tape, keep);
  const auto value_of = [&](const Chain& chain) { return uses.result(chain.last); };
  const auto over_reshapes = [&](Chain& chain) {
    for (std::int32_t next; (next = uses.only_user(value_of(chain), OpId::reshape)) != kNone;) go_on(chain, next);
  };
  std::vector<Chain> chains;
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(tape.instrs().size()); ++i) {
    if (uses.at(i).op != OpId::matmul || !takes(tape, uses.at(i))) continue;
    const std::int64_t columns = uses.shape(uses.result(i))[-1];
    Chain chain = chain_from(i);
    over_reshapes(chain);
    const std::int32_t y = value_of(chain), add = uses.only_user(y, OpId::add);
    if (add == kNone || uses.shape(y)[-1] != columns) continue;
    chain.bias = uses.other_operand(add, y);
    if (uses.shape(chain.bias) != Shape{columns}) continue;
    go_on(chain, add);
    Chain longer = chain;
    over_reshapes(longer);
    if (const std::int32_t z = value_of(longer), sum = uses.only_user(z, OpId::add);
        sum != kNone && uses.shape(uses.other_operand(sum, z)) == uses.shape(z)) {
      longer.skip = uses.other_operand(sum, z);
      go_on(longer, sum);
      chain = std::move(longer);
    }
    if (uses.joined_by_rows(value_of(chain), in_rows) ||
        (chain.skip != kNone && uses.made_by_rows(chain.skip, i, in_rows)))
      continue;
    uses.take(chain);
    chains.push_back(std::move(chain));
  }
  return replace_chains(tape, chains, [&](Rewriter& rewriter, const Chain& chain) {
    const Instr& product = uses.at(chain.product);
    const auto reshaped = [&](Value v, const Shape& to) {
      return v.shape() == to ? v : rewriter.out().emit1(OpId::reshape, {v}, Attrs{{"shape", to.vec()}}, product.loc);
    };
    std::vector<Value> operands{rewriter.mapped(product.inputs[0]), rewriter.mapped(product.inputs[1]),
                                rewriter.mapped(chain.bias)};
    if (chain.skip != kNone) operands.push_back(reshaped(rewriter.mapped(chain.skip), uses.shape(product.outputs[0])));
    const Value y = rewriter.out().emit(OpId::matmul_bias, operands, product.attrs, product.loc)[0];
    return reshaped(y, uses.shape(value_of(chain)));
  });
}

}  // namespace sg
