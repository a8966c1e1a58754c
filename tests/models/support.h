// Shared by the tests of models/: one-line evaluation of values and shorthand for tensors.
#pragma once
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/backend.h"
#include "core/program.h"
#include "ops/elementwise.h"

namespace sg::models_test {

// A named input of a program and what it is fed.
struct Feed {
  Value input;
  Tensor value;
};

// Compiles, runs once (assigns are committed), and returns the fetches.
inline std::vector<Tensor> run_once(const Tape& tape, const std::vector<Value>& fetches,
                                    const std::vector<Feed>& feeds = {}, std::string_view backend_name = "reference") {
  Program program = compile(tape, fetches, backend(backend_name));
  for (const Feed& feed : feeds) program.feed(feed.input, feed.value);
  program.run();
  std::vector<Tensor> out;
  for (const Value fetch : fetches) out.push_back(program.fetch(fetch));
  return out;
}

// The same in double, with the reference: it computes in double whatever the types are, and only a constant that the
// compiler folds is rounded to its type.
inline std::vector<Tensor> exactly(const Tape& tape, std::vector<Value> fetches, const std::vector<Feed>& feeds = {}) {
  for (Value& v : fetches) v = cast(v, DType::f64);
  Program program = compile(tape, fetches, backend("reference"), {.optimize = false});
  for (const Feed& feed : feeds) program.feed(feed.input, feed.value);
  program.run();
  std::vector<Tensor> out;
  for (const Value fetch : fetches) out.push_back(program.fetch(fetch));
  return out;
}

inline Tensor floats(Shape shape, std::vector<float> values) { return Tensor::of<float>(shape, values); }

inline std::vector<double> numbers(const Tensor& t) {
  std::vector<double> out;
  for (std::int64_t i = 0; i < t.elements(); ++i) out.push_back(t.at(i));
  return out;
}

inline void expect_near(const Tensor& actual, const std::vector<double>& expected, double tolerance,
                        const std::string& what = {}) {
  ASSERT_EQ(actual.elements(), static_cast<std::int64_t>(expected.size())) << what;
  for (std::int64_t i = 0; i < actual.elements(); ++i)
    EXPECT_NEAR(actual.at(i), expected[static_cast<std::size_t>(i)], tolerance) << what << " element " << i;
}

inline void expect_same_bits(const Tensor& a, const Tensor& b, const std::string& what = {}) {
  ASSERT_EQ(a.type(), b.type()) << what;
  EXPECT_TRUE(std::equal(a.data(), a.data() + a.bytes(), b.data())) << what;
}

// Runs f; passes where it throws an Error of that kind whose message has every part.
template <class F>
void expect_error(ErrorKind kind, const std::vector<std::string>& parts, F f) {
  try {
    f();
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), kind) << e.message();
    for (const std::string& part : parts) EXPECT_NE(e.message().find(part), std::string::npos) << e.message();
  }
}

}  // namespace sg::models_test
