// The two kernels of nearest_code against each other, to the index, and against the reference: shapes that fill no
// tile, near ties, duplicates, magnitudes whose squares overflow or vanish, numbers that are none.
#include "backends/cuda/nearest.h"

#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "ops/elementwise.h"
#include "ops/index.h"
#include "tests/cuda/support.h"

namespace sg::test {
namespace {

using cuda::NearestKernel;
using Index = std::int64_t;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

class CudaNearest : public CudaTest {
 protected:
  void TearDown() override { cuda::force_nearest_kernel({}); }

  static Tensor nearest(const Tensor& z, const Tensor& codes, Metric metric, const std::string& on = "cuda") {
    Tape tape;
    return eval(nearest_code(tape.constant(z), tape.constant(codes), metric), backend(on));
  }
  static Tensor by(NearestKernel kernel, const Tensor& z, const Tensor& codes, Metric metric) {
    cuda::force_nearest_kernel(kernel);
    return nearest(z, codes, metric);
  }

  // Both kernels give the same indices, which are returned.
  static Tensor expect_same(const Tensor& z, const Tensor& codes, Metric metric) {
    const Tensor exact = by(NearestKernel::exact, z, codes, metric);
    const Tensor screened = by(NearestKernel::screened, z, codes, metric);
    EXPECT_TRUE(same_bits(screened, exact));
    return exact;
  }
};

constexpr Metric kMetrics[] = {Metric::euclidean, Metric::cosine};

class Numbers {
 public:
  explicit Numbers(unsigned seed) : generator_(seed) {}
  Index whole(Index low, Index high) { return std::uniform_int_distribution<Index>(low, high)(generator_); }
  double normal() { return normal_(generator_); }
  Tensor matrix(Index rows, Index columns, const std::function<double(Index, Index)>& at) {
    Tensor t({DType::f32, {rows, columns}});
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < columns; ++j) t.set(i * columns + j, at(i, j));
    return t;
  }
  Tensor normals(Index rows, Index columns, double scale = 1) {
    return matrix(rows, columns, [&](Index, Index) { return scale * normal(); });
  }

