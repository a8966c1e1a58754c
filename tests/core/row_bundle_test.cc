// Bundles: several regions as one step, with the bits of the regions one after the other.
#include "core/row_bundle.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "backends/backends.h"
#include "backends/cpu/row_jit.h"
#include "core/autodiff.h"
#include "core/program.h"
#include "models/optim.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/op_ids.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

Tensor drawn(TensorType type, std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::uniform_real_distribution<double> draw(-1.5, 1.5);
  Tensor t(type);
  for (std::int64_t i = 0; i < t.elements(); ++i) t.set(i, draw(rng));
  return t;
}

struct Bundles {
  explicit Bundles(bool on) { set_row_bundles(on); }
  ~Bundles() { set_row_bundles(true); }
};

std::vector<RowBundle> bundles_of(const Program& program) {
  std::vector<RowBundle> found;
  const Tape& tape = program.compiled_tape();
  for (const Instr& instr : tape.instrs())
    if (instr.op == OpId::row_bundle) found.push_back(row_bundle(tape, instr));
  return found;
}

// What a tape computes, twice over an arena that holds NaN at first.
std::vector<Tensor> results(Tape& tape, std::span<const Value> fetches, std::vector<RowBundle>* bundles = nullptr) {
  Program p = compile(tape, fetches, backend("cpu"));
  std::uint32_t seed = 1;
  for (const Instr& instr : tape.instrs())
    if (instr.op == OpId::input) p.feed(instr.attrs.str("name"), drawn(tape.type(instr.outputs[0]), seed++));
  p.fill_arena(std::byte{0xFF});
  p.run();
  p.fill_arena(std::byte{0x7F});
  p.run();
  if (bundles != nullptr) {
    // The regions point into the tape of the program: only their number and parts outlive it.
    *bundles = bundles_of(p);
  }
  std::vector<Tensor> out;
  for (const Value& v : fetches) out.push_back(p.fetch(v));
  return out;
}

void expect_same_bits(const std::vector<Tensor>& want, const std::vector<Tensor>& got, const std::string& what) {
  ASSERT_EQ(want.size(), got.size());
  for (std::size_t k = 0; k < want.size(); ++k)
    EXPECT_EQ(std::memcmp(want[k].data(), got[k].data(), want[k].bytes()), 0) << what << ", fetch " << k;
}

// Samples of few rows and of more than a chunk has, more samples than chunks and fewer.
const std::vector<Shape> kMaps = {{16, 9, 16}, {20, 300, 24}, {70, 49, 32}, {200, 5, 8}, {129, 16, 12}};

struct GroupNorm {
  explicit GroupNorm(const Shape& s, DType dtype = DType::f32) {
    const Value x = tape.input("x", {dtype, s}), gamma = tape.input("gamma", {dtype, {s[2]}}),
                beta = tape.input("beta", {dtype, {s[2]}}), w = tape.input("w", {dtype, s});
    const Value y = silu(group_norm(x, gamma, beta, 4)), loss = sum(y * w);
    const std::vector<Value> of{x, gamma, beta};
    fetches = {y, loss};
    for (const Value& g : gradients(loss, of)) fetches.push_back(g);
  }
  Tape tape;
  std::vector<Value> fetches;
};

TEST(RowBundles, AGroupNormAndItsGradientAreOneChain) {
  GroupNorm model({32, 100, 16});
  std::vector<RowBundle> bundles;
  results(model.tape, model.fetches, &bundles);
  ASSERT_EQ(bundles.size(), 1u);
  EXPECT_EQ(bundles.front().parts, 32);
  EXPECT_GE(bundles.front().regions.size(), 8u);
}

TEST(RowBundles, ChainsChangeNoBitOnAnyExecutorAndNumberOfThreads) {
  const int before = threads();
  for (const bool generated : {true, false})
    for (const Shape& s : kMaps) {
      cpu::set_code_generation(generated);
      GroupNorm model(s);
      set_threads(1);
      std::vector<Tensor> want;
      {
        const Bundles off(false);
        std::vector<RowBundle> none;
        want = results(model.tape, model.fetches, &none);
        EXPECT_TRUE(none.empty());
      }
      for (const int n : {1, 2, 3, 8}) {
        set_threads(n);
        std::vector<RowBundle> bundles;
        const auto got = results(model.tape, model.fetches, &bundles);
        EXPECT_FALSE(bundles.empty());
        expect_same_bits(want, got, fmt::format("{} generated {} threads {}", to_string(s), generated, n));
      }
    }
  cpu::set_code_generation(true);
  set_threads(before);
}

