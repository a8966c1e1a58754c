// Row programs: fused and unfused tapes agree, on thousands of random tapes by seed, on each executor and for any
// number of threads.
#include "core/row_program.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "backends/backends.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/row_jit.h"
#include "core/autodiff.h"
#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/op_ids.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/core/row_support.h"

namespace sg {
namespace {

using namespace test;

// The cpu backend with row programs that look rows up wherever they can, not only where it pays.
class LooksUpAll final : public Backend {
 public:
  std::string_view name() const override { return "cpu"; }
  std::string describe() const override { return cpu_.describe(); }
  bool supports(const Tape& tape, const Instr& instr) const override { return cpu_.supports(tape, instr); }
  std::unique_ptr<Step> lower(LowerCtx& ctx) override { return cpu_.lower(ctx); }
  bool in_place(const Tape& tape, const Instr& instr, int i, int output) const override {
    return cpu_.in_place(tape, instr, i, output);
  }
  bool row_op(const Tape& tape, const Instr& instr) const override { return has_row_kernel(tape, instr); }
  Rewritten fuse(const Tape& tape, std::span<const std::int32_t> keep) const override { return cpu_.fuse(tape, keep); }
  void* allocate(std::size_t bytes) override { return cpu_.allocate(bytes); }
  void release(void* p) override { cpu_.release(p); }
  void upload(void* dst, const std::byte* src, TensorType type) override { cpu_.upload(dst, src, type); }
  void download(std::byte* dst, const void* src, TensorType type) override { cpu_.download(dst, src, type); }

 private:
  Backend& cpu_ = backend("cpu");
};
Backend& looks_up_all() {
  static LooksUpAll backend;
  return backend;
}

// A random tape over one space, with what may be fetched. Values stay bounded. Values that depend on a sum over rows
// carry the rounding of its order, so nothing discontinuous is applied to them.
class RandomTape {
 public:
  RandomTape(std::uint32_t seed, DType dtype) : rng_(seed), dtype_(dtype) {
    a_ = 1 + pick(4), b_ = 1 + pick(30), c_ = 1 + pick(seed % 7 == 0 ? 700 : 70);
    // Segments of more rows than a chunk has, and more segments than chunks.
    if (seed % 11 == 0) b_ = 200 + pick(600), c_ = 1 + pick(40);
    if (seed % 13 == 0) a_ = 50 + pick(90), b_ = 1 + pick(7), c_ = 1 + pick(40);
    for (const Shape& s : {Shape{a_, b_, c_}, Shape{a_ * b_, c_}, Shape{a_, b_, 1}, Shape{c_}, Shape{},
                           Shape{a_, b_, c_}, Shape{a_, 1, c_}, Shape{b_, c_}}) {
      const TensorType type{dtype, s};
      add(feed(random_tensor(rng_, type)), true);
    }
    // Tables with rows to look up, one of them in bf16, and the numbers: some of the tables, some of all rows there
    // are.
    const std::int64_t k = 1 + pick(40);
    for (const DType t : {dtype, dtype, dtype == DType::f32 ? DType::bf16 : dtype})
      tables_.push_back(feed(random_tensor(rng_, {t, {k, c_}})));
    for (const Shape& s : {Shape{a_, b_}, Shape{a_ * b_}, Shape{a_, b_}}) numbers_.push_back(feed(below(k, s)));
    numbers_of_rows_ = feed(below(a_ * b_, Shape{a_ * b_}));
    const int ops = 4 + pick(30);
    for (int i = 0; i < ops; ++i) grow();
    for (const auto& v : values_)
      if (tape_.instrs()[static_cast<std::size_t>(tape_.producer(v.value.id))].inputs.size() > 0 && pick(3) == 0)
        fetches_.push_back(v.value);
    if (fetches_.empty()) fetches_.push_back(values_.back().value);
  }

  struct Seen {
    std::size_t regions = 0, cut = 0, looked_up = 0, gathers = 0;
  };
  std::vector<Tensor> run(CompileOptions options, Seen* seen = nullptr) {
    Program p = compile(tape_, fetches_, looks_up_all(), options);
    for (std::size_t i = 0; i < feeds_.size(); ++i) p.feed("x" + std::to_string(i), feeds_[i]);
    p.fill_arena(std::byte{0xFF});
    p.run();
    p.fill_arena(std::byte{0x7F});
    p.run();
    if (seen != nullptr)
      for (const Instr& i : p.compiled_tape().instrs()) {
        seen->gathers += i.op == OpId::gather_rows;
        if (i.op != OpId::row_program) continue;
        const RowProgram& program = p.compiled_tape().row_program(i.attrs.i("program"));
        ++seen->regions;
        seen->cut += program.segments > 1;
        for (const RowProgram::Op& op : program.code) seen->looked_up += op.kind == RowProgram::Kind::gather;
      }
    std::vector<Tensor> out;
    for (const Value& v : fetches_) out.push_back(p.fetch(v));
    return out;
  }
  std::string text() const { return tape_.to_string(); }

