// Memory of compiled programs: the arena against its bounds, reuse, garbage between replays, guards, no allocation.
#include <cstdlib>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "core/memory_plan.h"
#include "core/program.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/conformance/cases.h"
#include "tests/support/alloc_counter.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

class Memory : public testing::TestWithParam<std::string> {
 protected:
  Backend& on() const { return backend(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(, Memory, testing::Values("reference", "cpu"), [](const auto& info) { return info.param; });

Tensor drawn(Shape shape, double scale, std::uint64_t seed) {
  Rng rng(seed);
  return normal_reals(shape, scale)(rng);
}

// A training step in small: convolutions, a quantizer, its losses, momentum, random numbers.
struct Step {
  Variable kernel{"kernel", drawn({4, 4, 1, 8}, 0.3, 1)}, back{"back", drawn({4, 4, 1, 8}, 0.3, 2)},
      codes{"codes", drawn({16, 8}, 0.5, 3)}, momentum{"momentum", Tensor({DType::f32, {16, 8}})},
      random{"random", Tensor::of<std::int32_t>({2}, {7, 0})};
  Tape tape;
  Value images, loss, picks;

  Step() {
    images = tape.input("images", {DType::f32, {4, 12, 12, 1}});
    const Value noise = 0.01 * normal(tape.read(random), images.shape());
    const Value h = relu(conv2d(images + noise, tape.read(kernel), ConvOptions::square(2, 1)));
    const Value z = reshape(h, Shape{4 * 36, 8});
    picks = nearest_code(z, tape.read(codes));
    const Value q = gather_rows(tape.read(codes), picks);
    const Value image =
        conv2d_transpose(reshape(rotation_trick(z, q), Shape{4, 6, 6, 8}), tape.read(back), ConvOptions::square(2, 1));
    loss =
        mean(square(image - images)) + mean(square(q - stop_gradient(z))) + 0.25 * mean(square(z - stop_gradient(q)));
    const auto g = gradients(loss, {tape.read(kernel), tape.read(back), tape.read(codes)});
    tape.assign(kernel, tape.read(kernel) - 0.05 * g[0]);
    tape.assign(back, tape.read(back) - 0.05 * g[1]);
    const Value m = 0.9 * tape.read(momentum) + g[2];
    tape.assign(momentum, m);
    tape.assign(codes, tape.read(codes) - 0.05 * m);
    advance_random_state(tape, random);
  }
  Program compiled(Backend& on, CompileOptions options = {}) {
    Program p = compile(tape, {loss, picks}, on, options);
    p.feed(images, drawn({4, 12, 12, 1}, 1, 4));
    return p;
  }
};

TEST_P(Memory, ArenaIsBetweenItsBounds) {
  for (const bool fuse : {true, false}) {
    Step step;
    CompileOptions options;
    options.fuse = fuse;
    const ProgramStats stats = step.compiled(on(), options).stats();
    EXPECT_GE(stats.arena_bytes, stats.lower_bound_bytes);
    EXPECT_LE(static_cast<double>(stats.arena_bytes), 1.25 * static_cast<double>(stats.lower_bound_bytes));
    EXPECT_LT(stats.arena_bytes, fuse ? stats.sum_bytes : stats.sum_bytes / 2);
  }
}

TEST_P(Memory, OfAChainIsThatOfTwoLinks) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {1024}});
  Value y = x;
  for (int i = 0; i < 50; ++i) y = sum(reshape(y, Shape{1024, 1}) * 0.5, {1});
  CompileOptions options;
  options.fuse = false;
  const ProgramStats stats = compile(tape, {y}, on(), options).stats();
  EXPECT_LE(stats.arena_bytes, stats.sum_bytes / 20);
}

TEST_P(Memory, ElementwiseOpsRunInPlace) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {4096}});
  Value y = x;
  for (int i = 0; i < 20; ++i) y = tanh(y);
  CompileOptions options;
  options.fuse = false;
  const ProgramStats stats = compile(tape, {y}, on(), options).stats();
  EXPECT_LE(stats.arena_bytes, 2 * 4096 * size_of(on().storage(DType::f32)) + 256);
}

TEST_P(Memory, PlannedEqualsUnplannedBitForBit) {
  Step planned, unplanned;
  CompileOptions options;
  options.plan_memory = false;
  Program a = planned.compiled(on()), b = unplanned.compiled(on(), options);
  for (int i = 0; i < 5; ++i) {
    a.run();
    b.run();
    ASSERT_EQ(a.fetch_scalar(planned.loss), b.fetch_scalar(unplanned.loss)) << "step " << i;
  }
  EXPECT_TRUE(same_bits(planned.codes.value(), unplanned.codes.value()));
  EXPECT_TRUE(same_bits(planned.kernel.value(), unplanned.kernel.value()));
  EXPECT_GT(b.stats().arena_bytes, a.stats().arena_bytes);
}

