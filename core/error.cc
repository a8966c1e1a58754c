#include "core/error.h"

namespace sg {

std::string to_string(Loc loc) {
  const std::string_view file = loc.file_name();
  if (file.empty() || loc.line() == 0) return "<unknown>";
  return fmt::format("{}:{}", file, loc.line());
}

std::string_view to_string(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::shape:
      return "shape";
    case ErrorKind::dtype:
      return "dtype";
    case ErrorKind::attribute:
      return "attribute";
    case ErrorKind::unreachable_gradient:
      return "unreachable_gradient";
    case ErrorKind::unsupported:
      return "unsupported";
    case ErrorKind::backend:
      return "backend";
    case ErrorKind::non_finite:
      return "non_finite";
    case ErrorKind::io:
      return "io";
    case ErrorKind::usage:
      return "usage";
    case ErrorKind::contract:
      return "contract";
    case ErrorKind::internal:
      return "internal";
  }
  return "unknown";
}

void internal_error(std::string_view condition, std::string detail, Loc loc) {
  throw Error(ErrorKind::internal,
              fmt::format("internal error: {} does not hold{}{}\n  at {}", condition, detail.empty() ? "" : ": ",
                          detail, to_string(loc)),
              loc);
}

}  // namespace sg