 private:
  std::mt19937 generator_;
  std::normal_distribution<double> normal_;
};

// The reference's distance of the code that was chosen is the least there is, to the rounding of f32.
void expect_nearest(const Tensor& z, const Tensor& codes, Metric metric, const Tensor& got) {
  const Index d = z.shape()[1];
  for (Index row = 0; row < z.shape()[0]; ++row) {
    const auto cost = [&](Index code) {
      double product = 0, squares = 0;
      for (Index j = 0; j < d; ++j) {
        product += z.at(row * d + j) * codes.at(code * d + j);
        squares += codes.at(code * d + j) * codes.at(code * d + j);
      }
      return metric == Metric::euclidean ? squares / 2 - product : squares == 0 ? 0 : -product / std::sqrt(squares);
    };
    double least = cost(0), size = std::fabs(least);
    for (Index code = 1; code < codes.shape()[0]; ++code) {
      least = std::min(least, cost(code));
      size = std::max(size, std::fabs(cost(code)));
    }
    ASSERT_LE(cost(static_cast<Index>(got.at(row))), least + 1e-5 * size) << "row " << row;
  }
}

TEST_F(CudaNearest, ShapesThatFillNoTile) {
  Numbers numbers(1);
  const Index shapes[][3] = {{1, 1, 1},    {1, 300, 17},  {129, 65, 16}, {128, 64, 32}, {3, 2, 1000},
                             {200, 63, 5}, {257, 130, 0}, {31, 515, 33}, {64, 16, 20}};
  for (const auto& [n, k, d] : shapes)
    for (const Metric metric : kMetrics) {
      SCOPED_TRACE(testing::Message() << n << " rows, " << k << " codes, " << d << " deep");
      const Tensor z = numbers.normals(n, d), codes = numbers.normals(k, d);
      expect_nearest(z, codes, metric, expect_same(z, codes, metric));
    }
}

TEST_F(CudaNearest, RandomShapesAndMagnitudes) {
  Numbers numbers(2);
  for (int round = 0; round < 12; ++round) {
    const Index n = numbers.whole(1, 150), k = numbers.whole(1, 400), d = numbers.whole(1, 70);
    const double rows = std::pow(10.0, static_cast<double>(numbers.whole(-20, 20))),
                 books = std::pow(10.0, static_cast<double>(numbers.whole(-20, 20)));
    SCOPED_TRACE(testing::Message() << n << " rows of " << rows << ", " << k << " codes of " << books << ", " << d);
    const Tensor z = numbers.normals(n, d, rows), codes = numbers.normals(k, d, books);
    for (const Metric metric : kMetrics) expect_same(z, codes, metric);
  }
}

// Where sums overflow before they cancel, and where tf32 has fewer bits than elsewhere.
TEST_F(CudaNearest, AtTheEndsOfF32) {
  Numbers numbers(8);
  const double scales[][2] = {{1.5e19, 1.5e19}, {6e18, 3e19}, {2e17, 2e20}, {1e-40, 1},
                              {3e-39, 1e-1},    {2e-41, 1e3}, {1, 1e-40}};
  for (const auto& [rows, books] : scales) {
    SCOPED_TRACE(testing::Message() << "rows of " << rows << ", codes of " << books);
    const Tensor z = numbers.normals(140, 40, rows), codes = numbers.normals(130, 40, books);
    for (const Metric metric : kMetrics) expect_same(z, codes, metric);
  }
}

// Rows of their own magnitude, codes of theirs: no row's margin may come from another's.
TEST_F(CudaNearest, EveryMagnitudeInOneCodebook) {
  Numbers numbers(3);
  const auto scaled = [&](Index rows, Index d) {
    std::vector<double> scale(static_cast<std::size_t>(rows));
    for (double& s : scale) s = std::pow(10.0, static_cast<double>(numbers.whole(-21, 21)));
    return numbers.matrix(rows, d,
                          [&](Index i, Index) { return scale[static_cast<std::size_t>(i)] * numbers.normal(); });
  };
  const Tensor z = scaled(150, 24), codes = scaled(200, 24);
  for (const Metric metric : kMetrics) expect_same(z, codes, metric);
}

// Codes that differ in the last bits of f32, far below tf32: all of them are candidates.
TEST_F(CudaNearest, NearTiesAreDecidedByF32) {
  Numbers numbers(4);
  for (const Index groups : {Index{1}, Index{4}, Index{60}}) {  // more equals than a row's list holds, and fewer
    constexpr Index d = 32, k = 480;
    const Tensor centres = numbers.normals(groups, d), z = numbers.normals(140, d);
    const Tensor codes = numbers.matrix(k, d, [&](Index i, Index j) {
      return centres.at(i % groups * d + j) * (1 + static_cast<double>(numbers.whole(-3, 3)) * 0x1p-23);
    });
    for (const Metric metric : kMetrics) expect_nearest(z, codes, metric, expect_same(z, codes, metric));
  }
}

TEST_F(CudaNearest, OfEqualCodesTheFirst) {
  Numbers numbers(5);
  constexpr Index d = 16, distinct = 7;
  const Tensor some = numbers.matrix(distinct, d, [&](Index, Index) { return double(numbers.whole(-8, 8)); });
  const Tensor z = numbers.matrix(150, d, [&](Index, Index) { return double(numbers.whole(-8, 8)); });
  for (const Index k : {Index{21}, Index{700}}) {
    const Tensor codes = numbers.matrix(k, d, [&](Index i, Index j) { return some.at(i % distinct * d + j); });
    const Tensor got = expect_same(z, codes, Metric::euclidean);
    EXPECT_TRUE(same_bits(got, nearest(z, codes, Metric::euclidean, "reference"))) << k;  // all costs are exact
    for (Index i = 0; i < got.elements(); ++i) ASSERT_LT(got.at(i), distinct);
  }
}

TEST_F(CudaNearest, NumbersWinOverNanAndRowsWithoutNumbersGetTheFirst) {
  Numbers numbers(6);
  constexpr Index n = 140, k = 90, d = 17;
  Tensor z = numbers.normals(n, d), codes = numbers.normals(k, d);
  for (const Index row : {3, 64, 139}) z.set(row * d + row % d, kNan);
  for (const Index code : {0, 1, 40, 89}) codes.set(code * d + 2, kNan);
  z.set(10 * d, kInf), z.set(11 * d + 3, -kInf);
  codes.set(50 * d + 1, kInf);
  for (const Metric metric : kMetrics) {
    const Tensor got = expect_same(z, codes, metric);
    for (const Index row : {3, 64, 139}) EXPECT_EQ(got.at(row), 0) << row;
    for (Index row = 0; row < n; ++row)
      if (row != 3 && row != 64 && row != 139) {
        const double code = got.at(row);
        EXPECT_TRUE(code != 0 && code != 1 && code != 40 && code != 89) << row;
      }
  }
  const Tensor none = Tensor::full({DType::f32, {k, d}}, kNan);
  for (const Metric metric : kMetrics) {
    const Tensor got = expect_same(z, none, metric);
    for (Index row = 0; row < n; ++row) ASSERT_EQ(got.at(row), 0);
  }
}

// Its cost is 0: better than every code that points away, worse than one that does not.
TEST_F(CudaNearest, ACodeOfZerosIsOrthogonalToAll) {
  Tensor z({DType::f32, {3, 16}}), codes({DType::f32, {4, 16}});
  z.set(0, 2), z.set(16, -2), z.set(32, kNan);
  codes.set(0, 3), codes.set(2 * 16, 5), codes.set(2 * 16 + 1, 5), codes.set(3 * 16, -1e-3);
  expect_values(expect_same(z, codes, Metric::cosine), {0, 3, 1});
  codes.set(3 * 16, 1);
  expect_values(expect_same(z, codes, Metric::cosine), {0, 1, 1});
  EXPECT_TRUE(same_bits(nearest(z, codes, Metric::cosine), nearest(z, codes, Metric::cosine, "reference")));
}

TEST_F(CudaNearest, OtherTypes) {
  Numbers numbers(7);
  const Tensor z = numbers.normals(150, 40), codes = numbers.normals(170, 40);
  for (const Metric metric : kMetrics) {
    const Tensor wide = nearest(z.cast(DType::f64), codes.cast(DType::f64), metric);
    EXPECT_TRUE(same_bits(wide, nearest(z, codes, metric, "reference")));
    const Tensor zb = z.cast(DType::bf16), cb = codes.cast(DType::bf16);
    expect_nearest(zb, cb, metric, expect_same(zb, cb, metric));
  }
}

TEST_F(CudaNearest, LargeSearchesAreScreenedAndSayWhatRuns) {
  EXPECT_EQ(cuda::nearest_kernel(65536, 8192, 64), NearestKernel::screened);
  EXPECT_EQ(cuda::nearest_kernel(65536, 8192, 8), NearestKernel::exact);
  EXPECT_EQ(cuda::nearest_kernel(16, 64, 64), NearestKernel::exact);
  for (const Index d : {Index{64}, Index{8}}) {
    Tape tape;
    const Value z = tape.input("z", {DType::f32, {2048, d}}), codes = tape.input("codes", {DType::f32, {512, d}});
    const Program program = compile(tape, {nearest_code(z, codes)}, cuda_backend());
    EXPECT_EQ(program.explain().find("screen_codes") != std::string::npos, d == 64) << program.explain();
    SG_EXPECT_CONTAINS(program.explain(), "nearest_f32, ");
  }
}

}  // namespace
}  // namespace sg::test
