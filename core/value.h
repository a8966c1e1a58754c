// Value: a 16-byte handle to one result on a Tape; it holds no data. Operand: a Value or a number, together with the
// line of the user's code that wrote it, so that `2.0 * z` and `a + b` are reported at that line.
#pragma once
#include <cstdint>

#include "core/error.h"
#include "core/shape.h"

namespace sg {

class Tape;

struct Value {
  Tape* tape = nullptr;
  std::int32_t id = -1;

  explicit operator bool() const { return tape != nullptr; }
  const TensorType& type() const;
  const Shape& shape() const { return type().shape; }
  DType dtype() const { return type().dtype; }
  bool operator==(const Value&) const = default;
};

class Operand {
 public:
  Operand(Value value, Loc loc = Loc::current()) : value_(value), loc_(loc) {}
  Operand(double scalar, Loc loc = Loc::current()) : scalar_(scalar), is_scalar_(true), loc_(loc) {}
  Operand(int scalar, Loc loc = Loc::current()) : Operand(static_cast<double>(scalar), loc) {}
  Operand(float scalar, Loc loc = Loc::current()) : Operand(static_cast<double>(scalar), loc) {}

  bool is_scalar() const { return is_scalar_; }
  Loc loc() const { return loc_; }
  double scalar() const { return scalar_; }
  Value value() const;                         // Error{usage} where it is a number or a null Value
  Value on(Tape& tape, DType dtype) const;     // the Value, or the number as a scalar constant of that type

 private:
  Value value_{};
  double scalar_ = 0;
  bool is_scalar_ = false;
  Loc loc_;
};

}  // namespace sg
