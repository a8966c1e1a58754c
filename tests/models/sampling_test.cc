#include "models/sampling.h"

#include <cmath>
#include <limits>
#include <map>

#include "tests/models/support.h"

namespace sg::models_test {
namespace {

const std::vector<float> kLogits{0.0F, 2.0F, -1.0F, 1.0F, 2.0F};

std::map<std::int32_t, double> frequencies(const SamplingOptions& options, int draws = 20000) {
  HostRandom random(3, "sampling_test");
  std::map<std::int32_t, double> counts;
  for (int i = 0; i < draws; ++i) counts[sample_token(kLogits, options, random)] += 1.0 / draws;
  return counts;
}

void expect_softmax(const std::map<std::int32_t, double>& found, const std::vector<std::int32_t>& tokens,
                    double temperature) {
  double total = 0;
  for (const std::int32_t t : tokens) total += std::exp(kLogits[static_cast<std::size_t>(t)] / temperature);
  ASSERT_EQ(found.size(), tokens.size());
  for (const std::int32_t t : tokens) {
    ASSERT_TRUE(found.contains(t)) << t;
    EXPECT_NEAR(found.at(t), std::exp(kLogits[static_cast<std::size_t>(t)] / temperature) / total, 0.015) << t;
  }
}

TEST(Sampling, DrawsFromTheSoftmax) {
  expect_softmax(frequencies({}), {0, 1, 2, 3, 4}, 1);
  expect_softmax(frequencies({.temperature = 2}), {0, 1, 2, 3, 4}, 2);
}

TEST(Sampling, TopKKeepsTheLikeliestAndTiesGoToTheLowerToken) {
  expect_softmax(frequencies({.top_k = 3}), {1, 3, 4}, 1);
  expect_softmax(frequencies({.top_k = 1}), {1}, 1);
  expect_softmax(frequencies({.top_k = 99}), {0, 1, 2, 3, 4}, 1);
}

// Probabilities are .373 .373 .137 .051 ... for tokens 1 4 3 0.
TEST(Sampling, TopPKeepsTheFewestThatReachTheMass) {
  expect_softmax(frequencies({.top_p = 0.37}), {1}, 1);
  expect_softmax(frequencies({.top_p = 0.40}), {1, 4}, 1);
  expect_softmax(frequencies({.top_p = 0.80}), {1, 3, 4}, 1);
  expect_softmax(frequencies({.top_k = 2, .top_p = 0.9}), {1, 4}, 1);
}

TEST(Sampling, TemperatureZeroIsTheLikeliestAndDrawsNothing) {
  HostRandom a(1, "x"), b(1, "x");
  EXPECT_EQ(sample_token(kLogits, {.temperature = 0}, a), 1);
  EXPECT_EQ(a.uniform(), b.uniform());
}

TEST(Sampling, RefusesWhatMakesNoSense) {
  HostRandom random(1, "x");
  expect_error(ErrorKind::usage, {"temperature"}, [&] { sample_token(kLogits, {.temperature = -1}, random); });
  expect_error(ErrorKind::usage, {"top-p is 0"}, [&] { sample_token(kLogits, {.top_p = 0}, random); });
  expect_error(ErrorKind::usage, {"top-k is -1"}, [&] { sample_token(kLogits, {.top_k = -1}, random); });
  const float nan = std::numeric_limits<float>::quiet_NaN(), minus = -std::numeric_limits<float>::infinity();
  expect_error(ErrorKind::non_finite, {"NaN"}, [&] { sample_token(std::vector<float>{1, nan}, {}, random); });
  expect_error(ErrorKind::non_finite, {"no finite"}, [&] {
    sample_token(std::vector<float>{minus, minus}, {}, random);
  });
  EXPECT_EQ(sample_token(std::vector<float>{minus, 1}, {}, random), 1) << "a token that is ruled out is never drawn";
}

}  // namespace
}  // namespace sg::models_test
