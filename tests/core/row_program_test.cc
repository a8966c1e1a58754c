// Row programs: fused and unfused tapes agree, on thousands of random tapes by seed, on each executor, for any
// number of threads.
#include "core/row_program.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <random>

#include "backends/backends.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/row_jit.h"
#include "core/autodiff.h"
#include "core/program.h"
#include "models/optim.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/index.h"
#include "ops/norm.h"
#include "ops/op_ids.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

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
    for (const Shape& s :
         {Shape{a_, b_, c_}, Shape{a_ * b_, c_}, Shape{a_, b_, 1}, Shape{c_}, Shape{}, Shape{a_, b_, c_}}) {
      const TensorType type{dtype, s};
      add(tape_.input("x" + std::to_string(feeds_.size()), type), true);
      feeds_.push_back(random_tensor(rng_, type));
    }
    const int ops = 4 + pick(30);
    for (int i = 0; i < ops; ++i) grow();
    for (const auto& v : values_)
      if (tape_.instrs()[static_cast<std::size_t>(tape_.producer(v.value.id))].inputs.size() > 0 && pick(3) == 0)
        fetches_.push_back(v.value);
    if (fetches_.empty()) fetches_.push_back(values_.back().value);
  }

  std::vector<Tensor> run(CompileOptions options, std::size_t* regions = nullptr) {
    Program p = compile(tape_, fetches_, backend("cpu"), options);
    for (std::size_t i = 0; i < feeds_.size(); ++i) p.feed("x" + std::to_string(i), feeds_[i]);
    p.fill_arena(std::byte{0xFF});
    p.run();
    p.fill_arena(std::byte{0x7F});
    p.run();
    if (regions != nullptr)
      for (const Instr& i : p.compiled_tape().instrs()) *regions += i.op == OpId::row_program;
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
  const Entry& any() { return values_[static_cast<std::size_t>(pick(static_cast<std::int64_t>(values_.size())))]; }

  void grow() {
    const Entry x = any();
    const int rank = x.value.shape().rank();
    switch (pick(15)) {
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
};

double worst_difference(const Tensor& a, const Tensor& b) {
  double worst = 0;
  for (std::int64_t i = 0; i < a.elements(); ++i) {
    const double d = std::abs(a.at(i) - b.at(i)) / (1 + std::abs(a.at(i)));
    worst = d <= worst ? worst : d;  // keeps NaN
  }
  return worst;
}

// The ways in which a row program is executed here: interpreted, and as code for each instruction set that there is.
std::vector<std::string> executors() {
  const std::string before = isa_name();
  std::vector<std::string> names{"interpreted"};
  for (const char* isa : {"avx2", "avx512"}) {
    try {
      set_isa(isa);
      if (cpu::has_generator()) names.emplace_back(isa);
    } catch (const Error&) {  // not on this processor
    }
  }
  set_isa(before);
  return names;
}

TEST(RowPrograms, RandomTapesAgreeWithUnfused) {
  const std::string before = isa_name();
  for (const std::string& executor : executors()) {
    std::size_t regions = 0;
    if (executor != "interpreted") set_isa(executor);
    for (std::uint32_t seed = 1; seed <= 1500; ++seed) {
      const DType dtype = seed % 8 == 0 ? DType::f64 : DType::f32;
      RandomTape tape(seed, dtype);
      CompileOptions plain;
      plain.fuse = false;
      cpu::set_code_generation(executor != "interpreted");
      const auto fused = tape.run({}, &regions), unfused = tape.run(plain);
      cpu::set_code_generation(true);
      for (std::size_t k = 0; k < fused.size(); ++k)
        ASSERT_LE(worst_difference(unfused[k], fused[k]), dtype == DType::f32 ? 2e-5 : 1e-12)
            << "seed " << seed << ", fetch " << k << ", " << executor << "\n"
            << tape.text();
    }
    EXPECT_GT(regions, 1500u) << executor;  // the comparison is of something
    set_isa(before);
  }
}

// Parameters of unlike shapes and sizes; the second step starts from moments that are not zero.
TEST(RowPrograms, AnOptimizerIsOneStepOverAllItsTensors) {
  const auto train = [&](const CompileOptions& options, std::vector<Tensor>& result) {
    std::mt19937 same(7);
    std::deque<Variable> parameters;
    std::vector<Variable*> pointers;
    Tape tape;
    std::vector<Value> grads;
    std::vector<Tensor> fed;
    for (const Shape& s : {Shape{64, 65}, Shape{65}, Shape{3, 3, 8, 16}, Shape{2}, Shape{5000}}) {
      pointers.push_back(
          &parameters.emplace_back("p" + std::to_string(grads.size()), random_tensor(same, {DType::f32, s})));
      grads.push_back(tape.input("g" + std::to_string(grads.size()), {DType::f32, s}));
      fed.push_back(random_tensor(same, {DType::f32, s}));
    }
    Adam adam(pointers, {});
    adam.apply(tape, grads, tape.constant(0.01, {DType::f32, {}}));
    Program p = compile(tape, std::initializer_list<Value>{}, backend("cpu"), options);
    for (std::size_t i = 0; i < grads.size(); ++i) p.feed(grads[i], fed[i]);
    p.run(), p.run();
    for (Variable* v : pointers) result.push_back(v->value());
    for (Variable* v : adam.state()) result.push_back(v->value());
    return p.compiled_tape().to_string();
  };
  CompileOptions plain, copied;
  plain.fuse = plain.plan_memory = false;
  copied.check_finite = true;  // then new values of variables are not written in place
  std::vector<Tensor> fused, unfused, committed;
  const std::string text = train({}, fused);
  train(plain, unfused), train(copied, committed);
  std::size_t programs = 0;
  for (std::size_t at = text.find("row_program"); at != std::string::npos; at = text.find("row_program", at + 1))
    ++programs;
  EXPECT_EQ(programs, 1u) << text;
  for (std::size_t i = 0; i < fused.size(); ++i) {
    EXPECT_LE(worst_difference(unfused[i], fused[i]), 1e-5) << i;
    EXPECT_EQ(std::memcmp(committed[i].data(), fused[i].data(), fused[i].bytes()), 0) << i;
  }
}

// The lookup fails after the update was computed.
TEST(RowPrograms, AStepThatFailsLeavesVariablesAsTheyWere) {
  Variable v("v", Tensor::full({DType::f32, {100}}, 1.0));
  Tape tape;
  const Value x = tape.read(v), table = tape.input("table", {DType::f32, {4, 100}});
  const Value next = tanh(x) * 2.0;
  tape.assign(v, next);
  const Value row = gather_rows(table, tape.input("index", {DType::i32, {1}}));
  Program p = compile(tape, {row}, backend("cpu"));
  p.feed("table", Tensor::full({DType::f32, {4, 100}}, 3.0));
  p.feed("index", Tensor::full({DType::i32, {1}}, 9));
  EXPECT_THROW(p.run(), Error);
  EXPECT_EQ(v.value().at(0), 1.0);
  p.feed("index", Tensor::full({DType::i32, {1}}, 2));
  p.run();
  EXPECT_NEAR(v.value().at(0), 2 * std::tanh(1.0), 1e-6);
}

TEST(RowPrograms, ANarrowSpaceIsOneLongRow) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {300, 1}}), b = tape.input("b", {DType::f32, {1}});
  const Value y = square(x + b);
  const std::vector<Value> fetches{y, sum(y, {0}), sum(y, {-1}), mean(y)};
  Program p = compile(tape, fetches, backend("cpu"));
  EXPECT_NE(p.explain().find("1 x 300"), std::string::npos) << p.explain();
  p.feed("x", Tensor::full({DType::f32, {300, 1}}, 2.0)), p.feed("b", Tensor::full({DType::f32, {1}}, 1.0));
  p.run();
  EXPECT_EQ(p.fetch(fetches[0]).at(299), 9.0);
  EXPECT_EQ(p.fetch(fetches[1]).at(0), 2700.0);
  EXPECT_EQ(p.fetch(fetches[2]).at(150), 9.0);
  EXPECT_EQ(p.fetch(fetches[3]).item(), 9.0);
}

TEST(RowPrograms, ThreadsDoNotChangeABit) {
  const int before = threads();
  for (std::uint32_t seed = 1; seed <= 60; ++seed) {
    RandomTape tape(seed * 7, DType::f32);
    set_threads(1);
    const auto one = tape.run({});
    for (int n : {2, 3, 8}) {
      set_threads(n);
      const auto many = tape.run({});
      for (std::size_t k = 0; k < one.size(); ++k)
        ASSERT_EQ(std::memcmp(one[k].data(), many[k].data(), one[k].bytes()), 0)
            << "seed " << seed * 7 << ", " << n << " threads";
    }
  }
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
  EXPECT_NE(p.explain().find("8 x 4, 4 ops, reads 0.000 MB, writes 0.000 MB"), std::string::npos) << p.explain();
  EXPECT_EQ(p.compiled_tape().row_program(0).bytes_read(), 4 * (8 * 4 + 1 + 4));
  EXPECT_EQ(p.compiled_tape().row_program(0).bytes_written(), 4 * 8);
  EXPECT_NE(p.explain().find("r3 = mul r0 r1; r4 = add r3 r2; r5 = square r4; r6 = row sum r5"), std::string::npos)
      << p.explain();
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
