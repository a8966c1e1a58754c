// Checks that inference functions share. Messages begin with the op's name and hold the op's part only: Tape::emit adds
// the operands and the user's line.
#pragma once
#include <fmt/ranges.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/attrs.h"
#include "core/error.h"
#include "core/shape.h"

namespace sg::checks {

inline std::string list(std::span<const std::int64_t> v) { return fmt::format("[{}]", fmt::join(v, ",")); }

inline void real(std::string_view op, std::string_view what, const TensorType& t) {
  if (!is_real(t.dtype)) fail(ErrorKind::dtype, "{}: {} must be real, got {}", op, what, to_string(t));
}

inline void integer(std::string_view op, std::string_view what, const TensorType& t) {
  if (t.dtype != DType::i32) fail(ErrorKind::dtype, "{}: {} must be i32, got {}", op, what, to_string(t));
}

inline void same_dtype(std::string_view op, std::string_view what_a, const TensorType& a, std::string_view what_b,
                       const TensorType& b) {
  if (a.dtype != b.dtype)
    fail(ErrorKind::dtype, "{}: {} is {}, {} is {}; cast one of them", op, what_a, to_string(a.dtype), what_b,
         to_string(b.dtype));
}

inline void same_type(std::string_view op, std::string_view what_a, const TensorType& a, std::string_view what_b,
                      const TensorType& b) {
  same_dtype(op, what_a, a, what_b, b);
  if (a.shape != b.shape)
    fail(ErrorKind::shape, "{}: {} is {}, {} is {}", op, what_a, to_string(a.shape), what_b, to_string(b.shape));
}

inline void rank(std::string_view op, std::string_view what, const TensorType& t, int wanted, std::string_view axes) {
  if (t.shape.rank() != wanted) fail(ErrorKind::shape, "{}: {} must be {}, got {}", op, what, axes, to_string(t.shape));
}

// The type of a product's sums: the operands', or f32 where a backend's rewrite leaves sums of bf16 unrounded ("f32").
inline DType sum_dtype(std::string_view op, const TensorType& operand, const Attrs& attrs) {
  if (!attrs.has("f32")) return operand.dtype;
  if (operand.dtype != DType::bf16) fail(ErrorKind::attribute, "{}: f32 sums of {}", op, to_string(operand.dtype));
  return DType::f32;
}

// An attribute list of `count` entries, each at least `least`.
inline void entries(std::string_view op, std::string_view what, std::span<const std::int64_t> v, int count,
                    std::int64_t least) {
  bool ok = static_cast<int>(v.size()) == count;
  for (const std::int64_t e : v) ok = ok && e >= least;
  if (!ok) fail(ErrorKind::attribute, "{}: {} must be {} integers >= {}, got {}", op, what, count, least, list(v));
}

// For errors that are found before an instruction can be recorded.
template <class... Args>
[[noreturn]] void fail_at(Loc loc, ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...) + "\n  at " + to_string(loc), loc);
}

}  // namespace sg::checks
