// State on a backend with memory of its own, and the replay of whole steps: the cpu backend behind a wall that counts
// what goes through it.
#include <gtest/gtest.h>

#include "backends/backends.h"
#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

class Walled final : public Backend {
 public:
  std::string_view name() const override { return "walled"; }
  std::string describe() const override { return "the cpu backend behind a wall"; }
  bool supports(const Tape& tape, const Instr& instr) const override { return inner_.supports(tape, instr); }
  std::unique_ptr<Step> lower(LowerCtx& ctx) override { return inner_.lower(ctx); }
  bool in_place(const Tape& tape, const Instr& instr, int i, int output) const override {
    return inner_.in_place(tape, instr, i, output);
  }
  bool row_op(const Tape& tape, const Instr& instr) const override { return inner_.row_op(tape, instr); }
  Rewritten fuse(const Tape& tape, std::span<const std::int32_t> keep) const override {
    return inner_.fuse(tape, keep);
  }
  void* allocate(std::size_t bytes) override {
    ++buffers;
    return inner_.allocate(bytes);
  }
  void release(void* p) override {
    --buffers;
    inner_.release(p);
  }
  void upload(void* dst, const std::byte* src, TensorType type) override {
    ++uploads;
    inner_.upload(dst, src, type);
  }
  void download(std::byte* dst, const void* src, TensorType type) override {
    ++downloads;
    inner_.download(dst, src, type);
  }
  bool host_memory(DType) const override { return false; }
  bool on_device() const override { return true; }
  Captured capture(const std::function<void()>& enqueue) override {
    ++captures;
    if (refuse) return {nullptr, "walled: refused"};
    return {std::make_unique<FunctionStep>([this, enqueue] {
              ++replays;
              enqueue();
            }),
            "replayed as one"};
  }

  bool refuse = false;
  int uploads = 0, downloads = 0, buffers = 0, captures = 0, replays = 0;

 private:
  Backend& inner_ = backend("cpu");
};

Tensor vector_of(std::initializer_list<float> values) {
  return Tensor::of<float>({static_cast<std::int64_t>(values.size())}, values);
}

struct Counter {
  explicit Counter(Walled& walled, CompileOptions options = {}) : variable("w", vector_of({1, 2})) {
    const Value w = tape.read(variable);
    total = sum(w);
    tape.assign(variable, w + tape.input("step", {DType::f32, {}}));
    program = std::make_unique<Program>(compile(tape, {total}, walled, options));
    program->feed("step", Tensor::full({DType::f32, {}}, 1.0));
  }
  Variable variable;
  Tape tape;
  Value total;
  std::unique_ptr<Program> program;
};

TEST(DeviceState, StaysOnTheDeviceUntilTheHostLooks) {
  Walled walled;
  {
    Counter c(walled);
    const int uploads = walled.uploads;
    for (int i = 0; i < 5; ++i) c.program->run();
    EXPECT_EQ(walled.downloads, 0);
    EXPECT_EQ(walled.uploads, uploads);
    EXPECT_EQ(c.program->fetch_scalar(c.total), 3 + 2 * 4);
    EXPECT_EQ(walled.downloads, 1);
    expect_values(c.variable.value(), {6, 7});
    expect_values(c.variable.value(), {6, 7});
    EXPECT_EQ(walled.downloads, 2) << "one copy for the host, however often it looks";
  }
  EXPECT_EQ(walled.buffers, 0) << "program and variable give back what they had";
}

TEST(DeviceState, WhatTheHostWritesIsThereAtTheNextRun) {
  Walled walled;
  Counter c(walled);
  c.program->run();
  c.variable.set(vector_of({10, 20}));
  c.program->run();
  EXPECT_EQ(c.program->fetch_scalar(c.total), 30);
  c.variable.data();  // a writer in place sees the newest values
  c.variable.touch();
  c.program->run();
  EXPECT_EQ(c.program->fetch_scalar(c.total), 32);
  expect_values(c.variable.value(), {12, 22});
}

TEST(DeviceState, ProgramsShareAVariable) {
  Walled walled;
  Counter c(walled);
  Tape reading;
  const Value twice = reading.read(c.variable) * 2.0;
  Program other = compile(reading, {twice}, walled);
  Program on_host = compile(reading, {twice}, backend("cpu"));
  const int uploads = walled.uploads;
  for (int i = 1; i <= 4; ++i) {
    c.program->run();
    other.run();
    expect_values(other.fetch(twice), {2.0 * (1 + i), 2.0 * (2 + i)});
  }
  EXPECT_EQ(walled.uploads, uploads) << "no copy through the host";
  on_host.run();
  expect_values(on_host.fetch(twice), {10, 12});
}

