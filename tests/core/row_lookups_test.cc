// Row programs that look up rows of a table: who does, with which numbers and errors, and what may be written
// meanwhile.
#include <gtest/gtest.h>

#include "backends/backends.h"
#include "core/row_program.h"
#include "ops/elementwise.h"
#include "ops/index.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "tests/core/row_support.h"
#include "tests/support/expect.h"

namespace sg {
namespace {

using namespace test;

// The rows of an embedding are read where they lie, by both passes over them, and not written.
TEST(RowLookUps, RowsOfATableAreLookedUpByThoseWhoReadThem) {
  Tape t;
  const Value table = t.input("table", {DType::f32, {50, 24}}), i = t.input("i", {DType::i32, {6, 40}}),
              x = t.input("x", {DType::f32, {6, 40, 24}});
  const Value rows = gather_rows(table, i), y = tanh(rows + x) * sum(square(rows), {-1}, true);
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
TEST(RowLookUps, ANumberOutOfRangeIsTheSameErrorInARegion) {
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
TEST(RowLookUps, ALookUpThatFailsLeavesVariablesAsTheyWere) {
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

// Once a number was found to be in range, what is assigned after it goes to its place, though rows are looked up by it
// again; other numbers may still be wrong.
TEST(RowLookUps, NumbersThatWereLookedUpOnceAreKnown) {
  Variable large("large", Tensor::full({DType::f32, {1000, 64}}, 1));
  const auto arena = [&](bool same) {
    Tape t;
    const Value table = t.input("table", {DType::f32, {7, 16}}), i = t.input("i", {DType::i32, {30}}),
                j = t.input("j", {DType::i32, {30}});
    const Value first = sum(square(gather_rows(table, i) - 1.0));
    t.assign(large, tanh(t.read(large)) * first);
    const Value second = sum(square(gather_rows(table, same ? i : j) - first));
    return compile(t, {second}, backend("cpu")).stats().arena_bytes;
  };
  EXPECT_LT(arena(true), large.type().bytes());
  EXPECT_GE(arena(false), large.type().bytes());
}

// (T,D) beside (N,T,D): positions, or a mask of scores. Their step of their own goes where they have neighbours.
TEST(RowLookUps, RowsThatRepeatAreLookedUp) {
  Tape t;
  const Value table = t.input("table", {DType::f32, {50, 24}}), i = t.input("i", {DType::i32, {6, 40}}),
              position = t.input("position", {DType::f32, {40, 24}}), one = t.constant(1.0, {DType::f32, {24}}),
              scores = t.input("scores", {DType::f32, {3, 2, 9, 9}}), mask = t.input("mask", {DType::f32, {1, 9, 9}});
  const Value tokens = layer_norm(gather_rows(table, i) + position, one, one, 1e-5);
  const Value attention = softmax(scores * 0.5 - mask);
  std::mt19937 rng(4);
  std::vector<Tensor> data;
  for (const Value& v : {table, position, scores, mask}) data.push_back(random_tensor(rng, v.type()));
  Tensor numbers(i.type());
  for (std::int64_t k = 0; k < 240; ++k) numbers.set(k, static_cast<double>(k * 7 % 50));
  for (const Value& y : {tokens, attention}) {
    const auto run = [&](const std::string& name) {
      Program p = compile(t, {y}, backend(name));
      p.feed(i, numbers);
      std::size_t k = 0;
      for (const Value& v : {table, position, scores, mask}) p.feed(v, data[k++]);
      p.run();
      if (name == "cpu" && cpu::has_generator()) {
        EXPECT_EQ(regions_of(p), std::make_pair(std::size_t{1}, std::size_t{0})) << p.explain();
      }
      return p.fetch(y);
    };
    const Tensor want = run("reference");
    on_each_executor(
        [&](const std::string& executor) { EXPECT_LE(worst_difference(want, run("cpu")), 1e-5) << executor; });
  }
  const Value alone = scores + mask;
  EXPECT_EQ(regions_of(compile(t, {alone}, backend("cpu"))), std::make_pair(std::size_t{0}, std::size_t{1}));
}

// The new rows of a table are not written over the old ones while others still look them up.
TEST(RowLookUps, ATableIsNotWrittenOver) {
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

}  // namespace
}  // namespace sg
