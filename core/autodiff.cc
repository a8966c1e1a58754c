#include "core/autodiff.h"

#include <algorithm>
#include <climits>
#include <deque>
#include <unordered_map>

namespace sg {
namespace {

bool carries_gradient(const Tape& tape, const Instr& instr, std::int32_t output) {
  return op_def(instr.op).grad == GradKind::smooth && is_real(tape.type(output).dtype);
}

// Data per value of a stretch of the tape: all values made since `base`, and a few older ones (the stretch's inputs).
template <class T>
class ValueMap {
 public:
  ValueMap(std::int32_t base, std::int32_t end, std::span<const Value> older)
      : base_(base), dense_(static_cast<std::size_t>(end - base)) {
    for (const Value& v : older)
      if (v && v.id < base) older_.emplace_back(v.id, T{});
  }
  T* find(std::int32_t id) {
    if (id >= base_)
      return static_cast<std::size_t>(id - base_) < dense_.size() ? &dense_[static_cast<std::size_t>(id - base_)]
                                                                  : nullptr;
    for (auto& [key, value] : older_)
      if (key == id) return &value;
    return nullptr;
  }

 private:
  std::int32_t base_;
  std::deque<T> dense_;  // deque, not vector: T may be bool
  std::vector<std::pair<std::int32_t, T>> older_;
};

struct OriginGuard {
  explicit OriginGuard(Tape& t) : tape(t), saved(t.origin()) {}
  ~OriginGuard() { tape.set_origin(saved); }
  Tape& tape;
  Tape::Origin saved;
};

// Reverse pass over instructions [first, last). Returns a cotangent per wrt, null where none arrives.
std::vector<Value> backpropagate(Tape& tape, std::int32_t first, std::span<const Value> outputs,
                                 std::span<const Value> cotangents, std::span<const Value> wrt, Loc loc) {
  const auto last = static_cast<std::int32_t>(tape.instrs().size());
  const std::int32_t end = tape.value_count();
  std::int32_t base = end;
  for (std::int32_t i = first; i < last; ++i)
    for (std::int32_t v : tape.instrs()[static_cast<std::size_t>(i)].outputs) base = std::min(base, v);

  // What depends on some wrt; the need mask of an instruction is taken from it. Instructions that the outputs do not
  // depend on never receive a cotangent, so the other side needs no mask.
  ValueMap<bool> depends(base, end, wrt);
  for (const Value& w : wrt) *depends.find(w.id) = true;
  for (std::int32_t i = first; i < last; ++i) {
    const Instr& instr = tape.instrs()[static_cast<std::size_t>(i)];
    const bool any = std::any_of(instr.inputs.begin(), instr.inputs.end(), [&](std::int32_t v) {
      const bool* d = depends.find(v);
      return d != nullptr && *d;
    });
    if (any)
      for (std::int32_t v : instr.outputs)
        if (carries_gradient(tape, instr, v)) *depends.find(v) = true;
  }

  ValueMap<Value> grads(base, end, wrt);
  auto accumulate = [&](std::int32_t id, Value g) {
    Value* slot = grads.find(id);
    if (slot == nullptr) return;
    SG_CHECK(g.type() == tape.type(id), "cotangent of %{} is {}, the value is {}", id, to_string(g.type()),
             to_string(tape.type(id)));
    *slot = *slot ? add_cotangents(*slot, g, loc) : g;
  };
  for (std::size_t k = 0; k < outputs.size(); ++k)
    if (const bool* d = depends.find(outputs[k].id); cotangents[k] && d != nullptr && *d)
      accumulate(outputs[k].id, cotangents[k]);

  OriginGuard guard(tape);
  for (std::int32_t i = last - 1; i >= first; --i) {
    const Instr instr = tape.instrs()[static_cast<std::size_t>(i)];  // a copy: rules append to the list
    const OpDef& def = op_def(instr.op);
    if (def.grad != GradKind::smooth) continue;
    std::vector<Value> inputs, outs, cts;
    bool any = false;
    for (std::int32_t v : instr.outputs) {
      outs.push_back(tape.value(v));
      cts.push_back(*grads.find(v));
      any = any || cts.back();
    }
    if (!any) continue;
    std::vector<bool> need;
    for (std::int32_t v : instr.inputs) {
      inputs.push_back(tape.value(v));
      const bool* d = depends.find(v);
      need.push_back(d != nullptr && *d);
    }
    if (std::none_of(need.begin(), need.end(), [](bool b) { return b; })) continue;

    tape.set_origin({instr.scope, i, instr.loc, true});
    std::vector<Value> result;
    if (def.vjp != nullptr) {
      result = def.vjp({tape, instr, inputs, outs, cts, need, instr.attrs});
    } else {
      SG_CHECK(def.decompose != nullptr, "op '{}' is smooth but has neither a VJP nor a decomposition", def.name);
      const auto start = static_cast<std::int32_t>(tape.instrs().size());
      const std::vector<Value> parts = def.decompose(tape, inputs, instr.attrs);
      std::vector<Value> wanted;
      for (std::size_t k = 0; k < inputs.size(); ++k)
        if (need[k]) wanted.push_back(inputs[k]);
      const std::vector<Value> found = backpropagate(tape, start, parts, cts, wanted, loc);
      result.resize(inputs.size());
      for (std::size_t k = 0, j = 0; k < inputs.size(); ++k)
        if (need[k]) result[k] = found[j++];
      // The same value twice among the inputs gets its whole cotangent once.
      for (std::size_t k = 0; k < inputs.size(); ++k)
        for (std::size_t j = 0; j < k; ++j)
          if (inputs[j] == inputs[k]) result[k] = {};
    }
    SG_CHECK(result.size() == inputs.size(), "the VJP of '{}' gave {} cotangents for {} inputs", def.name,
             result.size(), inputs.size());
    for (std::size_t k = 0; k < inputs.size(); ++k) {
      if (!need[k] || !result[k]) continue;
      Value g = result[k];
      if (g.shape() != inputs[k].shape()) g = sum_to_shape(g, inputs[k].shape(), instr.loc);
      accumulate(inputs[k].id, g);
    }
  }
  std::vector<Value> result;
  for (const Value& w : wrt) result.push_back(*grads.find(w.id));
  return result;
}

std::string state_of(const Tape& tape, const std::vector<std::int32_t>& cuts) {
  std::string text;
  for (std::int32_t i : cuts) {
    const Instr& instr = tape.instrs()[static_cast<std::size_t>(i)];
    text += fmt::format("    %{} {}\n", instr.outputs.empty() ? -1 : instr.outputs[0], tape.describe_instr(i));
  }
  return text;
}

// One reverse pass over what a loss depends on. For each value it keeps whether the loss uses it, its cotangent as a
// linear combination of symbols, and the instructions that end paths from it. A symbol stands for what one instruction
// hands to one input; add, sub and aliases of the same extents hand on what they get, so that cancelling terms meet.
class FlowsToLoss {
 public:
  FlowsToLoss(const Tape& tape, std::int32_t loss)
      : tape_(tape), flows_(ix(loss) + 1), zero_(known_zeros(tape)), sets_(1), loss_(loss) {
    flow(loss).used = true;
    if (is_real(tape.type(loss).dtype)) flow(loss).terms = {{-1, 1}}, flow(loss).arrives = true;
    for (std::int32_t i = tape.producer(loss); i >= 0; --i) pass(i);
  }

