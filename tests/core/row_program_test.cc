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
#include "tests/support/expect.h"

namespace sg {
namespace {

Tensor random_tensor(std::mt19937& rng, TensorType type) {
  Tensor t(type);
  std::uniform_real_distribution<double> draw(-1.5, 1.5);
  for (std::int64_t i = 0; i < t.elements(); ++i) t.set(i, draw(rng));
  return t;
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
                           Shape{a_, b_, c_}, Shape{a_, 1, c_}}) {
      const TensorType type{dtype, s};
      add(feed(random_tensor(rng_, type)), true);
    }
    // Tables with rows to look up, one of them in bf16, and the numbers: some of the tables, some of all rows there are.
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
    Program p = compile(tape_, fetches_, backend("cpu"), options);
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
    for (std::int64_t i = 0; i < t.elements(); ++i) t.set(i, pick(3) == 0 ? pick(2) * static_cast<double>(n - 1) : pick(n));
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

double worst_difference(const Tensor& a, const Tensor& b) {
  double worst = 0;
  for (std::int64_t i = 0; i < a.elements(); ++i) {
    const double d = std::abs(a.at(i) - b.at(i)) / (1 + std::abs(a.at(i)));
    worst = d <= worst ? worst : d;  // keeps NaN
  }
  return worst;
}

// Runs f with each way in which row programs are executed here: interpreted, and as code for each instruction set that
// there is.
template <class F>
void on_each_executor(F f) {
  const std::string before = isa_name();
  cpu::set_code_generation(false);
  f("interpreted");
  cpu::set_code_generation(true);
  for (const std::string& isa : isa_names()) {
    set_isa(isa);
    if (cpu::has_generator()) f(isa);
  }
  set_isa(before);
}

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
    EXPECT_GT(seen.cut, 200u) << executor;
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
  std::size_t regions = 0, others = 0;
  for (const Instr& i : p.compiled_tape().instrs()) {
    const Role role = op_def(i.op).role;
    if (role == Role::region)
      ++regions;
    else if (role != Role::input && role != Role::constant && role != Role::alias)
      ++others;
  }
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

// How many row programs a tape has on the cpu backend, and how many steps beside them.
std::pair<std::size_t, std::size_t> regions_of(const Program& p) {
  std::size_t regions = 0, others = 0;
  for (const Instr& i : p.compiled_tape().instrs()) {
    const Role role = op_def(i.op).role;
    if (role == Role::region)
      ++regions;
    else if (role != Role::input && role != Role::constant && role != Role::alias)
      ++others;
  }
  return {regions, others};
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

// The rows of an embedding are read where they lie, by both passes over them, and not written.
TEST(RowPrograms, RowsOfATableAreLookedUpByThoseWhoReadThem) {
  Tape t;
  const Value table = t.input("table", {DType::f32, {50, 24}}), i = t.input("i", {DType::i32, {6, 40}}),
              x = t.input("x", {DType::f32, {6, 40, 24}});
  const Value rows = gather_rows(table, i), y = layer_norm(rows + x, t.constant(1.5, {DType::f32, {24}}),
                                                           t.constant(0.5, {DType::f32, {24}}), 1e-5);
  const Value z = y / (1.0 + sum(square(y), {0, 1})) * rows;
  std::mt19937 rng(4);
  const Tensor data = random_tensor(rng, table.type()), others = random_tensor(rng, x.type());
  Tensor numbers(i.type());
  for (std::int64_t k = 0; k < 240; ++k) numbers.set(k, static_cast<double>(k * 7 % 50));
  const auto run = [&](Program p) {
    p.feed(table, data), p.feed(i, numbers), p.feed(x, others);
    p.run();
    return std::make_pair(p.fetch(z), p.explain());
  };
  const Tensor want = run(compile(t, {z}, backend("reference"))).first;
  on_each_executor([&](const std::string& executor) {
    const auto [got, text] = run(compile(t, {z}, backend("cpu")));
    EXPECT_EQ(text.find("gather_rows"), std::string::npos) << executor << "\n" << text;
    EXPECT_NE(text.find("= r0[r1]"), std::string::npos) << executor << "\n" << text;
    EXPECT_NE(text.find(executor == "interpreted" ? "tiles of" : executor + " code"), std::string::npos) << text;
    EXPECT_LE(worst_difference(want, got), 1e-5) << executor;
  });
  // Who asks for them gets them from memory, and so does everybody else.
  const Program asked = compile(t, {z, rows}, backend("cpu"));
  EXPECT_NE(asked.explain().find("gather_rows"), std::string::npos);
  EXPECT_EQ(asked.explain().find("= r0[r1]"), std::string::npos) << asked.explain();
}

// One number out of range: the error that the step of its own makes, at the same line, before anything is written.
TEST(RowPrograms, ANumberOutOfRangeIsTheSameErrorInARegion) {
  Variable weights("weights", Tensor::full({DType::f32, {30, 16}}, 1));
  Tape t;
  const Value table = t.input("table", {DType::f32, {7, 16}}), i = t.input("i", {DType::i32, {30}});
  const Value rows = gather_rows(table, i);
  t.assign(weights, t.read(weights) * 0.5 + tanh(rows));
  CompileOptions plain;
  plain.fuse = false;
  on_each_executor([&](const std::string& executor) {
    Program fused = compile(t, {}, backend("cpu")), unfused = compile(t, {}, backend("cpu"), plain);
    EXPECT_NE(fused.explain().find("[r"), std::string::npos) << executor << fused.explain();
    for (const std::int32_t wrong : {7, -1}) {
      Tensor numbers(i.type());
      numbers.set(29, wrong);
      std::vector<Error> errors;
      for (Program* p : {&fused, &unfused}) {
        p->feed(table, Tensor(table.type())), p->feed(i, numbers);
        const auto error = test::error_of([&] { p->run(); });
        ASSERT_TRUE(error) << executor;
        errors.push_back(*error);
      }
      EXPECT_EQ(errors[0].kind(), ErrorKind::attribute);
      EXPECT_STREQ(errors[0].what(), errors[1].what()) << executor;
      EXPECT_EQ(errors[0].loc().line(), errors[1].loc().line());
      EXPECT_EQ(weights.value().at(0), 1) << executor;
    }
  });
}

// What an early step assigns is not written to its place as long as a later region may find a number out of range.
TEST(RowPrograms, ALookUpThatFailsLeavesVariablesAsTheyWere) {
  Variable early("early", Tensor::full({DType::f32, {40, 16}}, 1));
  Tape t;
  const Value table = t.input("table", {DType::f32, {7, 16}}), i = t.input("i", {DType::i32, {30}});
  t.assign(early, tanh(t.read(early)) * 0.5 + 0.25);
  const Value y = sum(square(gather_rows(table, i) - 1.0), {-1});
  Program p = compile(t, {y}, backend("cpu"));
  Tensor numbers(i.type());
  numbers.set(3, 7);
  p.feed(table, Tensor(table.type())), p.feed(i, numbers);
  SG_EXPECT_ERROR(attribute, "gather_rows: index 7 at position 3 is outside [0, 7)", p.run());
  for (std::int64_t k = 0; k < 640; ++k) ASSERT_EQ(early.value().at(k), 1);
}

// The new rows of a table are not written over the old ones while others still look them up.
TEST(RowPrograms, ATableIsNotWrittenOver) {
  constexpr std::int64_t n = 500;
  Tape t;
  const Value x = t.input("x", {DType::f32, {n, 32}}), i = t.input("i", {DType::i32, {n}});
  const Value table = tanh(x) * 2.0;  // dies in the region below, and is as large as its result
  const Value y = gather_rows(table, i) * 0.5 + square(table);
  std::mt19937 rng(9);
  const Tensor data = random_tensor(rng, x.type());
  Tensor numbers(i.type());
  for (std::int64_t k = 0; k < n; ++k) numbers.set(k, static_cast<double>(k * 499 % n));
  const auto run = [&](const std::string& name) {
    Program p = compile(t, {y}, backend(name));
    p.feed(x, data), p.feed(i, numbers);
    p.run();
    EXPECT_EQ(p.explain().find("[r") != std::string::npos, name == "cpu") << p.explain();
    return p.fetch(y);
  };
  const Tensor want = run("reference");
  on_each_executor(
      [&](const std::string& executor) { EXPECT_LE(worst_difference(want, run("cpu")), 1e-5) << executor; });
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
