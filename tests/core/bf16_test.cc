// The element type bf16: rounding, tensors, files, what may be mixed, and what the oracle makes of it.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "core/program.h"
#include "core/safetensors.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/matmul.h"
#include "ops/random.h"
#include "ops/reduce.h"

namespace sg {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

double as_bf16(double x) { return static_cast<double>(BFloat16(x)); }

BFloat16 of_bits(std::uint16_t bits) {
  BFloat16 x;
  x.bits = bits;
  return x;
}

TEST(BFloat16, EveryNumberComesBack) {
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const BFloat16 x = of_bits(static_cast<std::uint16_t>(bits));
    const auto f = static_cast<float>(x);
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(f))));
    } else {
      EXPECT_EQ(BFloat16(f).bits, bits);
      EXPECT_EQ(BFloat16(static_cast<double>(f)).bits, bits);
    }
  }
}

// Between each two neighbours: below the middle to the lower, above it to the upper, in the middle to the even one.
TEST(BFloat16, RoundsToNearestTiesToEven) {
  for (std::uint32_t bits = 0; bits < 0x7f7f; ++bits) {
    const double low = static_cast<double>(of_bits(static_cast<std::uint16_t>(bits)));
    const double high = static_cast<double>(of_bits(static_cast<std::uint16_t>(bits + 1)));
    const double middle = 0.5 * (low + high);
    for (const double sign : {1.0, -1.0}) {
      EXPECT_EQ(as_bf16(sign * middle), sign * (bits % 2 == 0 ? low : high)) << bits;
      EXPECT_EQ(as_bf16(sign * std::nextafter(middle, 0.0)), sign * low) << bits;
      EXPECT_EQ(as_bf16(sign * std::nextafter(middle, kInf)), sign * high) << bits;
    }
    EXPECT_EQ(static_cast<double>(BFloat16(std::nextafter(static_cast<float>(middle), static_cast<float>(kInf)))), high)
        << bits;
  }
}

TEST(BFloat16, EndsOfTheRange) {
  EXPECT_EQ(as_bf16(3.3895313892515355e38), 3.3895313892515355e38);
  EXPECT_EQ(as_bf16(3.4e38), kInf);
  EXPECT_EQ(as_bf16(-1e300), -kInf);
  EXPECT_EQ(as_bf16(kInf), kInf);
  EXPECT_TRUE(std::isnan(as_bf16(std::nan(""))));
  EXPECT_TRUE(std::signbit(as_bf16(-0.0)));
  EXPECT_EQ(as_bf16(1e-300), 0.0);
}

TEST(BFloat16, TensorsConvertAndTakeTwoBytes) {
  const Tensor t = Tensor::of<float>({4}, {1.0f, 1.00390625f, 1.01171875f, -3.14159f}).cast(DType::bf16);
  EXPECT_EQ(t.bytes(), 8u);
  EXPECT_EQ(to_string(t.type()), "bf16[4]");
  EXPECT_EQ(t.at(0), 1.0);
  EXPECT_EQ(t.at(1), 1.0);
  EXPECT_EQ(t.at(2), 1.015625);
  EXPECT_EQ(t.at(3), -3.140625);
  EXPECT_EQ(t.cast(DType::f32).cast(DType::bf16).at(3), -3.140625);
  EXPECT_THROW(t.span<float>(), Error);
}

TEST(BFloat16, SafetensorsKeepIt) {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("sg_bf16_" + std::to_string(::getpid()) + ".safetensors");
  StateFile state;
  state.tensors.push_back({"odd", Tensor::of<float>({3}, {1, 2, 0.1f}).cast(DType::bf16)});
  state.tensors.push_back({"wide", Tensor::of<float>({2}, {3, 4})});
  save_safetensors(file, state);
  const StateFile back = load_safetensors(file);
  std::filesystem::remove(file);
  const Tensor* odd = back.find("odd");
  ASSERT_NE(odd, nullptr);
  EXPECT_EQ(odd->type(), (TensorType{DType::bf16, {3}}));
  EXPECT_EQ(odd->at(2), as_bf16(0.1));
  ASSERT_NE(back.find("wide"), nullptr);
  EXPECT_EQ(back.find("wide")->at(1), 4.0);
}

TEST(BFloat16, MixedTypesAreAnErrorThatSaysToCast) {
  Tape tape;
  const Value x = tape.input("x", {DType::bf16, {2, 2}}), y = tape.input("y", {DType::f32, {2, 2}});
  for (const auto& mix : {+[](Value a, Value b) { return a + b; }, +[](Value a, Value b) { return matmul(a, b); }}) {
    try {
      mix(x, y);
      ADD_FAILURE() << "accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::dtype);
      EXPECT_NE(e.message().find("cast one of them"), std::string::npos) << e.message();
    }
  }
  EXPECT_EQ((cast(x, DType::f32) + y).dtype(), DType::f32);
  EXPECT_EQ((2.0 * x).dtype(), DType::bf16);
  const Value state = tape.input("state", {DType::i32, {2}});
  EXPECT_THROW(uniform(state, {3}, DType::bf16), Error);
}

// 256 + 1 is not a number of bf16: each addition rounds, where one sum of all would not.
TEST(BFloat16, TheOracleRoundsEachResult) {
  Tape tape;
  const Value x = tape.constant(Tensor::of<float>({1}, {256}).cast(DType::bf16));
  EXPECT_EQ(eval((x + 1.0) + 1.0, reference_backend()).at(0), 256.0);
  EXPECT_EQ(eval(cast(cast(x, DType::f32) + 2.0, DType::bf16), reference_backend()).at(0), 258.0);
}

TEST(BFloat16, GradientsOfBroadcastsAreSummedInF32) {
  Tape tape;
  const Value x = tape.constant(1.0, {DType::bf16, {600, 2}}), b = tape.constant(1.0, {DType::bf16, {2}});
  const Value g = gradient(sum(cast(x * b, DType::f32)), b);
  EXPECT_EQ(g.dtype(), DType::bf16);
  EXPECT_EQ(eval(g, reference_backend()).at(0), 600.0);
  bool summed_in_f32 = true;
  for (const Instr& instr : tape.instrs())
    if (op_def(instr.op).accumulates) summed_in_f32 &= tape.type(instr.inputs[0]).dtype == DType::f32;
  EXPECT_TRUE(summed_in_f32);
}

TEST(BFloat16, ExactForwardHolds) {
  Tape tape;
  const Value a = tape.constant(1000.0, {DType::bf16, {3}});
  const Value b = tape.constant(Tensor::of<float>({3}, {0.001f, -0.002f, 0.003f}).cast(DType::bf16));
  const Tensor z = eval(a + stop_gradient(b - a), reference_backend());
  for (std::int64_t i = 0; i < 3; ++i)
    EXPECT_EQ(z.at(i), as_bf16(static_cast<float>(i % 2 == 1 ? -2 : i + 1) * 0.001f));
}

TEST(BFloat16, NotFiniteIsFound) {
  Tape tape;
  const Value x = tape.input("x", {DType::bf16, {1}});
  CompileOptions options;
  options.check_finite = true;
  const Value y = x * 2.0;
  Program p = compile(tape, {y}, reference_backend(), options);
  p.feed(x, Tensor::full(x.type(), 3e38));
  EXPECT_THROW(p.run(), Error);
  p.feed(x, Tensor::full(x.type(), 3.0));
  p.run();
  EXPECT_EQ(p.fetch_scalar(y), 6.0);
}

}  // namespace
}  // namespace sg
