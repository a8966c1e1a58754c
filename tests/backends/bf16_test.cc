// bf16 on the cpu backend: what takes it and what refuses it, against the oracle, which rounds each result; the same
// bits whatever is fused; gradients of weights in f32.
#include "backends/cpu/bf16.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <set>

#include "backends/backends.h"
#include "backends/cpu/kernels.h"
#include "core/autodiff.h"
#include "core/program.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/backends/each_isa.h"
#include "tests/conformance/conformance.h"
#include "tests/support/emulated_bf16.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

const std::set<std::string> kTakesBf16{"add",
                                       "sub",
                                       "mul",
                                       "div",
                                       "pow",
                                       "minimum",
                                       "maximum",
                                       "neg",
                                       "abs",
                                       "exp",
                                       "log",
                                       "sqrt",
                                       "rsqrt",
                                       "square",
                                       "sin",
                                       "cos",
                                       "acos",
                                       "erf",
                                       "tanh",
                                       "sigmoid",
                                       "silu",
                                       "softplus",
                                       "relu",
                                       "gelu",
                                       "clamp",
                                       "round",
                                       "leaky_relu",
                                       "floor",
                                       "sign",
                                       "cast",
                                       "equal",
                                       "not_equal",
                                       "less",
                                       "greater",
                                       "where",
                                       "less_equal",
                                       "slice",
                                       "concat",
                                       "pad",
                                       "upsample",
                                       "transpose",
                                       "broadcast",
                                       "reshape",
                                       "matmul",
                                       "greater_equal",
                                       "conv2d",
                                       "avg_pool",
                                       "conv2d_bias",
                                       "conv2d_transpose",
                                       "conv2d_weight_grad",
                                       "relu_grad"};

Config bf16_config(const char* base) {
  Config config = config_by_name(base);
  config.real = DType::bf16;
  return config;
}

TEST(CpuBf16, OpsAgreeWithTheOracle) {
  const EmulatedBf16 emulated;
  std::set<std::string> seen;
  for (const Case* c : selected_cases()) {
    if (!kTakesBf16.contains(c->op) || c->decomposes) continue;  // what fuse() makes in f32 only
    seen.insert(c->op);
    // Among its many sums one is so near 0 that its sign, and with it relu's gradient, turns on the last digit.
    if (c->name == "large_relu") continue;
    const CaseResults want = run_case(*c, reference_backend(), bf16_config("default"), 3);
    for (const char* base : {"default", "nofuse", "guard", "onethread"})
      EXPECT_EQ(compare_results(*c, run_case(*c, cpu_backend(), bf16_config(base), 3), want), "")
          << c->op << "." << c->name << ", " << base;
  }
  EXPECT_EQ(seen, kTakesBf16);
}

TEST(CpuBf16, OtherOpsSayToCast) {
  const Value (*forms[])(Operand) = {[](Operand x) -> const Value { return sum(x, {1}); },
                                     [](Operand x) -> const Value { return softmax(x); },
                                     [](Operand x) -> const Value { return argmax(x, 1); }};
  for (const auto form : forms) {
    Tape tape;
    const Value y = form(tape.constant(1.0, {DType::bf16, {4, 8}}));
    try {
      compile(tape, {y}, cpu_backend());
      ADD_FAILURE() << "accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::unsupported);
      EXPECT_NE(e.message().find("cast to f32"), std::string::npos) << e.message();
    }
  }
}

TEST(CpuBf16, ProductsNameTheMissingInstructions) {
  if (cpu::has_bf16()) GTEST_SKIP() << "this processor has avx512_bf16";
  Tape tape;
  const Value x = tape.constant(1.0, {DType::bf16, {4, 4}});
  const Value y = matmul(x, x), moved = transpose(x * 2.0, {1, 0});
  SG_EXPECT_ERROR(backend, "avx512_bf16", compile(tape, {y}, cpu_backend()));
  EXPECT_EQ(eval(moved, cpu_backend()).at(3), 2.0);
}

