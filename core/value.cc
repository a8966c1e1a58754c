#include "core/value.h"

#include "core/tape.h"

namespace sg {

const TensorType& Value::type() const {
  SG_CHECK(tape != nullptr, "a null Value has no type");
  return tape->type(id);
}

Value Operand::value() const {
  if (is_scalar())
    throw Error(ErrorKind::usage,
                fmt::format("a number ({}) was given where a Value is needed\n  at {}", scalar_, to_string(loc_)),
                loc_);
  if (!value_)
    throw Error(ErrorKind::usage, fmt::format("a null Value was given as an operand\n  at {}", to_string(loc_)), loc_);
  return value_;
}

Value Operand::on(Tape& tape, DType dtype) const {
  if (is_scalar()) return tape.constant(scalar_, {dtype, {}}, loc_);
  if (value().tape != &tape)
    throw Error(ErrorKind::usage, fmt::format("operands are on different tapes\n  at {}", to_string(loc_)), loc_);
  return value_;
}

}  // namespace sg