  GradientFlow at(std::int32_t value) const {
    GradientFlow result;
    if (value > loss_) return result;
    const Flow& f = flows_[ix(value)];
    if (!f.terms.empty())
      result.state = GradientFlow::State::live;
    else if (f.arrives)
      result.state = GradientFlow::State::zero;
    else if (f.cuts != 0)
      result.state = GradientFlow::State::blocked;
    result.cuts = sets_[ix(result.state == GradientFlow::State::zero ? f.zeros : f.cuts)];
    return result;
  }

 private:
  using Terms = std::vector<std::pair<std::int64_t, int>>;  // symbol and its factor, by symbol, no factor 0
  struct Flow {
    bool used = false, arrives = false;  // by any op on the way to the loss; a cotangent, be it zero
    Terms terms;                         // the cotangent; empty where nothing arrives, or where it is zero
    std::int32_t cuts = 0, zeros = 0;    // sets: what passes no gradient; what makes a gradient zero
    std::int32_t givers = 0;             // set: who handed it terms
  };
  static constexpr std::size_t kMostTerms = 64;  // a longer combination becomes a symbol of its own

  static std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }
  Flow& flow(std::int32_t value) { return flows_[ix(value)]; }
  std::int64_t symbol(std::int32_t instr, std::size_t input) {
    return static_cast<std::int64_t>(instr) << 16 | static_cast<std::int64_t>(input);
  }