// Every result is rounded where it is made: a fused region gives the bits of its ops run one by one, and those of the
// oracle where f32 holds the exact result.
TEST(CpuBf16, FusionChangesNoBit) {
  Rng rng(11);
  const Tensor a = normal_reals({37, 45})(rng).cast(DType::bf16), b = normal_reals({45})(rng).cast(DType::bf16),
               f = normal_reals({37, 45})(rng);
  on_each_isa({"generic", "avx2", "avx512"}, [&](const std::string& isa) {
    Tape tape;
    const Value x = tape.input("x", a.type()), bias = tape.input("bias", b.type()), wide = tape.input("wide", f.type());
    const Value h = relu(x * 1.5 + bias);
    const Value mixed = cast(cast(h, DType::f32) * wide, DType::bf16) - x;
    const Value picked = where(greater(mixed, h), mixed, -h);
    const Value again = cast(picked, DType::f32) + wide;
    const std::vector<Value> fetches{h, picked, again};
    CompileOptions apart;
    apart.fuse = false;
    Program fused = compile(tape, fetches, cpu_backend()), single = compile(tape, fetches, cpu_backend(), apart),
            oracle = compile(tape, fetches, reference_backend());
    EXPECT_LT(fused.stats().steps, single.stats().steps);
    for (Program* p : {&fused, &single, &oracle}) {
      p->feed(x, a), p->feed(bias, b), p->feed(wide, f);
      p->run();
    }
    for (const Value& v : fetches) {
      EXPECT_TRUE(same_bits(fused.fetch(v), single.fetch(v))) << isa;
      EXPECT_TRUE(same_bits(fused.fetch(v), oracle.fetch(v))) << isa;
    }
  });
}

// The same where operands belong to a sample and channel.
TEST(CpuBf16, FusionWithSegmentsChangesNoBit) {
  Rng rng(12);
  const Tensor a = normal_reals({5, 19, 45})(rng).cast(DType::bf16),
               s = normal_reals({5, 1, 45})(rng).cast(DType::bf16);
  on_each_isa({"generic", "avx2", "avx512"}, [&](const std::string& isa) {
    Tape tape;
    const Value x = tape.input("x", a.type()), scale = tape.input("scale", s.type());
    const Value h = relu(x * scale + scale);
    const Value sums = sum(cast(h, DType::f32) * cast(x, DType::f32), {1}, true);
    const std::vector<Value> fetches{h, sums};
    CompileOptions apart;
    apart.fuse = false;
    Program fused = compile(tape, fetches, cpu_backend()), single = compile(tape, fetches, cpu_backend(), apart);
    EXPECT_EQ(fused.stats().steps, 1u) << fused.explain();
    EXPECT_NE(fused.explain().find("5 segments of 19 x 45"), std::string::npos) << fused.explain();
    for (Program* p : {&fused, &single}) {
      p->feed(x, a), p->feed(scale, s);
      p->run();
    }
    EXPECT_TRUE(same_bits(fused.fetch(h), single.fetch(h))) << isa;
    const Tensor got = fused.fetch(sums), want = single.fetch(sums);
    for (std::int64_t i = 0; i < want.elements(); ++i)
      ASSERT_NEAR(got.at(i), want.at(i), 1e-5 * (1 + std::abs(want.at(i)))) << isa;
  });
}