 private:
  struct Entry {
    Value value;
    bool exact;
  };

  int pick(std::int64_t n) { return static_cast<int>(rng_() % static_cast<std::uint32_t>(n)); }
  void add(Value v, bool exact) { values_.push_back({v, exact}); }
  Value feed(Tensor data) {
    feeds_.push_back(std::move(data));
    return tape_.input("x" + std::to_string(feeds_.size() - 1), feeds_.back().type());
  }
  // Numbers of which the first and the last there is are some.
  Tensor below(std::int64_t n, const Shape& shape) {
    Tensor t({DType::i32, shape});
    for (std::int64_t i = 0; i < t.elements(); ++i)
      t.set(i, pick(3) == 0 ? pick(2) * static_cast<double>(n - 1) : pick(n));
    return t;
  }
  const Entry& any() { return values_[static_cast<std::size_t>(pick(static_cast<std::int64_t>(values_.size())))]; }

  void grow() {
    const Entry x = any();
    const int rank = x.value.shape().rank();
    switch (pick(20)) {
      case 0:
        add(tanh(x.value), x.exact);
        return;
      case 1:
        add(sqrt(abs(x.value) + 0.5), x.exact);
        return;
      case 2:
        add(relu(x.value), x.exact);
        return;
      case 3:
        add(clamp(square(x.value), 0.0, 2.0), x.exact);
        return;
      case 4:
      case 5:
      case 6:
      case 7: {
        const Entry y = any();
        try {
          broadcast_shapes(x.value.shape(), y.value.shape());
        } catch (const Error&) {
          return;
        }
        const bool exact = x.exact && y.exact;
        switch (pick(6)) {
          case 0:
            add(tanh(x.value + y.value), exact);
            return;
          case 1:
            add(x.value - 0.5 * y.value, exact);
            return;
          case 2:
            add(tanh(x.value * y.value), exact);
            return;
          case 3:
            add(x.value / (1.0 + abs(y.value)), exact);
            return;
          case 4:
            add(minimum(x.value, y.value), exact);
            return;
          default:
            if (exact) add(where(greater(x.value, y.value), x.value, y.value), true);
            return;
        }
      }
      case 8:
        if (rank >= 1) add(mean(x.value, {-1}, pick(2) == 0), false);
        return;
      case 9:
        if (rank >= 1) add(max(x.value, {-1}, pick(2) == 0), x.exact);
        return;
      case 10:
        if (rank >= 2) {
          Axes leading;
          for (int i = 0; i + 1 < rank; ++i) leading.push_back(i);
          add(mean(x.value, leading), false);
        }
        return;
      case 11:
        add(mean(x.value), false);
        return;
      case 12:
        if (x.value.shape() == Shape{a_, b_, c_})
          add(reshape(x.value, Shape{a_ * b_, c_}), x.exact);
        else if (x.value.shape() == Shape{a_ * b_, c_})
          add(reshape(x.value, Shape{a_, b_, c_}), x.exact);
        else if (x.value.shape() == Shape{a_, b_})
          add(reshape(x.value, Shape{a_, b_, 1}), x.exact);
        return;
      case 13:
        try {
          broadcast_shapes(x.value.shape(), Shape{a_, b_, c_});
          add(broadcast(x.value, Shape{a_, b_, c_}), x.exact);
        } catch (const Error&) {
        }
        return;
      case 14:
        if (rank == 3) add(mean(x.value, {1}, pick(2) == 0), false);
        return;
      case 15:
        if (x.value.shape() == Shape{a_, c_}) add(reshape(x.value, Shape{a_, 1, c_}), x.exact);
        if (x.value.shape() == Shape{a_, 1, c_}) add(tanh(x.value * 0.5), x.exact);
        return;
      case 16:
      case 17: {
        const Value table = tables_[static_cast<std::size_t>(pick(3))];
        const Value rows = gather_rows(table, numbers_[static_cast<std::size_t>(pick(3))]);
        add(table.dtype() == dtype_ ? rows : cast(rows, dtype_), true);
        return;
      }
      case 18:
        if (x.value.shape() == Shape{a_ * b_, c_}) add(gather_rows(x.value, numbers_of_rows_), x.exact);
        return;
      default:
        if (rank == 3)
          add(transpose(transpose(x.value, {0, 2, 1}), {0, 2, 1}), x.exact);  // leaves the space and comes back
        return;
    }
  }