  // The set with the members of both.
  std::int32_t united(std::int32_t a, std::int32_t b) {
    if (a == b || b == 0) return a;
    if (a == 0) return b;
    const auto &x = sets_[ix(a)], &y = sets_[ix(b)];
    if (std::includes(x.begin(), x.end(), y.begin(), y.end())) return a;
    if (std::includes(y.begin(), y.end(), x.begin(), x.end())) return b;
    std::vector<std::int32_t> all;
    std::set_union(x.begin(), x.end(), y.begin(), y.end(), std::back_inserter(all));
    sets_.push_back(std::move(all));
    return static_cast<std::int32_t>(sets_.size() - 1);
  }
  std::int32_t set_of(std::int32_t instr) {
    std::int32_t& known = singles_[instr];
    if (known == 0) {
      sets_.push_back({instr});
      known = static_cast<std::int32_t>(sets_.size() - 1);
    }
    return known;
  }

  void add(Flow& to, const Terms& terms, int factor, std::int32_t instr) {
    to.givers = united(to.givers, set_of(instr));
    for (const auto& [symbol, count] : terms) {
      const auto at = std::lower_bound(to.terms.begin(), to.terms.end(), std::pair{symbol, INT_MIN});
      if (at == to.terms.end() || at->first != symbol)
        to.terms.insert(at, {symbol, factor * count});
      else if ((at->second += factor * count) == 0)
        to.terms.erase(at);
    }
    to.arrives = true;
    if (to.terms.empty()) to.zeros = united(to.zeros, to.givers);
  }

  void pass(std::int32_t index) {
    const Instr& instr = tape_.instrs()[ix(index)];
    const OpDef& def = op_def(instr.op);
    bool used = false, arrives = false, live = false;
    std::int32_t cuts = 0, zeros = 0;
    for (std::int32_t v : instr.outputs) {
      if (v > loss_) continue;
      const Flow& f = flow(v);
      used = used || f.used;
      if (carries_gradient(tape_, instr, v)) {
        arrives = arrives || f.arrives;
        live = live || !f.terms.empty();
        cuts = united(cuts, f.cuts);
        zeros = united(zeros, f.zeros);
      } else if (f.used) {
        cuts = united(cuts, set_of(index));
      }
    }
    if (!used) return;
    const std::size_t operands = def.role == Role::after ? 1 : instr.inputs.size();
    for (std::size_t k = 0; k < operands; ++k) {
      Flow& in = flow(instr.inputs[k]);
      in.used = true;
      const TensorType& type = tape_.type(instr.inputs[k]);
      if (!is_real(type.dtype)) continue;
      in.cuts = united(in.cuts, cuts);
      in.zeros = united(in.zeros, zeros);
      in.arrives = in.arrives || arrives;
      if (!live) continue;
      const Flow& out = flow(instr.outputs[0]);
      const bool linear =
          def.role == Role::alias || def.role == Role::after ||
          ((def.role == Role::add || def.role == Role::sub) && type.shape == tape_.type(instr.outputs[0]).shape);
      if (linear && out.terms.size() <= kMostTerms)
        add(in, out.terms, def.role == Role::sub && k == 1 ? -1 : 1, index);
      else if (def.role == Role::mul && zero_[ix(instr.inputs[1 - k])])
        in.zeros = united(in.zeros, set_of(index));
      else
        add(in, {{symbol(index, k), 1}}, 1, index);
    }
  }

