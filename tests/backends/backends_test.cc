// The list of backends: names, errors, threads, and that results do not depend on how many threads there are.
#include "backends/backends.h"

#include "core/autodiff.h"
#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/index.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/conformance/cases.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

TEST(Backends, AreFoundByName) {
  EXPECT_EQ(&backend("reference"), &reference_backend());
  EXPECT_EQ(&backend("cpu"), &cpu_backend());
  for (const auto name : backend_names()) EXPECT_EQ(backend(name).name(), name);
}

TEST(Backends, UnknownNameListsWhatTheBuildHas) {
  for (const auto name : backend_names()) SG_EXPECT_ERROR(backend, name, backend("abacus"));
  SG_EXPECT_ERROR(backend, "abacus", backend("abacus"));
  SG_EXPECT_ERROR(backend, "", backend(""));
}

TEST(Backends, DescribeThemselves) {
  for (const auto name : backend_names()) SG_EXPECT_CONTAINS(describe_backends(), name);
}

TEST(Backends, ReferenceKeepsRealsInDouble) {
  EXPECT_EQ(reference_backend().storage(DType::f32), DType::f64);
  EXPECT_EQ(cpu_backend().storage(DType::f32), DType::f32);
}

TEST(Threads, AreAtLeastOne) {
  SG_EXPECT_ERROR(usage, "0", set_threads(0));
  const int before = threads();
  set_threads(1);
  EXPECT_EQ(threads(), 1);
  set_threads(before);
}

// Sums over rows, over columns and by index, nearest codes: own kernels, so the order of additions is ours to keep.
TEST(Threads, DoNotChangeTheBitsOfReductions) {
  Rng rng(3);
  const Tensor x_rows = normal_reals({3001, 37})(rng), code_rows = normal_reals({130, 37})(rng);
  Tape tape;
  const Value x = tape.constant(x_rows), codes = tape.constant(code_rows);
  const Value picks = nearest_code(x, codes), q = gather_rows(codes, picks);
  const Value loss = mean(square(q - x));
  const std::vector<Value> fetches{loss,
                                   picks,
                                   gradient(loss, codes),
                                   sum(x, {0}),
                                   sum(x, {1}),
                                   sum(exp(x)),
                                   histogram(picks, 130),
                                   scatter_add_rows(picks, x, 130),
                                   max(x, {0}),
                                   quantile(x, {0.1, 0.9})};
  const int before = threads();
  std::vector<Tensor> first;
  for (const int n : {1, 2, 3}) {
    set_threads(n);
    Program p = compile(tape, fetches, cpu_backend());
    p.run();
    for (std::size_t i = 0; i < fetches.size(); ++i) {
      if (n == 1)
        first.push_back(p.fetch(fetches[i]));
      else
        EXPECT_TRUE(same_bits(p.fetch(fetches[i]), first[i])) << "result " << i << " with " << n << " threads";
    }
  }
  set_threads(before);
}

// On cpu, and only while a program runs.
TEST(Backends, SubnormalNumbersCountAsZeroOnCpu) {
  const auto doubled = [](std::string_view name) {
    Tape tape;
    const Value x = tape.input("x", {DType::f32, {64}}), twice = 2.0 * x;
    Program p = compile(tape, {twice}, backend(name));
    p.feed(x, Tensor::full({DType::f32, {64}}, 1e-40));
    p.run();
    return p.fetch(twice).at(5);
  };
  EXPECT_EQ(doubled("cpu"), 0.0);
  EXPECT_NEAR(doubled("reference"), 2e-40, 1e-44);
  volatile float tiny = 1e-40f;
  EXPECT_GT(tiny * 2.0f, 0.0f) << "the caller's own arithmetic is left as it was";
}

TEST(Backends, IndexOutOfRangeIsAnErrorAtRunTime) {
  for (const auto name : backend_names()) {
    Tape tape;
    const Value table = tape.input("table", {DType::f32, {3, 2}}), index = tape.input("index", {DType::i32, {2}});
    const Value rows = gather_rows(table, index);
    Program p = compile(tape, {rows}, backend(name));
    p.feed(table, Tensor({DType::f32, {3, 2}}));
    for (const std::int32_t wrong : {3, -1}) {
      p.feed(index, Tensor::of<std::int32_t>({2}, {0, wrong}));
      SG_EXPECT_ERROR(attribute, std::to_string(wrong), p.run());
    }
    p.feed(index, Tensor::of<std::int32_t>({2}, {0, 2}));
    p.run();
  }
}

}  // namespace
}  // namespace sg::test
