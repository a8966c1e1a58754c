// What many tests say: an error of a kind at this line, a tensor's values, a program's text.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>

#include "core/error.h"
#include "core/tape.h"

namespace sg::test {

// The Error that f throws; a failure and nothing where it throws none.
template <class F>
std::optional<Error> error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << "no Error was thrown";
  return std::nullopt;
}

inline bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

#define SG_EXPECT_CONTAINS(text, part) EXPECT_TRUE(::sg::test::contains(text, part)) << "in:\n" << (text)

// SG_EXPECT_ERROR(shape, "part of the message", statement)
#define SG_EXPECT_ERROR(expected_kind, part, ...)                                                                    \
  do {                                                                                                               \
    if (const auto error_ = ::sg::test::error_of([&] { __VA_ARGS__; })) {                                            \
      EXPECT_EQ(::sg::to_string(error_->kind()), ::sg::to_string(::sg::ErrorKind::expected_kind)) << error_->what(); \
      SG_EXPECT_CONTAINS(error_->message(), part);                                                                   \
    }                                                                                                                \
  } while (false)

inline void expect_values(const Tensor& t, std::initializer_list<double> wanted, double tolerance = 0) {
  ASSERT_EQ(t.elements(), static_cast<std::int64_t>(wanted.size()));
  std::int64_t i = 0;
  for (const double w : wanted) {
    EXPECT_NEAR(t.at(i), w, tolerance) << "element " << i;
    ++i;
  }
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.type() == b.type() && std::memcmp(a.data(), b.data(), a.bytes()) == 0;
}

inline int count_ops(const Tape& tape, std::string_view op) {
  int n = 0;
  for (const Instr& instr : tape.instrs()) n += op_def(instr.op).name == op;
  return n;
}

}  // namespace sg::test