  std::mt19937 rng_;
  DType dtype_;
  std::int64_t a_, b_, c_;
  Tape tape_;
  std::vector<Entry> values_;
  std::vector<Value> fetches_;
  std::vector<Tensor> feeds_;
  std::vector<Value> tables_, numbers_;
  Value numbers_of_rows_;
};

TEST(RowPrograms, RandomTapesAgreeWithUnfused) {
  on_each_executor([](const std::string& executor) {
    RandomTape::Seen seen;
    for (std::uint32_t seed = 1; seed <= 1500; ++seed) {
      const DType dtype = seed % 4 == 0 ? DType::f64 : DType::f32;
      RandomTape tape(seed, dtype);
      CompileOptions plain;
      plain.fuse = false;
      const auto fused = tape.run({}, &seen), unfused = tape.run(plain);
      for (std::size_t k = 0; k < fused.size(); ++k)
        ASSERT_LE(worst_difference(unfused[k], fused[k]), dtype == DType::f32 ? 2e-5 : 1e-12)
            << executor << ", seed " << seed << ", fetch " << k << "\n"
            << tape.text();
    }
    EXPECT_GT(seen.regions, 1500u) << executor;  // the comparison is of something
    EXPECT_GT(seen.cut, 150u) << executor;
    EXPECT_GT(seen.looked_up, 400u) << executor;
    EXPECT_GT(seen.gathers, 500u) << executor;
  });
}

// x comes in per row and, reshaped, per column: its result of one number per row is not to be written over it.
TEST(RowPrograms, WhatIsReadAcrossRowsUnderAnotherNameIsNotWrittenOver) {
  constexpr std::int64_t n = 300;
  Tape t;
  const Value a = t.input("a", {DType::f32, {n, 4}}), b = t.input("b", {DType::f32, {4, 1}});
  const Value x = matmul(a, b), y = sum(square(x - reshape(x, Shape{1, n})), {-1}, true);
  std::mt19937 rng(11);
  const Tensor rows = random_tensor(rng, a.type()), column = random_tensor(rng, b.type());
  const auto run = [&](const std::string& name) {
    Program p = compile(t, {y}, backend(name));
    p.feed(a, rows), p.feed(b, column);
    p.run();
    return p.fetch(y);
  };
  const Tensor want = run("reference");
  on_each_executor(
      [&](const std::string& executor) { EXPECT_LE(worst_difference(want, run("cpu")), 1e-4) << executor; });
}

TEST(RowPrograms, ExplainSaysFormulaAndBytes) {
  Tape t;
  const Value x = t.input("x", {DType::f32, {8, 4}}), b = t.input("b", {DType::f32, {4}});
  const Value y = sum(square(x * 2.0 + b), {-1});
  on_each_executor([&](const std::string& executor) {
    const std::string text = compile(t, {y}, backend("cpu")).explain();
    EXPECT_NE(text.find("reads 148 bytes, writes 32: r3 = mul r0 r1; r4 = add r3 r2; r5 = square r4; r6 = row sum r5"),
              std::string::npos)
        << executor << "\n"
        << text;
  });
}

// A single row has values of its own, too: it is not to be cut into tiles that each make them anew.
TEST(RowPrograms, SumsOfOneRowLongerThanATile) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    Tape t;
    const Value x = t.input("x", {dtype, {1, 20000}});
    std::mt19937 rng(5);
    const Tensor data = random_tensor(rng, x.type());
    const Value p = square(x) + 0.25, along = sum(p, {-1}, true);
    const std::vector<Value> fetches{along, sum(p, {0}), p / along, max(p, {-1})};
    Program fused = compile(t, fetches, backend("cpu")), plain = compile(t, fetches, backend("reference"));
    fused.feed(x, data), plain.feed(x, data);
    fused.run(), plain.run();
    for (const Value v : fetches) EXPECT_LE(worst_difference(plain.fetch(v), fused.fetch(v)), 1e-6);
  }
}