TEST(DeviceState, AFetchOfTheOldValueIsNotTheNewOne) {
  Walled walled;
  Variable v("v", vector_of({1, 2})), old("old", vector_of({0, 0}));
  Tape tape;
  const Value now = tape.read(v);
  tape.assign(old, now);
  tape.assign(v, now * 3.0);
  Program p = compile(tape, {now}, walled);
  for (int i = 0; i < 4; ++i) p.run();
  expect_values(p.fetch(now), {27, 54});
  expect_values(old.value(), {27, 54});
  expect_values(v.value(), {81, 162});
}

TEST(DeviceState, IsReplayedAsOneAfterTwoPlainRuns) {
  Walled walled;
  Counter c(walled);
  for (int i = 0; i < 6; ++i) c.program->run();
  EXPECT_EQ(walled.captures, 1);
  EXPECT_EQ(walled.replays, 4);
  expect_values(c.variable.value(), {7, 8});
  SG_EXPECT_CONTAINS(c.program->explain(), "replayed as one");
}

TEST(DeviceState, RunsPlainlyWhereItCannotBeReplayedOrMustNot) {
  Walled walled;
  walled.refuse = true;
  Counter refused(walled);
  for (int i = 0; i < 5; ++i) refused.program->run();
  EXPECT_EQ(walled.captures, 1) << "asked once";
  expect_values(refused.variable.value(), {6, 7});
  SG_EXPECT_CONTAINS(refused.program->explain(), "walled: refused");

  walled.refuse = false;
  for (const CompileOptions& options : {CompileOptions{.capture = false}, CompileOptions{.check_finite = true},
                                        CompileOptions{.profile = true}, CompileOptions{.guard = true}}) {
    Counter plain(walled, options);
    for (int i = 0; i < 5; ++i) plain.program->run();
    expect_values(plain.variable.value(), {6, 7});
  }
  EXPECT_EQ(walled.captures, 1);
}

TEST(DeviceState, ANonFiniteValueIsFoundThereAndNothingIsChanged) {
  Walled walled;
  Counter c(walled, {.check_finite = true});
  c.program->run();
  c.program->feed("step", Tensor::full({DType::f32, {}}, INFINITY));
  SG_EXPECT_ERROR(non_finite, "the data fed is not finite", c.program->run());
  expect_values(c.variable.value(), {2, 3});
}

TEST(DeviceState, AVariableMayOutliveTheBackendThatHeldIt) {
  auto walled = std::make_unique<Walled>();
  auto c = std::make_unique<Counter>(*walled);
  c->program->run();
  c->program.reset();
  walled.reset();
  SG_EXPECT_ERROR(backend, "variable 'w': its newest value went with the backend", c->variable.value());
  c->variable.set(vector_of({3, 4}));
  expect_values(c->variable.value(), {3, 4});
}

// A device that is out of memory for a program's values.
class Narrow final : public Backend {
 public:
  std::string_view name() const override { return "narrow"; }
  std::string describe() const override { return "no room"; }
  bool supports(const Tape& tape, const Instr& instr) const override { return inner_.supports(tape, instr); }
  std::unique_ptr<Step> lower(LowerCtx& ctx) override { return inner_.lower(ctx); }
  bool in_place(const Tape&, const Instr&, int, int) const override { return false; }
  void* allocate(std::size_t bytes) override {
    if (bytes > 4096) fail(ErrorKind::backend, "narrow: out of memory, {} bytes asked for", bytes);
    return inner_.allocate(bytes);
  }
  void release(void* p) override { inner_.release(p); }
  void upload(void* dst, const std::byte* src, TensorType type) override { inner_.upload(dst, src, type); }
  void download(std::byte* dst, const void* src, TensorType type) override { inner_.download(dst, src, type); }

 private:
  Backend& inner_ = backend("cpu");
};

TEST(DeviceState, OutOfMemoryNamesTheLargestValues) {
  Narrow narrow;
  Tape values;
  const Value big = exp(broadcast(values.input("x", {DType::f32, {8, 1}}), {8, 200}));
  SG_EXPECT_ERROR(backend, "its 3 largest:", compile(values, {big, big * 2.0}, narrow));
}

}  // namespace
}  // namespace sg::test
