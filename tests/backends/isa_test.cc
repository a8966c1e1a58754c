// The own kernels of the cpu backend on every instruction set that this processor has: all conformance cases, the
// accuracy of the vectorised functions, and sums and ties whose results are known.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "backends/backends.h"
#include "backends/cpu/kernels.h"
#include "ops/elementwise.h"
#include "ops/index.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "tests/backends/each_isa.h"
#include "tests/conformance/conformance.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

constexpr std::initializer_list<const char*> kAll{"generic", "avx2", "avx512"};

TEST(Isa, UnknownNameListsWhatTheProcessorHas) {
  SG_EXPECT_ERROR(usage, "generic", set_isa("mmx"));
  SG_EXPECT_ERROR(usage, isa_name(), set_isa(""));
  SG_EXPECT_CONTAINS(cpu_backend().describe(), isa_name());
}

TEST(Isa, EveryCaseAgreesWithTheReference) {
  for (const Case* c : selected_cases()) {
    const CaseResults want = run_case(*c, reference_backend(), config_by_name("default"), 5);
    on_each_isa(kAll, [&](const std::string& isa) {
      const CaseResults got = run_case(*c, cpu_backend(), config_by_name("replay"), 5);
      const std::string difference = compare_results(*c, got, want);
      EXPECT_EQ(difference, "") << c->op << " " << c->name << " on " << isa;
    });
  }
}

TEST(Isa, VectorFunctionsAreWithinTheirUlp) {
  const std::vector<float> all = floats_of_every_size();
  for (const Function& f : functions_of_row_programs()) {
    const std::vector<float> points = within(all, f);
    const Tensor x = Tensor::of<float>({static_cast<std::int64_t>(points.size())}, points);
    on_each_isa(kAll, [&](const std::string& isa) {
      Tape tape;
      CompileOptions interpreted;
      interpreted.optimize = interpreted.fuse = false;  // constants are not to be folded
      expect_within_ulp(eval(f.apply(tape.constant(x)), cpu_backend(), interpreted), points, f, isa);
    });
  }
}

// A million terms of 0.1f: a running f32 sum would be off by 1 %.
TEST(Isa, LongSumsKeepTheirDigits) {
  constexpr std::int64_t n = 1 << 20;
  const Tensor x = Tensor::full({DType::f32, {n / 16, 16}}, 0.1);
  const double exact = static_cast<double>(n) * static_cast<double>(0.1f);
  on_each_isa(kAll, [&](const std::string& isa) {
    Tape tape;
    const Value v = tape.constant(x);
    CompileOptions plain;
    plain.optimize = false;
    Program p = compile(tape, {sum(v), sum(v, {0})}, cpu_backend(), plain);
    p.run();
    EXPECT_NEAR(eval(sum(v), cpu_backend(), plain).item(), exact, exact * 1e-6) << isa;
    const Tensor columns = eval(sum(v, {0}), cpu_backend(), plain);
    for (std::int64_t c = 0; c < 16; ++c) EXPECT_NEAR(columns.at(c), exact / 16, exact / 16 * 1e-6) << isa;
  });
}

// Each code twice and more codes than a panel holds: the first of equals wins in every lane and panel.
TEST(Isa, NearestCodeBreaksTiesDownwards) {
  constexpr std::int64_t half = 75, depth = 3;
  Tensor codes({DType::f32, {2 * half, depth}}), z({DType::f32, {half, depth}});
  for (std::int64_t k = 0; k < 2 * half; ++k)
    for (std::int64_t d = 0; d < depth; ++d) {
      const double v = static_cast<double>((k % half * 7 + d * 31) % 101) - 50;
      codes.set(k * depth + d, v);
      if (k < half) z.set(k * depth + d, v);
    }
  z.set(5 * depth, std::nan(""));
  on_each_isa(kAll, [&](const std::string& isa) {
    Tape tape;
    const Tensor picks = eval(nearest_code(tape.constant(z), tape.constant(codes)), cpu_backend());
    for (std::int64_t n = 0; n < half; ++n) EXPECT_EQ(picks.at(n), n == 5 ? 0 : n) << isa;
  });
}

}  // namespace
}  // namespace sg::test
