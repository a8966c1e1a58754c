// Row programs of random tapes: generated code and the interpreter kernel agree with the reference backend, with each
// other bit for bit where no sum is involved, and make no race and no read of memory that nobody wrote.
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/cuda/row_support.h"

namespace sg::test {
namespace {

class CudaRows : public RowTest {};

// A random tape over one space, with what may be fetched. Values stay bounded. What has been rounded differs from the
// reference, which computes in double: nothing discontinuous is applied to it.
class RandomTape {
 public:
  RandomTape(std::uint32_t seed, DType dtype) : rng_(seed) {
    a_ = 1 + pick(4), b_ = 1 + pick(30), c_ = 1 + pick(seed % 7 == 0 ? 1500 : 70);
    if (seed % 3 == 0) c_ = (c_ + 3) / 4 * 4;
    for (const Shape& s : {Shape{a_, b_, c_}, Shape{a_ * b_, c_}, Shape{a_, b_, 1}, Shape{c_}, Shape{},
                           Shape{a_, b_, c_}, Shape{a_, 1, c_}}) {
      const TensorType type{dtype, s};
      add(tape.input("x" + std::to_string(feeds.size()), type), true);
      feeds.emplace_back(values_.back().value, random_tensor(rng_, type));
    }
    const int ops = 4 + pick(30);
    for (int i = 0; i < ops; ++i) grow();
    for (const auto& v : values_)
      if (!tape.instrs()[static_cast<std::size_t>(tape.producer(v.value.id))].inputs.empty() && pick(3) == 0)
        fetches.push_back(v.value);
    if (fetches.empty()) fetches.push_back(values_.back().value);
  }

  Tape tape;
  std::vector<Value> fetches;
  Feeds feeds;

 private:
  struct Entry {
    Value value;
    bool exact;
  };

  int pick(std::int64_t n) { return static_cast<int>(rng_() % static_cast<std::uint32_t>(n)); }
  void add(Value v, bool exact) { values_.push_back({v, exact}); }
  const Entry& any() { return values_[static_cast<std::size_t>(pick(static_cast<std::int64_t>(values_.size())))]; }
  static bool fits(const Shape& a, const Shape& b) {
    try {
      broadcast_shapes(a, b);
      return true;
    } catch (const Error&) {
      return false;
    }
  }

  void grow() {
    const Entry x = any();
    const Shape s = x.value.shape();
    const int rank = s.rank();
    switch (pick(17)) {
      case 0:
        add(tanh(x.value), false);
        return;
      case 1:
        add(sqrt(abs(x.value) + 0.5), false);
        return;
      case 2:
        add(relu(x.value), x.exact);
        return;
      case 3:
        add(clamp(square(x.value), 0.0, 2.0), false);
        return;
      case 4:
        add(sigmoid(x.value) * exp(-abs(x.value)), false);
        return;
      case 5:
      case 6:
      case 7:
      case 8:
        binary(x, any());
        return;
      case 9:
        if (rank >= 1) add(mean(x.value, {-1}, pick(2) == 0), false);
        return;
      case 10:
        if (rank >= 1) add(pick(2) == 0 ? max(x.value, {-1}, pick(2) == 0) : min(x.value, {-1}, true), x.exact);
        return;
      case 11:
        if (rank >= 2) {
          Axes leading;
          for (int i = 0; i + 1 < rank; ++i) leading.push_back(i);
          add(mean(x.value, leading), false);
        }
        return;
      case 12:
        add(mean(x.value), false);
        return;
      case 13:
        if (s == Shape{a_, b_, c_})
          add(reshape(x.value, Shape{a_ * b_, c_}), x.exact);
        else if (s == Shape{a_ * b_, c_})
          add(reshape(x.value, Shape{a_, b_, c_}), x.exact);
        else if (s == Shape{a_, b_})
          add(reshape(x.value, Shape{a_, b_, 1}), x.exact);
        return;
      case 14:
        if (fits(s, Shape{a_, b_, c_}) && broadcast_shapes(s, Shape{a_, b_, c_}) == Shape{a_, b_, c_})
          add(broadcast(x.value, Shape{a_, b_, c_}), x.exact);
        return;
      case 15:
        if (rank == 3) add(mean(x.value, {1}, pick(2) == 0), false);
        return;
      default:
        if (rank == 3) add(transpose(transpose(x.value, {0, 2, 1}), {0, 2, 1}), x.exact);
        return;
    }
  }

