// Random instructions: functions of a state {seed, step}. Each instruction takes its own stream from the tape when it
// is recorded; passes copy the stream, so that optimisation changes no number.
#include "ops/random.h"

#include "ops/elementwise.h"
#include "ops/op_ids.h"

namespace sg {
namespace {

template <OpId op>
std::vector<TensorType> infer_random(std::span<const TensorType> in, const Attrs& attrs) {
  const auto dtype = static_cast<DType>(attrs.i("dtype"));
  if (in[0] != TensorType{DType::i32, {2}})
    fail(ErrorKind::dtype, "{}: the state is {}, must be i32[2] = [seed, step]", op_def(op).name, to_string(in[0]));
  if (!is_real(dtype)) fail(ErrorKind::dtype, "{}: makes real numbers, not {}", op_def(op).name, to_string(dtype));
  if (dtype == DType::bf16) fail(ErrorKind::dtype, "{}: makes f32 or f64; cast the numbers to bf16", op_def(op).name);
  return {{dtype, Shape(attrs.ints("shape"))}};
}

Value emit_random(OpId op, const Operand& state, const Shape& shape, DType dtype, std::int64_t stream) {
  const Value s = state.value();
  return s.tape->emit1(
      op, {s}, {{"shape", shape.vec()}, {"dtype", static_cast<std::int64_t>(dtype)}, {"stream", stream}}, state.loc());
}

std::int64_t next_stream(const Operand& state) { return state.value().tape->next_stream(); }

}  // namespace

namespace defs {
OpDef uniform() {
  return {.name = "uniform", .arity = 1, .grad = GradKind::none, .infer = infer_random<OpId::uniform>};
}
OpDef normal() { return {.name = "normal", .arity = 1, .grad = GradKind::none, .infer = infer_random<OpId::normal>}; }
}  // namespace defs

Value uniform(Operand state, Shape shape, DType dtype) {
  return emit_random(OpId::uniform, state, shape, dtype, next_stream(state));
}
Value normal(Operand state, Shape shape, DType dtype) {
  return emit_random(OpId::normal, state, shape, dtype, next_stream(state));
}
Value uniform_of(Value key, Operand state, Shape shape, DType dtype) {
  // The tape counts streams up from 0; those of keys are the negative ones, which as unsigned 32-bit numbers are the
  // top.
  return emit_random(OpId::uniform, state, shape, dtype, -1 - std::int64_t{key.id});
}

void advance_random_state(Tape& tape, Variable& state, Loc loc) {
  const Value one_step = tape.constant(Tensor::of<std::int32_t>({2}, {0, 1}), loc);
  tape.assign(state, Operand(tape.read(state, loc), loc) + Operand(one_step, loc), loc);
}

}  // namespace sg