TEST(RowPrograms, ThreadsDoNotChangeABit) {
  const int before = threads();
  for (const bool generated : {true, false}) {
    cpu::set_code_generation(generated);
    for (std::uint32_t k = 1; k <= 60; ++k) {
      const std::uint32_t seed = k * (k % 3 == 0 ? 7 : k % 3 == 1 ? 11 : 13);
      RandomTape tape(seed, DType::f32);
      set_threads(1);
      const auto one = tape.run({});
      for (int n : {2, 3, 8}) {
        set_threads(n);
        const auto many = tape.run({});
        for (std::size_t i = 0; i < one.size(); ++i)
          EXPECT_EQ(std::memcmp(one[i].data(), many[i].data(), one[i].bytes()), 0)
              << "seed " << seed << ", " << n << " threads, generated " << generated;
      }
    }
  }
  cpu::set_code_generation(true);
  set_threads(before);
}

TEST(RowPrograms, RotationTrickIsOneRegionEachWay) {
  Tape t;
  const Value z = t.input("z", {DType::f32, {512, 64}}), q = t.input("q", {DType::f32, {512, 64}});
  const Value g = t.input("g", {DType::f32, {512, 64}});
  const Value zq = rotation_trick(z, q);
  const Value dz = vjp(std::span(&zq, 1), std::span(&g, 1), std::span(&z, 1))[0];
  const Program p = compile(t, {zq, dz}, backend("cpu"));
  const auto [regions, others] = regions_of(p);
  EXPECT_EQ(regions, 1u) << p.compiled_tape().to_string();
  EXPECT_EQ(others, 0u) << p.compiled_tape().to_string();
}

TEST(RowPrograms, SaysItsFormula) {
  Tape t;
  const Value x = t.input("x", {DType::f32, {8, 4}}), b = t.input("b", {DType::f32, {4}});
  const Value y = sum(square(x * 2.0 + b), {-1});
  const Program p = compile(t, {y}, backend("cpu"));
  ASSERT_EQ(p.stats().steps, 1u);
  EXPECT_NE(p.explain().find("8 x 4"), std::string::npos) << p.explain();
  EXPECT_NE(p.explain().find("r3 = mul r0 r1; r4 = add r3 r2; r5 = square r4; r6 = row sum r5"), std::string::npos)
      << p.explain();
}

// Feature-wise scale and shift of a sample's channels: one pass forward, and one backward for all gradients.
TEST(RowPrograms, AValueOfASampleAndChannelIsAnOperandAndASum) {
  Tape t;
  const Value x = t.input("x", {DType::f32, {6, 5, 7, 24}}), scale = t.input("scale", {DType::f32, {6, 1, 1, 24}}),
              shift = t.input("shift", {DType::f32, {6, 1, 1, 24}}), g = t.input("g", x.type());
  const Value y = x * scale + shift;
  const std::vector<Value> wrt{x, scale, shift};
  std::vector<Value> fetches = vjp(std::span(&y, 1), std::span(&g, 1), wrt);
  fetches.push_back(y);
  Program p = compile(t, fetches, backend("cpu")), plain = compile(t, fetches, backend("reference"));
  EXPECT_EQ(regions_of(p), std::make_pair(std::size_t{2}, std::size_t{0})) << p.compiled_tape().to_string();
  EXPECT_NE(p.explain().find("6 segments of 35 x 24"), std::string::npos) << p.explain();
  EXPECT_NE(p.explain().find("segments sum"), std::string::npos) << p.explain();
  std::mt19937 rng(3);
  for (const Value& v : {x, scale, shift, g}) {
    const Tensor data = random_tensor(rng, v.type());
    p.feed(v, data), plain.feed(v, data);
  }
  p.run(), plain.run();
  for (const Value& v : fetches) EXPECT_LE(worst_difference(plain.fetch(v), p.fetch(v)), 1e-5);
}

