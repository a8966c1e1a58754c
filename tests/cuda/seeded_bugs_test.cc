// Kernels with a known mistake, compiled by nvcc as those of the product are: each must be reported as what it is, and
// their correct twins must not, in any order of blocks and warps.
#include <cmath>
#include <initializer_list>

#include "backends/cuda/images.h"
#include "tests/cuda/ptx_harness.h"

namespace sg::cuda {
std::span<const Image> test_kernel_images();  // of tests/cuda/kernels
}

namespace sg::ptx_test {
namespace {

const ptx::Module& bugs() {
  static const ptx::Module module = [] {
    for (const cuda::Image& image : cuda::test_kernel_images())
      if (image.name == "seeded_bugs") return ptx::Module(ptx::text_of_image(image.begin));
    throw std::runtime_error("no image seeded_bugs");
  }();
  return module;
}

struct Outcome {
  ptx::Result result;
  bool right = false;
};
ptx::Options checked(u64 seed) {
  ptx::Options options;
  options.seed = seed;
  options.check_races = options.check_initialised = true;
  return options;
}

template <class... P>
ptx::Result start(const char* name, unsigned blocks, HostMemory& memory, const ptx::Options& options, P... parameters) {
  const ptx::Kernel* kernel = bugs().find(name);
  if (kernel == nullptr) throw std::runtime_error(std::string("no kernel ") + name);
  void* arguments[] = {&parameters...};
  return ptx::launch(*kernel, {blocks}, {128}, 0, arguments, memory, options);
}

Outcome softmax(const char* name, int rows, int columns, const ptx::Options& options) {
  HostMemory memory;
  const std::size_t r = static_cast<std::size_t>(rows), c = static_cast<std::size_t>(columns);
  std::vector<float> x(r * c);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i));
  float* y = memory.add(std::vector<float>(x.size(), NAN), true);
  Outcome outcome{start(name, static_cast<unsigned>(rows), memory, options, memory.add(x), y, columns), true};
  for (std::size_t i = 0; i < r; ++i) {
    double sum = 0;
    for (std::size_t j = 0; j < c; ++j) sum += std::exp(static_cast<double>(x[i * c + j]));
    for (std::size_t j = 0; j < c; ++j)
      outcome.right =
          outcome.right && std::fabs(y[i * c + j] - std::exp(static_cast<double>(x[i * c + j])) / sum) < 1e-6;
  }
  return outcome;
}

Outcome nearest(const char* name, const ptx::Options& options) {
  constexpr int kRows = 200, kCodes = 50, kDim = 8;
  HostMemory memory;
  std::vector<float> x(kRows * kDim), codes(kCodes * kDim);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i));
  for (std::size_t i = 0; i < codes.size(); ++i)
    codes[i] = 2 + std::cos(static_cast<float>(3 * i));  // 0 is nearer than any
  int* index = memory.add(std::vector<int>(kRows, -7));
  Outcome outcome{
      start(name, (kRows + 127) / 128, memory, options, memory.add(x), memory.add(codes), index, kRows, kCodes), true};
  for (std::size_t n = 0; n < kRows; ++n) {
    int found = 0;
    float best = INFINITY;
    for (std::size_t k = 0; k < kCodes; ++k) {
      float distance = 0;
      for (std::size_t d = 0; d < kDim; ++d) {
        const float difference = x[n * kDim + d] - codes[k * kDim + d];
        distance = std::fma(difference, difference, distance);
      }
      if (distance < best) {
        best = distance;
        found = static_cast<int>(k);
      }
    }
    outcome.right = outcome.right && index[n] == found;
  }
  return outcome;
}

Outcome total(const char* name, const ptx::Options& options) {
  HostMemory memory;
  std::vector<int> x(1000);
  int expected = 0;
  for (std::size_t i = 0; i < x.size(); ++i) expected += x[i] = static_cast<int>(i % 17);
  int* sum = memory.add(std::vector<int>(1));
  Outcome outcome{start(name, 8, memory, options, memory.add(x), sum, 1000), false};
  outcome.right = *sum == expected;
  return outcome;
}

Outcome twice(int count, int shift, const ptx::Options& options) {  // shift: floats off 16 bytes
  HostMemory memory;
  std::vector<float> x(400, 1.5f);
  float *from = memory.add(x) + shift, *to = memory.add(std::vector<float>(400));
  Outcome outcome{start("twice4", 1, memory, options, from, to, count), false};
  outcome.right = to[399] == 3.0f;
  return outcome;
}

