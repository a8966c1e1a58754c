#include "core/autodiff.h"

#include <algorithm>
#include <deque>

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

GradientFlow gradient_flow(Value loss, Value wrt) {
  SG_CHECK(loss.tape != nullptr && loss.tape == wrt.tape, "loss and wrt are on one tape");
  const Tape& tape = *loss.tape;
  const auto n = static_cast<std::size_t>(tape.value_count());
  std::vector<char> smooth(n, 0), used(n, 0);  // reached from wrt by gradients; used on the way to the loss, by any op
  smooth[static_cast<std::size_t>(wrt.id)] = is_real(wrt.dtype());
  used[static_cast<std::size_t>(loss.id)] = 1;
  const auto instrs = tape.instrs();
  for (std::size_t i = instrs.size(); i-- > 0;)
    if (std::any_of(instrs[i].outputs.begin(), instrs[i].outputs.end(),
                    [&](std::int32_t v) { return used[static_cast<std::size_t>(v)]; }))
      for (std::int32_t v : instrs[i].inputs) used[static_cast<std::size_t>(v)] = 1;
  GradientFlow flow;
  for (std::size_t i = 0; i < instrs.size(); ++i) {
    const Instr& instr = instrs[i];
    if (std::none_of(instr.inputs.begin(), instr.inputs.end(),
                     [&](std::int32_t v) { return smooth[static_cast<std::size_t>(v)]; }))
      continue;
    for (std::int32_t v : instr.outputs) {
      if (carries_gradient(tape, instr, v))
        smooth[static_cast<std::size_t>(v)] = 1;
      else if (used[static_cast<std::size_t>(v)])
        flow.cuts.push_back(static_cast<std::int32_t>(i));
    }
  }
  if (smooth[static_cast<std::size_t>(loss.id)])
    flow.state = GradientFlow::State::live;
  else if (!flow.cuts.empty())
    flow.state = GradientFlow::State::blocked;
  return flow;
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