// Rounding in the loops and in generated code is that of BFloat16, for numbers of every size, ties and NaN.
TEST(CpuBf16, RoundingIsThatOfTheType) {
  std::vector<float> points = floats_of_every_size();
  for (std::uint32_t bits = 0x3f800000; bits < 0x3f840000; bits += 0x4000) points.push_back(std::bit_cast<float>(bits));
  std::erase_if(points, [](float x) { return x != 0 && std::abs(x) < 0x1p-126f; });  // count as zero while steps run
  const auto count = static_cast<std::int64_t>(points.size());
  const Tensor data = Tensor::of<float>({count}, points);
  on_each_isa({"generic", "avx2", "avx512"}, [&](const std::string& isa) {
    Tape tape;
    const Value x = tape.input("x", data.type());
    const Value rounded = cast(x, DType::bf16), negated = cast(-x, DType::bf16), back = cast(negated, DType::f32);
    Program p = compile(tape, {rounded, negated, back}, cpu_backend());
    EXPECT_EQ(p.explain().find("avx512 code of") != std::string::npos, isa == "avx512") << p.explain();
    p.feed(x, data);
    p.run();
    const Tensor y = p.fetch(rounded), minus = p.fetch(negated), wide = p.fetch(back);
    for (std::int64_t i = 0; i < count; ++i) {
      const BFloat16 want(points[static_cast<std::size_t>(i)]);
      const BFloat16 got = y.span<BFloat16>()[static_cast<std::size_t>(i)];
      if (std::isnan(static_cast<float>(want))) {
        ASSERT_TRUE(std::isnan(static_cast<float>(got)) && std::isnan(minus.at(i)) && std::isnan(wide.at(i)));
        continue;
      }
      ASSERT_EQ(got.bits, want.bits) << points[static_cast<std::size_t>(i)];
      ASSERT_EQ(minus.at(i), -static_cast<double>(want));
      ASSERT_EQ(wide.at(i), -static_cast<double>(want));
    }
  });
}

TEST(CpuBf16, ExactForwardHolds) {
  Tape tape;
  const Value a = tape.constant(Tensor::of<float>({2}, {1000, -3}).cast(DType::bf16));
  const Value b = tape.constant(Tensor::of<float>({2}, {0.001f, 7}).cast(DType::bf16));
  const Tensor z = eval(a + stop_gradient(b - a), cpu_backend());
  EXPECT_EQ(z.at(0), static_cast<double>(BFloat16(0.001f)));
  EXPECT_EQ(z.at(1), 7.0);
}

// The gradient of a weight that was cast to bf16 is a sum in f32 over all positions, never rounded to bf16.
TEST(CpuBf16, GradientsOfWeightsAreF32Sums) {
  const EmulatedBf16 emulated;
  Rng rng(5);
  Variable w("w", normal_reals({3, 3, 16, 16})(rng)), v("v", normal_reals({16, 8})(rng));
  Tape tape;
  const Value x = tape.input("x", {DType::bf16, {2, 6, 6, 16}});
  const Value h = conv2d(x, cast(tape.read(w), DType::bf16), ConvOptions::square(1, 1));
  const Value y = matmul(reshape(h, {72, 16}), cast(tape.read(v), DType::bf16));
  const std::vector<Value> g = gradients(sum(square(cast(y, DType::f32))), {tape.read(w), tape.read(v)});
  const Tensor data = normal_reals({2, 6, 6, 16})(rng).cast(DType::bf16);
  std::vector<Tensor> got;
  for (Backend* b : {&cpu_backend(), &reference_backend()}) {
    Program p = compile(tape, g, *b);
    p.feed(x, data);
    p.run();
    for (const Value& value : g) got.push_back(p.fetch(value));
  }
  for (std::size_t k = 0; k < 2; ++k) {
    std::int64_t beyond_bf16 = 0;
    for (std::int64_t i = 0; i < got[k].elements(); ++i) {
      EXPECT_NEAR(got[k].at(i), got[k + 2].at(i), 0.01 * std::abs(got[k + 2].at(i)) + 1.0);
      beyond_bf16 += got[k].at(i) != static_cast<double>(BFloat16(got[k].at(i)));
      EXPECT_EQ(got[k + 2].at(i), static_cast<double>(BFloat16(got[k + 2].at(i))));
    }
    EXPECT_GT(beyond_bf16, got[k].elements() / 2);
  }
}

TEST(CpuBf16, ValuesTakeHalfTheMemory) {
  std::size_t bytes[2];
  for (const DType t : {DType::f32, DType::bf16}) {
    Tape tape;
    const Value x = tape.input("x", {t, {256, 256}});
    const Value y = transpose(transpose(x, {1, 0}) * 2.0, {1, 0});
    bytes[t == DType::bf16] = compile(tape, {y}, cpu_backend()).stats().arena_bytes;
  }
  EXPECT_EQ(bytes[0], 2 * bytes[1]);
}

}  // namespace
}  // namespace sg::test