TEST(RowBundles, ChainsAgreeWithTheReference) {
  for (const Shape& s : kMaps) {
    GroupNorm model(s, DType::f64);
    const auto got = results(model.tape, model.fetches);
    Program p = compile(model.tape, model.fetches, backend("reference"));
    std::uint32_t seed = 1;
    for (const Instr& instr : model.tape.instrs())
      if (instr.op == OpId::input) p.feed(instr.attrs.str("name"), drawn(model.tape.type(instr.outputs[0]), seed++));
    p.run();
    for (std::size_t k = 0; k < got.size(); ++k) {
      const Tensor want = p.fetch(model.fetches[k]);
      for (std::int64_t i = 0; i < want.elements(); ++i)
        ASSERT_NEAR(want.at(i), got[k].at(i), 1e-10 * (1 + std::abs(want.at(i)))) << to_string(s) << " fetch " << k;
    }
  }
}

// A value that an earlier program of the chain still reads, of another sample, may be written over; one that a later
// program reads may not.
TEST(RowBundles, WhatIsReadLaterIsNotWrittenOver) {
  const auto record = [](Tape& t) {
    const Shape s{24, 40, 16};
    const Value x = t.input("x", {DType::f32, s}), a = tanh(x) * 2.0;  // dies in the chain
    const Value centred = a - mean(a, {1}, true), first = centred * 3.0;
    const Value spread = mean(square(centred), {1}, true), second = a / (1.0 + spread), third = first * spread;
    return std::vector<Value>{first, second, third, sum(second * third)};
  };
  for (const bool generated : {true, false}) {
    cpu::set_code_generation(generated);
    Tape t;
    const std::vector<Value> fetches = record(t);
    std::vector<Tensor> want;
    {
      const Bundles off(false);
      want = results(t, fetches);
    }
    std::vector<RowBundle> bundles;
    const auto got = results(t, fetches, &bundles);
    EXPECT_FALSE(bundles.empty());
    expect_same_bits(want, got, generated ? "generated" : "interpreted");
  }
  cpu::set_code_generation(true);
}

// Random compositions of passes over samples, and of small ones over what comes of each.
TEST(RowBundles, RandomChainsChangeNoBit) {
  for (const bool generated : {true, false}) {
    cpu::set_code_generation(generated);
    std::size_t chains = 0, shorter = 0;
    for (std::uint32_t seed = 1; seed <= 300; ++seed) {
      std::mt19937 rng(seed);
      const auto pick = [&](int n) { return static_cast<int>(rng() % static_cast<std::uint32_t>(n)); };
      const std::int64_t n = 16 + pick(seed % 3 == 0 ? 150 : 20), p = 2 + pick(60), c = 4 * (1 + pick(12));
      const DType dtype = seed % 5 == 0 ? DType::f64 : DType::f32;
      Tape t;
      const Value gamma = t.input("gamma", {dtype, {c}}), shift = t.input("shift", {dtype, {n, 1, c}});
      std::vector<Value> full{t.input("x", {dtype, {n, p, c}}), t.input("y", {dtype, {n, p, c}})}, fetches;
      const auto any = [&] { return full[static_cast<std::size_t>(pick(static_cast<int>(full.size())))]; };
      for (int i = 0, ops = 3 + pick(7); i < ops; ++i) {
        const Value v = any();
        const Value m = mean(v, {1}, true);
        switch (pick(7)) {
          case 0:
            full.push_back(v - m);
            break;
          case 1:
            full.push_back(v * rsqrt(mean(square(v), {1}, true) + 0.5) * gamma);
            break;
          case 2: {  // one number per sample and group
            const Value grouped = reshape(m, {n, 4, c / 4});
            full.push_back(tanh(v - reshape(broadcast(mean(grouped, {-1}, true), grouped.shape()), {n, 1, c})));
            break;
          }
          case 3:
            full.push_back(tanh(v * any() + shift));
            break;
          case 4:
            full.push_back(v - mean(v, {-1}, true));
            break;
          case 5:
            fetches.push_back(sum(v * any(), {0, 1}));
            break;
          default:
            fetches.push_back(sum(m * shift, {0}));
            break;
        }
        if (pick(4) == 0) fetches.push_back(full.back());
      }
      fetches.push_back(full.back());
      std::vector<Tensor> want;
      {
        const Bundles off(false);
        want = results(t, fetches);
      }
      std::vector<RowBundle> bundles;
      const auto got = results(t, fetches, &bundles);
      chains += bundles.size();
      for (const RowBundle& b : bundles) shorter += b.parts > 1;
      expect_same_bits(want, got, fmt::format("seed {} generated {}\n{}", seed, generated, t.to_string()));
      if (HasFailure()) break;
    }
    EXPECT_GT(chains, 150u);  // the comparison is of something
    EXPECT_EQ(chains, shorter);
  }
  cpu::set_code_generation(true);
}