TEST_P(Memory, GarbageBetweenReplaysChangesNothing) {
  Step clean, dirty;
  Program a = clean.compiled(on()), b = dirty.compiled(on());
  for (int i = 0; i < 5; ++i) {
    b.fill_arena(std::byte{0xFF});  // NaN, as reals
    a.run();
    b.run();
    ASSERT_EQ(a.fetch_scalar(clean.loss), b.fetch_scalar(dirty.loss)) << "step " << i;
  }
  EXPECT_TRUE(same_bits(clean.codes.value(), dirty.codes.value()));
}

TEST_P(Memory, TrainingMovesTheLoss) {
  Step step;
  Program p = step.compiled(on());
  p.run();
  const double first = p.fetch_scalar(step.loss);
  for (int i = 0; i < 30; ++i) p.run();
  EXPECT_LT(p.fetch_scalar(step.loss), first);
  EXPECT_EQ(step.random.value().at(1), 31);
}

TEST_P(Memory, GuardsStayWhole) {
  Step step;
  CompileOptions options;
  options.guard = true;
  Program p = step.compiled(on(), options);
  p.run();
  p.run();
}

TEST_P(Memory, NothingIsAllocatedAfterTheFirstRun) {
  if (!AllocCounter::available()) GTEST_SKIP() << "sanitizers replace malloc";
  Step step;
  Program p = step.compiled(on());
  const Tensor batch = drawn({4, 12, 12, 1}, 1, 8);
  Tensor picks(step.picks.type());
  p.run();
  AllocCounter counter;
  for (int i = 0; i < 3; ++i) {
    p.feed(step.images, batch);
    p.run();
    p.fetch_scalar(step.loss);
    p.fetch_into(step.picks, picks);
  }
  EXPECT_EQ(counter.framework(), 0);
}

TEST(AllocationCounter, CountsNewAndMalloc) {
  if (!AllocCounter::available()) GTEST_SKIP() << "sanitizers replace malloc";
  AllocCounter counter;
  void* volatile made = ::operator new(4);  // volatile: a pair of new and delete may be optimised away
  EXPECT_EQ(counter.framework(), 1);
  ::operator delete(made);
  made = std::malloc(10);
  EXPECT_EQ(counter.framework(), 2);
  std::free(made);
  Tensor tensor({DType::f32, {100}});
  EXPECT_GT(counter.framework(), 2);
}

// A backend that writes one byte behind its output, to see that guards notice.
class Overrunning : public Backend {
 public:
  std::string_view name() const override { return "overrunning"; }
  std::string describe() const override { return ""; }
  bool supports(const Tape&, const Instr&) const override { return true; }
  std::unique_ptr<sg::Step> lower(LowerCtx& ctx) override {
    auto* out = ctx.out<std::byte>();
    const std::size_t bytes = ctx.out_type().bytes();
    return std::make_unique<FunctionStep>([=, this] {
      out[before ? static_cast<std::ptrdiff_t>(-1) : static_cast<std::ptrdiff_t>(bytes)] = std::byte{0};
    });
  }
  bool in_place(const Tape&, const Instr&, int, int) const override { return false; }
  void* allocate(std::size_t bytes) override { return reference_backend().allocate(bytes); }
  void release(void* p) override { reference_backend().release(p); }
  void upload(void*, const std::byte*, TensorType) override {}
  void download(std::byte* dst, const void* src, TensorType type) override {
    reference_backend().download(dst, src, type);
  }
  bool before = false;
};

TEST(Guards, NoticeAWriteBesideABuffer) {
  for (const bool before : {false, true}) {
    Overrunning backend;
    backend.before = before;
    Tape tape;
    const Value y = exp(tape.input("x", {DType::f32, {5}}));
    CompileOptions options;
    options.guard = true;
    Program p = compile(tape, {y}, backend, options);
    p.feed("x", Tensor({DType::f32, {5}}));
    SG_EXPECT_ERROR(internal, before ? "before the buffer" : "behind the buffer", p.run());
  }
}

// No two values that live at once overlap, whatever the lives.
TEST(MemoryPlan, KeepsLivesApartOnRandomInputs) {
  Rng rng(3);
  for (const std::size_t n : {1u, 7u, 60u, 300u, 7000u}) {
    std::vector<Lifetime> lives;
    for (std::size_t i = 0; i < n; ++i) {
      const auto first = static_cast<std::int32_t>(i);
      lives.push_back({rng() % 5000, first, first + static_cast<std::int32_t>(rng() % 20)});
    }
    const MemoryPlan plan = plan_memory(lives);
    EXPECT_GE(plan.total, plan.lower_bound);
    EXPECT_LE(plan.total, plan.sum);
    for (std::size_t i = 0; i < n; ++i) {
      EXPECT_EQ(plan.offsets[i] % kAlignment, 0u);
      for (std::size_t j = i + 1; j < std::min(n, i + 21); ++j) {
        if (lives[j].first > lives[i].last) continue;
        const bool apart =
            plan.offsets[i] + lives[i].bytes <= plan.offsets[j] || plan.offsets[j] + lives[j].bytes <= plan.offsets[i];
        ASSERT_TRUE(apart) << i << " and " << j << " of " << n;
      }
    }
  }
}

}  // namespace
}  // namespace sg::test
