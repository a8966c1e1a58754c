#include "core/rewrite.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <unordered_map>

namespace sg {
namespace {

std::size_t ix(std::int32_t i) { return static_cast<std::size_t>(i); }

// The number that every element of a value equals, where it is a constant that says so.
std::optional<double> uniform_value(const Tape& tape, std::int32_t value) {
  const Instr& instr = tape.instrs()[ix(tape.producer(value))];
  if (op_def(instr.op).role != Role::constant || !instr.attrs.has("value")) return std::nullopt;
  return instr.attrs.d("value");
}

double rounded_to(double value, DType t) {
  if (t == DType::f32) return static_cast<double>(static_cast<float>(value));
  if (t == DType::bf16) return static_cast<double>(BFloat16(value));
  if (t == DType::i32) return std::trunc(value);
  return value;
}

using MakeConstant = std::function<Value(double, const TensorType&)>;

void shrink_constants(const Tape& tape, std::vector<Value>& inputs, const Shape& result, const MakeConstant& constant) {
  const bool extents_elsewhere = std::any_of(
      inputs.begin(), inputs.end(), [&](const Value& v) { return v.shape() == result && !uniform_value(tape, v.id); });
  if (!extents_elsewhere) return;
  for (Value& v : inputs)
    if (const auto u = uniform_value(tape, v.id); u && v.shape().rank() > 0) v = constant(*u, {v.dtype(), {}});
}

std::string structural_key(const Instr& instr, std::span<const Value> inputs) {
  // Bits, not decimal text: 0.1f and the next number must not merge, nor 0 and -0.
  std::string key = std::to_string(static_cast<int>(instr.op));
  for (const Value& v : inputs) key += fmt::format(" {}", v.id);
  for (const auto& [name, value] : instr.attrs) {
    key += fmt::format(" {}=", name);
    if (const auto* d = std::get_if<double>(&value)) {
      std::uint64_t bits;
      std::memcpy(&bits, d, 8);
      key += std::to_string(bits);
    } else if (const auto* i = std::get_if<std::int64_t>(&value)) {
      key += std::to_string(*i);
    } else if (const auto* v = std::get_if<std::vector<std::int64_t>>(&value)) {
      for (std::int64_t x : *v) key += fmt::format("{},", x);
    } else if (const auto* r = std::get_if<std::vector<double>>(&value)) {
      for (double x : *r) key += fmt::format("{:a},", x);
    } else {
      key += std::get<std::string>(value);
    }
  }
  return key;
}

}  // namespace

Rewriter::Rewriter(const Tape& in) : in_(in), out_(std::make_unique<Tape>()), map_(ix(in.value_count()), -1) {
  out_->adopt_pools(in);
}

Value Rewriter::mapped(std::int32_t old_value) {
  SG_CHECK(map_[ix(old_value)] >= 0, "%{} has no successor", old_value);
  return out_->value(map_[ix(old_value)]);
}

std::vector<Value> Rewriter::mapped_inputs(const Instr& instr) {
  std::vector<Value> values;
  for (std::int32_t v : instr.inputs) values.push_back(mapped(v));
  return values;
}

void Rewriter::at(std::int32_t index) {
  const Instr& instr = in_.instrs()[ix(index)];
  out_->set_origin({instr.scope, instr.forward_of, instr.loc, true});
}

void Rewriter::copy(std::int32_t index) {
  const Instr& instr = in_.instrs()[ix(index)];
  at(index);
  const std::vector<Value> values = out_->emit(instr.op, mapped_inputs(instr), instr.attrs);
  for (std::size_t k = 0; k < values.size(); ++k) replace(instr.outputs[k], values[k]);
}

std::vector<std::int32_t> compose(std::span<const std::int32_t> first, std::span<const std::int32_t> second) {
  std::vector<std::int32_t> map;
  for (std::int32_t v : first) map.push_back(v < 0 ? -1 : second[ix(v)]);
  return map;
}

std::vector<std::int32_t> use_counts(const Tape& tape, std::span<const std::int32_t> keep) {
  std::vector<std::int32_t> uses(ix(tape.value_count()), 0);
  for (const Instr& instr : tape.instrs())
    for (std::int32_t v : instr.inputs) ++uses[ix(v)];
  for (std::int32_t v : keep) ++uses[ix(v)];
  return uses;
}

Rewritten eliminate_dead_code(const Tape& tape, std::span<const std::int32_t> keep) {
  const auto instrs = tape.instrs();
  std::vector<char> live(ix(tape.value_count()), 0), wanted(instrs.size(), 0);
  for (std::int32_t v : keep) live[ix(v)] = 1;
  for (std::size_t i = instrs.size(); i-- > 0;) {
    wanted[i] =
        op_def(instrs[i].op).role == Role::assign ||
        std::any_of(instrs[i].outputs.begin(), instrs[i].outputs.end(), [&](std::int32_t v) { return live[ix(v)]; });
    if (wanted[i])
      for (std::int32_t v : instrs[i].inputs) live[ix(v)] = 1;
  }
  Rewriter r(tape);
  for (std::size_t i = 0; i < instrs.size(); ++i)
    if (wanted[i]) r.copy(static_cast<std::int32_t>(i));
  return r.finish();
}

Rewritten simplify(const Tape& tape) {
  Rewriter r(tape);
  std::unordered_map<std::string, std::vector<Value>> known;
  std::unordered_map<std::string, Value> constants;
  const MakeConstant constant = [&](double value, const TensorType& type) {
    std::uint64_t bits;
    std::memcpy(&bits, &value, 8);
    Value& c = constants[fmt::format("{} {}", bits, to_string(type))];
    if (!c) c = r.out().constant(value, type);
    return c;
  };
  for (std::size_t i = 0; i < tape.instrs().size(); ++i) {
    const Instr& instr = tape.instrs()[i];
    const OpDef& def = op_def(instr.op);
    const auto index = static_cast<std::int32_t>(i);
    if (def.role == Role::input || def.role == Role::read || def.role == Role::assign) {
      r.copy(index);
      continue;
    }
    std::vector<Value> inputs = r.mapped_inputs(instr);
    r.at(index);
    // A uniform constant stays one when it is moved about, and needs no extents where another operand has them.
    if (const auto u = def.moves && def.arity == 1 ? uniform_value(r.out(), inputs[0].id) : std::nullopt) {
      r.replace(instr.outputs[0], constant(*u, tape.type(instr.outputs[0])));
      continue;
    }
    if (def.elementwise && inputs.size() > 1)
      shrink_constants(r.out(), inputs, tape.type(instr.outputs[0]).shape, constant);
    if (const bool leaf = def.role == Role::constant; leaf && instr.attrs.has("value")) {
      r.replace(instr.outputs[0], constant(instr.attrs.d("value"), tape.type(instr.outputs[0])));
      continue;
    }
    // x * 1 and 1 * x, where the other side does not grow by broadcasting.
    if (def.role == Role::mul) {
      const Shape& shape = tape.type(instr.outputs[0]).shape;
      const std::size_t other = uniform_value(r.out(), inputs[0].id) == 1.0 && inputs[1].shape() == shape   ? 1
                                : uniform_value(r.out(), inputs[1].id) == 1.0 && inputs[0].shape() == shape ? 0
                                                                                                            : 2;
      if (other < 2) {
        r.replace(instr.outputs[0], inputs[other]);
        continue;
      }
    }
    const std::string key = structural_key(instr, inputs);
    if (const auto it = known.find(key); it != known.end()) {
      for (std::size_t k = 0; k < instr.outputs.size(); ++k) r.replace(instr.outputs[k], it->second[k]);
      continue;
    }
    // Elementwise ops of uniform constants are computed here, by the op's own meaning.
    if (def.scalar != nullptr && !inputs.empty()) {
      std::vector<double> values;
      for (const Value& v : inputs)
        if (const auto u = uniform_value(r.out(), v.id)) values.push_back(rounded_to(*u, v.dtype()));
      if (values.size() == inputs.size()) {
        const TensorType& type = tape.type(instr.outputs[0]);
        r.replace(instr.outputs[0], constant(rounded_to(def.scalar(values.data(), instr.attrs), type.dtype), type));
        continue;
      }
    }
    std::vector<Value> made = r.out().emit(instr.op, inputs, instr.attrs);
    for (std::size_t k = 0; k < made.size(); ++k) r.replace(instr.outputs[k], made[k]);
    known.emplace(key, std::move(made));
  }
  return r.finish();
}

Rewritten apply_exact_forward(const Tape& tape) {
  const auto instrs = tape.instrs();
  auto made_by = [&](std::int32_t value) -> const Instr& { return instrs[ix(tape.producer(value))]; };
  auto same = [&](std::int32_t a, std::int32_t b) {
    if (a == b) return true;
    const auto constant = uniform_value(tape, a);
    return constant && constant == uniform_value(tape, b) && tape.type(a) == tape.type(b);
  };
  Rewriter r(tape);
  for (std::size_t i = 0; i < instrs.size(); ++i) {
    const Instr& instr = instrs[i];
    if (op_def(instr.op).role == Role::add) {
      std::int32_t exact = -1;
      for (std::size_t k = 0; k < 2 && exact < 0; ++k) {
        const std::int32_t a = instr.inputs[k];
        const Instr& stop = made_by(instr.inputs[1 - k]);
        if (op_def(stop.op).role != Role::stop_gradient) continue;
        const Instr& difference = made_by(stop.inputs[0]);
        if (op_def(difference.op).role != Role::sub || !same(difference.inputs[1], a)) continue;
        const std::int32_t b = difference.inputs[0];
        if (tape.type(b) == tape.type(instr.outputs[0])) exact = b;
      }
      if (exact >= 0) {
        r.replace(instr.outputs[0], r.mapped(exact));
        continue;
      }
    }
    r.copy(static_cast<std::int32_t>(i));
  }
  return r.finish();
}

Rewritten forward_aliases(const Tape& tape) {
  Rewriter r(tape);
  for (std::size_t i = 0; i < tape.instrs().size(); ++i) {
    const Instr& instr = tape.instrs()[i];
    if (op_def(instr.op).role == Role::stop_gradient)
      r.replace(instr.outputs[0], r.mapped(instr.inputs[0]));
    else
      r.copy(static_cast<std::int32_t>(i));
  }
  return r.finish();
}

Rewritten decompose_unsupported(const Tape& tape, const SupportedFn& supported, std::string_view backend, bool strict,
                                std::size_t* count) {
  constexpr int kMaxRounds = 16;  // deeper than any chain of decompositions; a cycle among them ends here
  Rewritten result{nullptr, {}};
  const Tape* current = &tape;
  for (int round = 0;; ++round) {
    SG_CHECK(round < kMaxRounds, "decompositions do not end");
    Rewriter r(*current);
    std::size_t replaced = 0;
    for (std::size_t i = 0; i < current->instrs().size(); ++i) {
      const Instr& instr = current->instrs()[i];
      const OpDef& def = op_def(instr.op);
      const auto index = static_cast<std::int32_t>(i);
      const bool structural = def.role == Role::input || def.role == Role::constant || def.role == Role::read ||
                              def.role == Role::assign || def.role == Role::alias || def.role == Role::after ||
                              def.role == Role::stop_gradient;
      if (structural || supported(*current, instr)) {
        r.copy(index);
        continue;
      }
      const bool bf16 = std::any_of(instr.inputs.begin(), instr.inputs.end(),
                                    [&](std::int32_t v) { return current->type(v).dtype == DType::bf16; }) ||
                        std::any_of(instr.outputs.begin(), instr.outputs.end(),
                                    [&](std::int32_t v) { return current->type(v).dtype == DType::bf16; });
      if (bf16 && (def.decompose == nullptr || strict))
        fail(ErrorKind::unsupported, "backend '{}' has no kernel for {} in bf16; cast to f32\n  {}", backend, def.name,
             current->describe(instr.outputs[0]));
      if (def.decompose == nullptr || strict)
        fail(ErrorKind::unsupported, "backend '{}' has no kernel for {}{}\n  {}", backend, def.name,
             def.decompose == nullptr ? ", and the op has no decomposition"
                                      : "; compile with strict = false to run it as simpler ops",
             current->describe(instr.outputs[0]));
      r.at(index);
      const std::vector<Value> parts = def.decompose(r.out(), r.mapped_inputs(instr), instr.attrs);
      SG_CHECK(parts.size() == instr.outputs.size(), "decomposition of '{}' has {} outputs", def.name, parts.size());
      for (std::size_t k = 0; k < parts.size(); ++k) r.replace(instr.outputs[k], parts[k]);
      ++replaced;
    }
    Rewritten next = r.finish();
    if (result.tape != nullptr) next.map = compose(result.map, next.map);
    result = std::move(next);
    current = result.tape.get();
    *count += replaced;
    if (replaced == 0) return result;
  }
}

}  // namespace sg
