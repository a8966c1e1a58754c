#include "models/optim.h"

#include <fmt/ranges.h>

#include "ops/elementwise.h"
#include "ops/reduce.h"

namespace sg {
namespace {

// Arithmetic that is recorded at one given line.
struct At {
  Loc loc;
  Operand operator()(Value v) const { return {v, loc}; }
  Operand operator()(double v) const { return {v, loc}; }
};

}  // namespace

Variable& Optimizer::add_state(std::string name, TensorType type) {
  return state_.emplace_back(std::move(name), Tensor(type));
}

std::vector<Variable*> Optimizer::add_moments(std::string_view kind) {
  std::vector<Variable*> moments;
  for (const Variable* p : parameters_)
    moments.push_back(&add_state(fmt::format("{}.{}.{}", name_, kind, p->name()), p->type()));
  return moments;
}

std::vector<Variable*> Optimizer::state() {
  std::vector<Variable*> all;
  for (Variable& v : state_) all.push_back(&v);
  return all;
}

std::vector<Value> Optimizer::update(Tape& tape, std::span<const Value> grads, Value lr, Loc loc) {
  if (grads.size() != parameters_.size())
    throw Error(ErrorKind::usage,
                fmt::format("Optimizer: {} gradients for {} parameters", grads.size(), parameters_.size()), loc);
  for (std::size_t i = 0; i < grads.size(); ++i)
    if (grads[i].type() != parameters_[i]->type())
      throw Error(ErrorKind::shape,
                  fmt::format("Optimizer: parameter '{}' is {}, its gradient {}", parameters_[i]->name(),
                              to_string(parameters_[i]->type()), to_string(grads[i].type())),
                  loc);
  if (lr.shape().rank() != 0 || !is_real(lr.dtype()))
    throw Error(ErrorKind::shape,
                fmt::format("Optimizer: the learning rate is a real scalar, not {}", to_string(lr.type())), loc);
  const Scope scope(tape, name_, loc);
  return record(tape, grads, lr, loc);
}

void Optimizer::apply(Tape& tape, std::span<const Value> grads, Value lr, Loc loc) {
  const std::vector<Value> values = update(tape, grads, lr, loc);
  for (std::size_t i = 0; i < values.size(); ++i) tape.assign(*parameters_[i], values[i], loc);
}

Sgd::Sgd(std::vector<Variable*> parameters, SgdOptions options) : Optimizer(std::move(parameters)), options_(options) {
  if (options.momentum != 0) momentum_ = add_moments("momentum");
  if (options.nesterov && options.momentum == 0) fail(ErrorKind::usage, "Sgd: nesterov needs a momentum above 0");
}

std::vector<Value> Sgd::record(Tape& tape, std::span<const Value> grads, Value lr, Loc loc) {
  const At at{loc};
  std::vector<Value> values;
  for (std::size_t i = 0; i < grads.size(); ++i) {
    const Value p = tape.read(*parameters_[i], loc);
    const Value rate = lr.dtype() == p.dtype() ? lr : cast(at(lr), p.dtype());
    Value g = grads[i];
    if (options_.weight_decay != 0) g = at(g) + at(at(options_.weight_decay) * at(p));
    if (!momentum_.empty()) {
      const Value b = at(at(options_.momentum) * at(tape.read(*momentum_[i], loc))) + at(g);
      tape.assign(*momentum_[i], b, loc);
      g = options_.nesterov ? at(g) + at(at(options_.momentum) * at(b)) : b;
    }
    values.push_back(at(p) - at(at(rate) * at(g)));
  }
  return values;
}

Adam::Adam(std::vector<Variable*> parameters, AdamOptions options, bool decoupled)
    : Optimizer(std::move(parameters), options.name),
      options_(options),
      decoupled_(decoupled),
      steps_(&add_state(name_ + ".steps", {DType::f64, {}})),
      m_(add_moments("m")),
      v_(add_moments("v")) {
  const auto decays = [](double b) { return b >= 0 && b < 1; };
  if (!decays(options.beta1) || !decays(options.beta2) || !(options.eps >= 0))
    fail(ErrorKind::usage, "Adam: beta1 {} and beta2 {} lie in [0, 1), eps {} is not negative", options.beta1,
         options.beta2, options.eps);
}

std::vector<Value> Adam::record(Tape& tape, std::span<const Value> grads, Value lr, Loc loc) {
  const At at{loc};
  // In f32, 1 - 0.999^t loses five digits at t = 1; scalars in f64 cost nothing.
  const Value t = at(tape.read(*steps_, loc)) + at(1.0);
  tape.assign(*steps_, t, loc);
  const auto correction = [&](double beta) {
    return at(1.0) - at(pow(at(tape.constant(beta, {DType::f64, {}}, loc)), at(t)));
  };
  const Value lr64 = lr.dtype() == DType::f64 ? lr : cast(at(lr), DType::f64);
  const Value rate64 = at(lr64) / at(correction(options_.beta1));
  const Value root64 = sqrt(at(correction(options_.beta2)));
  const Value keep64 = at(1.0) - at(at(lr64) * at(options_.weight_decay));

  std::vector<Value> values;
  for (std::size_t i = 0; i < grads.size(); ++i) {
    Value p = tape.read(*parameters_[i], loc);
    const auto scalar = [&](Value v) { return at(p.dtype() == DType::f64 ? v : cast(at(v), p.dtype())); };
    Value g = grads[i];
    if (options_.weight_decay != 0) {
      if (decoupled_)
        p = at(p) * scalar(keep64);
      else
        g = at(g) + at(at(options_.weight_decay) * at(p));
    }
    const Value m = at(at(options_.beta1) * at(tape.read(*m_[i], loc))) + at(at(1 - options_.beta1) * at(g));
    const Value v =
        at(at(options_.beta2) * at(tape.read(*v_[i], loc))) + at(at(1 - options_.beta2) * at(square(at(g))));
    tape.assign(*m_[i], m, loc);
    tape.assign(*v_[i], v, loc);
    const Value denominator = at(at(sqrt(at(v))) / scalar(root64)) + at(options_.eps);
    values.push_back(at(p) - at(scalar(rate64) * at(at(m) / at(denominator))));
  }
  return values;
}

std::unique_ptr<Optimizer> optimizer_by_name(std::string_view name, std::vector<Variable*> parameters,
                                             double weight_decay) {
  if (name == "sgd")
    return std::make_unique<Sgd>(std::move(parameters), SgdOptions{.momentum = 0.9, .weight_decay = weight_decay});
  const AdamOptions options{.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = weight_decay};
  if (name == "adam") return std::make_unique<Adam>(std::move(parameters), options);
  if (name == "adamw") return std::make_unique<AdamW>(std::move(parameters), options);
  fail(ErrorKind::usage, "unknown optimizer '{}'; known: {}", name, fmt::join(optimizer_names(), ", "));
}

std::vector<std::string> optimizer_names() { return {"sgd", "adam", "adamw"}; }

Value global_norm(std::span<const Value> grads, Loc loc) {
  const At at{loc};
  if (grads.empty()) throw Error(ErrorKind::usage, "global_norm: no gradients given", loc);
  Value total;
  for (const Value g : grads) {
    const Value s = sum(at(square(at(g))));
    total = total ? at(total) + at(s) : s;
  }
  return sqrt(at(total));
}

ClippedGradients clip_by_global_norm(std::span<const Value> grads, double max_norm, Loc loc) {
  const At at{loc};
  if (!(max_norm >= 0))
    throw Error(ErrorKind::usage, fmt::format("clip_by_global_norm: a bound of {} is below 0 (0: none)", max_norm),
                loc);
  ClippedGradients clipped;
  clipped.norm = global_norm(grads, loc);
  if (max_norm == 0) {
    clipped.grads.assign(grads.begin(), grads.end());
    return clipped;
  }
  const Value scale = minimum(at(1.0), at(at(max_norm) / at(at(clipped.norm) + at(1e-6))));
  for (const Value g : grads) clipped.grads.push_back(at(g) * at(scale));
  return clipped;
}

}  // namespace sg
