// Known answers of Philox4x32-10 from the generator's authors (Random123, kat_vectors), and the maps to real numbers.
#include "core/philox.h"

#include <gtest/gtest.h>

#include <set>

namespace sg {
namespace {

TEST(Philox, KnownAnswerZeros) {
  const PhiloxBlock expected{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}), expected);
}

TEST(Philox, KnownAnswerOnes) {
  constexpr std::uint32_t kOnes = 0xffffffff;
  const PhiloxBlock expected{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
  EXPECT_EQ(philox4x32_10({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}), expected);
}

TEST(Philox, KnownAnswerDigitsOfPi) {
  const PhiloxBlock expected{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
  EXPECT_EQ(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}), expected);
}

TEST(Philox, EveryKeyPartChangesTheBlock) {
  std::set<PhiloxBlock> blocks;
  blocks.insert(random_block(1, 2, 3, 4));
  blocks.insert(random_block(2, 2, 3, 4));
  blocks.insert(random_block(1, 3, 3, 4));
  blocks.insert(random_block(1, 2, 4, 4));
  blocks.insert(random_block(1, 2, 3, 5));
  blocks.insert(random_block(1, 2, 3, 4 + (std::uint64_t{1} << 32)));
  EXPECT_EQ(blocks.size(), 6u);
  EXPECT_EQ(random_block(1, 2, 3, 4), random_block(1, 2, 3, 4));
}

TEST(Philox, UniformIsHalfOpenAndExactInFloat) {
  EXPECT_EQ(uniform_block({0, 0xff, 0x100, 0xffffffff}), (std::array<double, 4>{0, 0, 0x1p-24, 1 - 0x1p-24}));
  for (std::uint64_t block = 0; block < 1000; ++block) {
    for (const double u : uniform_block(random_block(7, 0, 0, block))) {
      EXPECT_GE(u, 0);
      EXPECT_LT(static_cast<float>(u), 1.0f);
      EXPECT_EQ(static_cast<double>(static_cast<float>(u)), u);
    }
  }
}

TEST(Philox, NormalIsFiniteAtTheEnds) {
  constexpr std::uint32_t kOnes = 0xffffffff;
  for (const double x : normal_block({0, 0, kOnes, kOnes})) EXPECT_TRUE(std::isfinite(x)) << x;
  // radius sqrt(-2 log 2^-24) at angle 0, and radius 0.
  const auto n = normal_block({0, 0, kOnes, 0});
  EXPECT_DOUBLE_EQ(n[0], std::sqrt(48 * std::log(2.0)));
  EXPECT_EQ(n[1], 0);
  EXPECT_EQ(n[2], 0);
}

// Four standard errors of n = 80000 samples around the moments of U(0,1) and N(0,1): 0, 1, 0, 3 for the normal.
TEST(Philox, Moments) {
  constexpr int kBlocks = 20000;
  constexpr double n = 4.0 * kBlocks;
  double mean_u = 0, m1 = 0, m2 = 0, m3 = 0, m4 = 0;
  for (std::uint64_t block = 0; block < kBlocks; ++block) {
    for (const double u : uniform_block(random_block(11, 5, 1, block))) mean_u += u / n;
    for (const double x : normal_block(random_block(11, 5, 2, block))) {
      m1 += x / n;
      m2 += x * x / n;
      m3 += x * x * x / n;
      m4 += x * x * x * x / n;
    }
  }
  EXPECT_NEAR(mean_u, 0.5, 4 * std::sqrt(1.0 / 12 / n));
  EXPECT_NEAR(m1, 0, 4 * std::sqrt(1 / n));
  EXPECT_NEAR(m2, 1, 4 * std::sqrt(2 / n));
  EXPECT_NEAR(m3, 0, 4 * std::sqrt(15 / n));
  EXPECT_NEAR(m4, 3, 4 * std::sqrt(96 / n));
}

}  // namespace
}  // namespace sg
