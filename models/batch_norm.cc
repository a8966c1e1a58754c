#include "models/batch_norm.h"

#include "ops/gradient.h"
#include "ops/reduce.h"

namespace sg {

Value Pass::read(Tape& tape, Variable& parameter, Loc loc) const {
  const Value v = tape.read(parameter, loc);
  return stop_parameters ? stop_gradient(Operand(v, loc)) : v;
}

BatchNorm::BatchNorm(Module& parent, std::string_view name, Tensor gamma, double eps, double momentum)
    : Module(parent, name), eps_(eps), momentum_(momentum) {
  const TensorType type = gamma.type();
  if (type.dtype != DType::f32 || type.shape.rank() != 1 || type.shape[0] < 1)
    fail(ErrorKind::attribute, "BatchNorm '{}': the scale is {}, expected f32[C] with C of at least 1", path(),
         to_string(type));
  if (!(eps > 0) || !(momentum >= 0 && momentum <= 1))
    fail(ErrorKind::attribute, "BatchNorm '{}': eps {} is above 0, momentum {} lies in [0, 1]", path(), eps, momentum);
  gamma_ = &add_parameter("weight", std::move(gamma));
  beta_ = &add_parameter("bias", Tensor(type));
  mean_ = &add_state("running_mean", Tensor(type));
  variance_ = &add_state("running_var", Tensor::full(type, 1));
}

Value BatchNorm::operator()(Operand x, const Pass& pass) const {
  const Value input = x.value();
  const Loc loc = x.loc();
  Tape& tape = *input.tape;
  const Scope scope(tape, name(), loc);
  const auto at = [loc](Value v) { return Operand(v, loc); };
  const Shape shape = input.shape();
  const std::int64_t channels = gamma_->type().shape[0];
  if (shape.rank() < 2 || shape[-1] != channels)
    throw Error(
        ErrorKind::shape,
        fmt::format("BatchNorm '{}': input is {}, expected (N,...,{})", path(), to_string(input.type()), channels),
        loc);
  Value m, v;
  if (pass.updates == nullptr) {
    m = tape.read(*mean_, loc);
    v = tape.read(*variance_, loc);
  } else {
    const std::int64_t n = shape.elements() / channels;
    if (n < 2)
      throw Error(ErrorKind::shape,
                  fmt::format("BatchNorm '{}': {} holds one number per channel, which has no variance; train on larger "
                              "batches or images",
                              path(), to_string(input.type())),
                  loc);
    Axes rows(static_cast<std::size_t>(shape.rank() - 1));
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::int64_t>(i);
    m = mean(x, rows);
    v = mean(at(square(at(x - at(m)))), rows);
    const auto follow = [&](Variable& running, Value batch, double scale) {
      const Operand target = at(at(stop_gradient(at(batch))) * Operand(momentum_ * scale, loc));
      pass.updates->set(running, at(at(pass.updates->next(running)) * Operand(1 - momentum_, loc)) + target);
    };
    follow(*mean_, m, 1);
    follow(*variance_, v, static_cast<double>(n) / static_cast<double>(n - 1));
  }
  const Value normalised = at(x - at(m)) * at(rsqrt(at(at(v) + Operand(eps_, loc))));
  return at(at(normalised) * at(pass.read(tape, *gamma_, loc))) + at(pass.read(tape, *beta_, loc));
}

}  // namespace sg