// --- updates --------------------------------------------------------------------------------------------------------

struct Model {
  explicit Model(bool crossed = false) {
    for (const Shape& s : {Shape{300, 70}, Shape{64}, Shape{3, 3, 8, 16}, Shape{1}, Shape{40, 5}})
      parameters.push_back(std::make_unique<Variable>("p" + std::to_string(parameters.size()),
                                                      drawn({DType::f32, s}, 7 + parameters.size())));
    std::vector<Variable*> all;
    std::vector<Value> gradients;
    Value loss;
    for (const auto& p : parameters) {
      all.push_back(p.get());
      const Value v = tape.read(*p), term = sum(square(v) * 0.5 + tanh(v));
      loss = loss ? loss + term : term;
      of.push_back(v);
    }
    gradients = sg::gradients(loss, of);
    adam = std::make_unique<Adam>(all);
    adam->apply(tape, gradients, tape.constant(1e-2, {DType::f32, {}}));
    // Another variable's new value is made of an old one that an update in the same bundle replaces.
    if (crossed) {
      shadow = std::make_unique<Variable>("shadow", drawn({DType::f32, {300, 70}}, 3));
      tape.assign(*shadow, tape.read(*shadow) * 0.9 + of.front() * 0.1);
    }
    fetches = {loss};
  }
  std::vector<Tensor> run(int steps) {
    Program p = compile(tape, fetches, backend("cpu"));
    bundles = bundles_of(p).size();
    regions = bundles == 0 ? 0 : bundles_of(p).front().regions.size();
    for (int i = 0; i < steps; ++i) p.run();
    std::vector<Tensor> out{p.fetch(fetches[0])};
    for (const auto& v : parameters) out.push_back(v->value());
    if (shadow) out.push_back(shadow->value());
    return out;
  }
  Tape tape;
  std::vector<std::unique_ptr<Variable>> parameters;
  std::unique_ptr<Variable> shadow;
  std::unique_ptr<Adam> adam;
  std::vector<Value> of, fetches;
  std::size_t bundles = 0, regions = 0;
};

TEST(RowBundles, AnOptimizerIsOneStepForAllParameters) {
  for (const bool crossed : {false, true})
    for (const bool generated : {true, false}) {
      cpu::set_code_generation(generated);
      Model bundled(crossed), plain(crossed);
      std::vector<Tensor> want;
      {
        const Bundles off(false);
        want = plain.run(5);
        EXPECT_EQ(plain.bundles, 0u);
      }
      const auto got = bundled.run(5);
      EXPECT_EQ(bundled.bundles, 1u);
      EXPECT_GE(bundled.regions, 4u);
      expect_same_bits(want, got, fmt::format("crossed {} generated {}", crossed, generated));
    }
  cpu::set_code_generation(true);
}

TEST(RowBundles, ExplainSaysHowManyProgramsAndWhat) {
  GroupNorm model({32, 100, 16});
  const std::string text = compile(model.tape, model.fetches, backend("cpu")).explain();
  EXPECT_NE(text.find("programs in 32 parts"), std::string::npos) << text;
  EXPECT_NE(text.find("segments sum"), std::string::npos) << text;
}

}  // namespace
}  // namespace sg