  const Tape& tape_;
  std::vector<Flow> flows_;                     // per value up to the loss
  std::vector<char> zero_;                      // per value: known_zeros
  std::deque<std::vector<std::int32_t>> sets_;  // sorted; set 0 is empty
  std::unordered_map<std::int32_t, std::int32_t> singles_;
  std::int32_t loss_;
};

[[noreturn]] void unreachable(Tape& tape, Value output, Value wrt, Loc loc) {
  const GradientFlow flow = gradient_flow(output, wrt);
  std::string text = fmt::format("gradients: no path from loss %{} to {}\n", output.id, tape.name_of(wrt.id));
  if (flow.state == GradientFlow::State::blocked) {
    const std::size_t n = flow.cuts.size();
    text += fmt::format("  the loss depends on it only through {} that {} no gradient:\n",
                        n == 1 ? "an instruction" : fmt::format("{} instructions", n), n == 1 ? "passes" : "pass");
    text += state_of(tape, flow.cuts);
    text +=
        "  if that is intended, leave it out of wrt or ask for IfUnreachable::zero; if not, the loss was probably "
        "computed on\n"
        "  the straight-through output, or on a stopped copy, instead of on the value itself\n";
  } else {
    text += "  the loss does not depend on it at all: it is not used on the way to the loss\n";
  }
  text += fmt::format("  wrt {}\n  at {}", tape.describe(wrt.id), to_string(loc));
  throw Error(ErrorKind::unreachable_gradient, text, loc);
}

}  // namespace

std::vector<Value> vjp(std::span<const Value> outputs, std::span<const Value> cotangents, std::span<const Value> wrt,
                       IfUnreachable policy, Loc loc) {
  if (outputs.empty() || outputs.size() != cotangents.size())
    throw Error(ErrorKind::usage,
                fmt::format("vjp: {} outputs and {} cotangents given\n  at {}", outputs.size(), cotangents.size(),
                            to_string(loc)),
                loc);
  SG_CHECK(outputs[0].tape != nullptr, "null Value as output of vjp");
  Tape& tape = *outputs[0].tape;
  for (const Value& w : wrt)
    if (w.tape != &tape)
      throw Error(
          ErrorKind::usage,
          fmt::format("gradients: a value of wrt is null or on another tape than the loss\n  at {}", to_string(loc)),
          loc);
  for (std::size_t i = 0; i < outputs.size(); ++i)
    if (cotangents[i] && cotangents[i].type() != outputs[i].type())
      throw Error(ErrorKind::shape,
                  fmt::format("vjp: the cotangent is {}, the output is {}\n  output {}\n  at {}",
                              to_string(cotangents[i].type()), to_string(outputs[i].type()),
                              tape.describe(outputs[i].id), to_string(loc)),
                  loc);
  std::vector<Value> unique;
  for (const Value& w : wrt)
    if (std::find(unique.begin(), unique.end(), w) == unique.end()) unique.push_back(w);
  const std::vector<Value> found = backpropagate(tape, 0, outputs, cotangents, unique, loc);
  std::vector<Value> result;
  for (const Value& w : wrt) {
    const auto at = static_cast<std::size_t>(std::find(unique.begin(), unique.end(), w) - unique.begin());
    Value g = found[at];
    if (!g && policy == IfUnreachable::error) unreachable(tape, outputs[0], w, loc);
    result.push_back(g ? g : tape.constant(0, w.type(), loc));
  }
  return result;
}

std::vector<Value> gradients(Value loss, std::span<const Value> wrt, IfUnreachable policy, Loc loc) {
  SG_CHECK(loss.tape != nullptr, "null Value as loss");
  if (!is_real(loss.dtype()) || loss.shape().elements() != 1)
    throw Error(
        is_real(loss.dtype()) ? ErrorKind::shape : ErrorKind::dtype,
        fmt::format(
            "gradients: the loss must be one real number, it is {}\n  loss {}\n  take its sum or mean first\n  at {}",
            to_string(loss.type()), loss.tape->describe(loss.id), to_string(loc)),
        loc);
  const Value one = loss.tape->constant(1, loss.type(), loc);
  return vjp(std::span(&loss, 1), std::span(&one, 1), wrt, policy, loc);
}