  void binary(const Entry& x, const Entry& y) {
    if (!fits(x.value.shape(), y.value.shape())) return;
    const bool exact = x.exact && y.exact;
    switch (pick(7)) {
      case 0:
        add(tanh(x.value + y.value), false);
        return;
      case 1:
        add(x.value - 0.5 * y.value, false);
        return;
      case 2:
        add(tanh(x.value * y.value), false);
        return;
      case 3:
        add(x.value / (1.0 + abs(y.value)), false);
        return;
      case 4:
        add(minimum(x.value, y.value), exact);
        return;
      case 5:
        if (exact) add(cast(less(x.value, y.value), x.value.dtype()), true);
        return;
      default:
        if (exact) add(where(greater(x.value, y.value), x.value, y.value), true);
        return;
    }
  }

  std::mt19937 rng_;
  std::int64_t a_, b_, c_;
  std::vector<Entry> values_;
};

DType type_of_seed(std::uint32_t seed) { return seed % 4 == 0 ? DType::f64 : DType::f32; }

// Returns how many regions were run.
std::size_t compare(Executor e, std::uint32_t first, std::uint32_t last) {
  std::size_t regions = 0;
  for (std::uint32_t seed = first; seed < last; ++seed) {
    const DType dtype = type_of_seed(seed);
    RandomTape t(seed, dtype);
    CompileOptions plain;
    plain.fuse = false;
    const auto want = run_on(reference_backend(), t.tape, t.fetches, t.feeds, plain);
    const auto got = run_on(row_backend(e), t.tape, t.fetches, t.feeds, {}, &regions);
    for (std::size_t k = 0; k < want.size(); ++k)
      if (!(worst_difference(want[k], got[k]) <= (dtype == DType::f32 ? 2e-5 : 1e-12))) {
        ADD_FAILURE() << name_of(e) << ", seed " << seed << ", fetch " << k << ": off by "
                      << worst_difference(want[k], got[k]) << "\n"
                      << t.tape.to_string();
        return regions;
      }
  }
  return regions;
}

TEST_F(CudaRows, RandomTapesAsGeneratedCode) {
  if (!missing_nvrtc().empty()) GTEST_SKIP() << missing_nvrtc();
  EXPECT_GT(compare(Executor::generated, 1, 121), 150u);  // the comparison is of something
}

TEST_F(CudaRows, RandomTapesInterpreted) { EXPECT_GT(compare(Executor::interpreted, 1, 1001), 1500u); }

TEST_F(CudaRows, RandomTapesMakeNoRaceAndReadNothingUnwritten) {
  if (!row_tables(Executor::generated).emulated) GTEST_SKIP() << "the emulated driver's checks";
  for (const Executor e : executors()) {
    row_backend(e);
    for (std::uint32_t order = 1; order <= 4; ++order) {
      const cuda::EmulatorScope scope({.seed = order, .check_races = true, .check_initialised = true});
      // The same tapes in every order: generated text is compiled once.
      compare(e, 2001, e == Executor::generated ? 2021 : 2041);
    }
  }
}

// No sums and no functions: one IEEE operation after the other gives the same bits wherever it runs.
TEST_F(CudaRows, ExecutorsGiveTheSameBits) {
  if (!missing_nvrtc().empty()) GTEST_SKIP() << missing_nvrtc();
  std::mt19937 rng(7);
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    Tape t;
    const Value x = t.input("x", {dtype, {19, 23}}), y = t.input("y", {dtype, {23}}),
                z = t.input("z", {dtype, {19, 1}});
    const Value p = x * y + z, q = p / (2.0 + square(y)) - sqrt(abs(p * 0.3));
    const std::vector<Value> fetches{q, where(greater(p, q), p, q * x), rsqrt(1.0 + abs(q)), clamp(q - p, -0.5, 0.7)};
    const Feeds feeds{
        {x, random_tensor(rng, x.type())}, {y, random_tensor(rng, y.type())}, {z, random_tensor(rng, z.type())}};
    CompileOptions plain;
    plain.fuse = false;
    const auto fused = run_on(row_backend(Executor::generated), t, fetches, feeds);
    const auto unfused = run_on(row_backend(Executor::generated), t, fetches, feeds, plain);
    const auto interpreted = run_on(row_backend(Executor::interpreted), t, fetches, feeds);
    for (std::size_t k = 0; k < fetches.size(); ++k) {
      EXPECT_EQ(std::memcmp(fused[k].data(), unfused[k].data(), fused[k].bytes()), 0) << to_string(dtype) << " " << k;
      EXPECT_EQ(std::memcmp(fused[k].data(), interpreted[k].data(), fused[k].bytes()), 0) << to_string(dtype) << k;
    }
  }
}

}  // namespace
}  // namespace sg::test