// A deviation that two passes need is not written by the first for the second, which reads what it is made from.
TEST(RowPrograms, ADifferenceFromANarrowValueIsMadeAgain) {
  Tape t;
  const Value x = t.input("x", {DType::f32, {300, 40}}), c = t.input("c", {DType::f32, {40}});
  const Value d = x - c;
  const Value y = tanh(d / (1.0 + sum(square(d), {0}))) * 0.5;
  Program p = compile(t, {y}, backend("cpu")), plain = compile(t, {y}, backend("reference"));
  const Tape& compiled = p.compiled_tape();
  for (const Instr& i : compiled.instrs()) {
    if (op_def(i.op).role != Role::region || &i == &compiled.instrs().back()) continue;
    for (const std::int32_t v : i.outputs) EXPECT_LE(compiled.type(v).shape.elements(), 40) << compiled.to_string();
  }
  std::mt19937 rng(3);
  for (const Value& v : {x, c}) {
    const Tensor data = random_tensor(rng, v.type());
    p.feed(v, data), plain.feed(v, data);
  }
  p.run(), plain.run();
  EXPECT_LE(worst_difference(plain.fetch(y), p.fetch(y)), 1e-5);
  // Where it is asked for it is written, once.
  Program asked = compile(t, {y, d}, backend("cpu"));
  EXPECT_NE(asked.explain().find("300 x 40"), std::string::npos);
  for (const Value& v : {x, c}) {
    const Tensor data = random_tensor(rng, v.type());
    asked.feed(v, data), plain.feed(v, data);
  }
  asked.run(), plain.run();
  EXPECT_LE(worst_difference(plain.fetch(y), asked.fetch(y)), 1e-5);
}

// Samples of 4 and images of 2 samples do not cut the rows alike: two regions, and the right numbers.
TEST(RowPrograms, OneCutPerRegion) {
  Tape t;
  const Value x = t.input("x", {DType::f32, {3, 4, 5, 8}}), outer = t.input("outer", {DType::f32, {3, 1, 1, 8}}),
              inner = t.input("inner", {DType::f32, {3, 4, 1, 8}});
  const Value y = tanh(x * outer), z = y * inner + x;
  const std::vector<Value> fetches{z, sum(z, {2}), sum(y, {1, 2})};
  Program p = compile(t, fetches, backend("cpu")), plain = compile(t, fetches, backend("reference"));
  for (const Instr& i : p.compiled_tape().instrs())
    if (i.op == OpId::row_program) {
      const std::int64_t segments = p.compiled_tape().row_program(i.attrs.i("program")).segments;
      EXPECT_TRUE(segments == 3 || segments == 12) << p.explain();
    }
  EXPECT_EQ(regions_of(p).second, 0u) << p.explain();
  std::mt19937 rng(3);
  for (const Value& v : {x, outer, inner}) {
    const Tensor data = random_tensor(rng, v.type());
    p.feed(v, data), plain.feed(v, data);
  }
  p.run(), plain.run();
  for (const Value& v : fetches) EXPECT_LE(worst_difference(plain.fetch(v), p.fetch(v)), 1e-5);
}

// What is of a segment is read for all rows of its run: neither an input of that form nor another of its extent is
// written over while the region runs.
TEST(RowPrograms, ASumOverASegmentDoesNotOverwriteAnOperand) {
  Tape t;
  const Value x = t.input("x", {DType::f32, {70, 9, 16}}), s = t.input("s", {DType::f32, {70, 1, 16}});
  const Value a = tanh(s) * 2.0;  // dies in the region below
  const Value y = x * a, sums = sum(y * x, {1}, true), z = sums * 0.5;
  Program p = compile(t, {z, sum(y)}, backend("cpu")), plain = compile(t, {z, sum(y)}, backend("reference"));
  std::mt19937 rng(8);
  for (const Value& v : {x, s}) {
    const Tensor data = random_tensor(rng, v.type());
    p.feed(v, data), plain.feed(v, data);
  }
  p.run(), plain.run();
  EXPECT_LE(worst_difference(plain.fetch(z), p.fetch(z)), 1e-5);
}

TEST(RowPrograms, AReductionOverAllRowsIsNotUsedInItsOwnPass) {
  Tape t;
  const Value x = t.input("x", {DType::f32, {6, 5}});
  const Value centred = x - mean(x, {0}, true);  // needs the whole first pass
  const Value y = square(centred) / (1.0 + mean(square(centred)));
  CompileOptions plain;
  plain.fuse = false;
  Program fused = compile(t, {y}, backend("cpu")), unfused = compile(t, {y}, backend("cpu"), plain);
  std::mt19937 rng(3);
  const Tensor data = random_tensor(rng, x.type());
  fused.feed(x, data), unfused.feed(x, data);
  fused.run(), unfused.run();
  EXPECT_LE(worst_difference(unfused.fetch(y), fused.fetch(y)), 1e-6);
}

}  // namespace
}  // namespace sg