// Reported by every seed as one of these faults, at a line of the kernel's source.
template <class F>
void expect_reported(F run, std::initializer_list<ptx::Fault> faults) {
  for (u64 seed = 1; seed <= 10; ++seed) {
    const ptx::Result result = run(checked(seed)).result;
    bool expected = false;
    for (const ptx::Fault fault : faults) expected = expected || result.fault == fault;
    EXPECT_TRUE(expected) << "seed " << seed << ": " << (result.ok() ? "no report" : result.report);
    EXPECT_NE(result.report.find("seeded_bugs.cu:"), std::string::npos) << result.report;
  }
}
template <class F>
void expect_clean(F run) {
  for (u64 seed = 1; seed <= 20; ++seed) {
    const Outcome outcome = run(checked(seed));
    ASSERT_TRUE(outcome.result.ok()) << "seed " << seed << ": " << outcome.result.report;
    EXPECT_TRUE(outcome.right) << "seed " << seed;
  }
  EXPECT_TRUE(run(ptx::Options{}).right);
}

TEST(SeededBugs, CorrectTwinsAreClean) {
  expect_clean([](const ptx::Options& o) { return softmax("softmax_control", 3, 200, o); });
  expect_clean([](const ptx::Options& o) { return softmax("softmax_control", 3, 40, o); });
  expect_clean([](const ptx::Options& o) { return nearest("nearest_control", o); });
  expect_clean([](const ptx::Options& o) { return total("total_control", o); });
  expect_clean([](const ptx::Options& o) { return twice(100, 0, o); });
}

TEST(SeededBugs, MissingBarrierAfterAWrite) {
  expect_reported([](const ptx::Options& o) { return softmax("softmax_no_barrier_after_write", 3, 200, o); },
                  {ptx::Fault::race, ptx::Fault::uninitialised});
}
TEST(SeededBugs, MissingBarrierBeforeReuse) {
  expect_reported([](const ptx::Options& o) { return softmax("softmax_no_barrier_before_reuse", 3, 200, o); },
                  {ptx::Fault::race});
}
TEST(SeededBugs, MissingSecondBarrierInATileLoop) {
  expect_reported([](const ptx::Options& o) { return nearest("nearest_no_second_barrier", o); }, {ptx::Fault::race});
}
TEST(SeededBugs, OneColumnMore) {
  auto run = [](int rows) {
    return [rows](const ptx::Options& o) { return softmax("softmax_one_column_more", rows, 200, o); };
  };
  expect_reported(run(1), {ptx::Fault::out_of_bounds});
  expect_reported(run(3), {ptx::Fault::out_of_bounds, ptx::Fault::race});  // of the next row's first column
  EXPECT_EQ(run(1)(ptx::Options{}).result.fault, ptx::Fault::out_of_bounds) << "without checks too";
}
TEST(SeededBugs, PhantomCodeIsAWrongResultAndNothingElse) {
  for (u64 seed = 1; seed <= 3; ++seed) {
    const Outcome outcome = nearest("nearest_phantom_code", checked(seed));
    EXPECT_TRUE(outcome.result.ok()) << outcome.result.report;
    EXPECT_FALSE(outcome.right);
  }
}
TEST(SeededBugs, EarlyReturnBeforeAShuffle) {
  expect_reported([](const ptx::Options& o) { return softmax("softmax_early_return", 3, 40, o); },
                  {ptx::Fault::shuffle});
  EXPECT_EQ(softmax("softmax_early_return", 3, 40, {}).result.fault, ptx::Fault::shuffle) << "without checks too";
}
TEST(SeededBugs, ReadBeyondASharedTile) {
  expect_reported([](const ptx::Options& o) { return nearest("nearest_beyond_tile", o); }, {ptx::Fault::uninitialised});
}
TEST(SeededBugs, SumAcrossBlocksThatIsNotAtomic) {
  expect_reported([](const ptx::Options& o) { return total("total_not_atomic", o); }, {ptx::Fault::race});
}
TEST(SeededBugs, MisalignedVector) {
  expect_reported([](const ptx::Options& o) { return twice(10, 1, o); }, {ptx::Fault::misaligned});
  EXPECT_EQ(twice(10, 1, {}).result.fault, ptx::Fault::misaligned) << "without checks too";
}
TEST(SeededBugs, ElementCountOneTooLarge) {
  expect_reported([](const ptx::Options& o) { return twice(101, 0, o); }, {ptx::Fault::out_of_bounds});
}
TEST(SeededBugs, AsynchronousCopyWithoutWait) {
  expect_reported([](const ptx::Options& o) { return nearest("nearest_copy_without_wait", o); },
                  {ptx::Fault::uninitialised});
  EXPECT_FALSE(nearest("nearest_copy_without_wait", {}).right) << "a wrong result without checks";
}

}  // namespace
}  // namespace sg::ptx_test
