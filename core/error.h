// sg::Error: every failure that a user can cause. The library throws; it never prints and never exits.
// A message says what, the two facts that disagree, where each came from, and what to do.
#pragma once
#include <fmt/format.h>

#include <exception>
#include <source_location>
#include <string>
#include <string_view>

namespace sg {

using Loc = std::source_location;

std::string to_string(Loc);  // "models/layers.cc:88"; "<unknown>" for a default-made location

enum class ErrorKind : unsigned char {
  shape, dtype, attribute, unreachable_gradient, unsupported, backend, non_finite, io, usage, contract, internal
};
std::string_view to_string(ErrorKind);

class Error : public std::exception {
 public:
  Error(ErrorKind kind, std::string message, Loc loc = {}) : kind_(kind), message_(std::move(message)), loc_(loc) {}
  const char* what() const noexcept override { return message_.c_str(); }
  ErrorKind kind() const { return kind_; }
  const std::string& message() const { return message_; }
  Loc loc() const { return loc_; }

 private:
  ErrorKind kind_;
  std::string message_;
  Loc loc_;
};

// fail(ErrorKind::shape, "conv2d: input has {} channels, weight expects {}", a, b)
template <class... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

[[noreturn]] void internal_error(std::string_view condition, std::string detail, Loc loc);

// A broken invariant of the framework itself (never a user's mistake).
#define SG_CHECK(condition, ...)                                                              \
  do {                                                                                        \
    if (!(condition)) ::sg::internal_error(#condition, fmt::format("" __VA_ARGS__), ::sg::Loc::current()); \
  } while (false)

}  // namespace sg