std::vector<Value> gradients(Value loss, std::initializer_list<Value> wrt, IfUnreachable policy, Loc loc) {
  return gradients(loss, std::span<const Value>(wrt.begin(), wrt.size()), policy, loc);
}

Value gradient(Value loss, Value wrt, IfUnreachable policy, Loc loc) {
  return gradients(loss, std::span<const Value>(&wrt, 1), policy, loc)[0];
}

std::vector<char> known_zeros(const Tape& tape) {
  std::vector<char> zero(static_cast<std::size_t>(tape.value_count()), 0);
  const auto all_zero = [&](const Instr& instr) {
    if (instr.attrs.has("value")) return instr.attrs.d("value") == 0;
    const Tensor& t = tape.constant_tensor(instr.attrs.i("tensor"));
    for (std::int64_t i = 0; i < t.elements(); ++i)
      if (t.at(i) != 0) return false;
    return true;
  };
  for (const Instr& instr : tape.instrs()) {
    const OpDef& def = op_def(instr.op);
    const auto in = [&](std::size_t k) { return zero[static_cast<std::size_t>(instr.inputs[k])] != 0; };
    const bool keeps = def.role == Role::stop_gradient || def.role == Role::alias || def.role == Role::after ||
                       (def.moves && def.arity == 1);
    if (def.role == Role::constant ? all_zero(instr) : def.role == Role::mul ? in(0) || in(1) : keeps && in(0))
      zero[static_cast<std::size_t>(instr.outputs[0])] = 1;
  }
  return zero;
}

GradientFlow gradient_flow(Value loss, Value wrt) { return gradient_flows(loss, std::span(&wrt, 1))[0]; }

std::vector<GradientFlow> gradient_flows(Value loss, std::span<const Value> wrt) {
  SG_CHECK(loss.tape != nullptr, "null Value as loss");
  const FlowsToLoss flows(*loss.tape, loss.id);
  std::vector<GradientFlow> result;
  for (const Value& w : wrt) {
    SG_CHECK(w.tape == loss.tape, "loss and wrt are on one tape");
    result.push_back(flows.at(w.id));
  }
  return result;
}

std::string explain_gradient(Value loss, Value wrt) {
  const GradientFlow flow = gradient_flow(loss, wrt);
  const Tape& tape = *loss.tape;
  std::string text = fmt::format("gradient of %{} with respect to {}: ", loss.id, tape.name_of(wrt.id));
  switch (flow.state) {
    case GradientFlow::State::unconnected:
      return text + "unconnected: the loss does not depend on it\n";
    case GradientFlow::State::blocked:
      return text + "blocked: every path is cut by\n" + state_of(tape, flow.cuts);
    case GradientFlow::State::zero:
      return text + "zero: a factor of 0, or the cancelling of paths, makes it so at\n" + state_of(tape, flow.cuts);
    case GradientFlow::State::live:
      break;
  }
  // One live path, from wrt forward: for each value the instruction by which a gradient first reaches it.
  std::vector<std::int32_t> via(static_cast<std::size_t>(tape.value_count()), -1);
  std::vector<char> live(static_cast<std::size_t>(tape.value_count()), 0);
  live[static_cast<std::size_t>(wrt.id)] = 1;
  for (const Instr& instr : tape.instrs())
    for (std::int32_t in : instr.inputs)
      if (live[static_cast<std::size_t>(in)])
        for (std::int32_t out : instr.outputs)
          if (carries_gradient(tape, instr, out) && !live[static_cast<std::size_t>(out)]) {
            live[static_cast<std::size_t>(out)] = 1;
            via[static_cast<std::size_t>(out)] = in;
          }
  std::vector<std::int32_t> path;
  for (std::int32_t v = loss.id; v != wrt.id && v >= 0; v = via[static_cast<std::size_t>(v)]) path.push_back(v);
  text += fmt::format("live, for example by {} instructions:\n", path.size());
  for (auto it = path.rbegin(); it != path.rend(); ++it) text += fmt::format("    {}\n", tape.describe(*it));
  if (!flow.cuts.empty()) text += "  cut on other paths by\n" + state_of(tape, flow.cuts);
  return text;
}

}  // namespace sg
