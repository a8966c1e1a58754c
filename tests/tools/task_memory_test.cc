// Memory of every model of the program's table, as it comes but small: the arenas of its training step and of its other
// tapes against the largest live set, and recomputation.
#include <gtest/gtest.h>

#include "backends/backends.h"
#include "core/program.h"
#include "core/recompute.h"
#include "ops/op_ids.h"
#include "tests/conformance/cases.h"
#include "tests/support/expect.h"
#include "tools/task.h"

namespace sg::test {
namespace {

using namespace tools;

TrainConfig small_config(const std::string& model) {
  TrainConfig c = default_config(model);
  c.batch = 16, c.image_size = 16, c.channels = 1, c.window = 3;
  c.hidden = 16, c.residual_hidden = 8, c.codes = 256, c.code_dim = 8, c.init = "normal";
  c.ch = 16, c.latent = 16, c.ndf = 8, c.disc_start = 1, c.disc_warmup = 1;
  c.dim = 32, c.layers = 3, c.block = 16, c.update = 64, c.sequence = 256, c.key_width = 16;
  if (model == "prior" || model == "transformer-vq") c.dropout = 0.1;
  if (model == "transformer-vq") c.batch = 4;
  return c;
}

// Values that nothing on the tape uses: what a recorded part is for.
std::vector<Value> results_of(Tape& tape) {
  std::vector<bool> used(static_cast<std::size_t>(tape.value_count()));
  for (const Instr& instr : tape.instrs())
    for (const std::int32_t v : instr.inputs) used[static_cast<std::size_t>(v)] = true;
  std::vector<Value> results;
  for (const Instr& instr : tape.instrs())
    for (const std::int32_t v : instr.outputs)
      if (!used[static_cast<std::size_t>(v)] && op_def(instr.op).role != Role::input) results.push_back(tape.value(v));
  return results;
}

std::vector<Value> values_of(const TaskStep& step) {
  std::vector<Value> values;
  for (const NamedValue& m : step.metrics) values.push_back(m.value);
  return values;
}

std::unique_ptr<Task> small_task(const std::string& model) {
  TaskSetup setup{small_config(model)};
  validate(setup.config);
  return make_task(setup);
}

void expect_near_bound(const Program& program, const std::string& what) {
  const ProgramStats stats = program.stats();
  EXPECT_GE(stats.arena_bytes, stats.lower_bound_bytes) << what;
  EXPECT_LE(static_cast<double>(stats.arena_bytes), 1.15 * static_cast<double>(stats.lower_bound_bytes))
      << what << "\n"
      << program.explain();
}

class TaskMemory : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(, TaskMemory, testing::ValuesIn(task_names()), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST_P(TaskMemory, ArenaIsWithin15PerCentOfTheLargestLiveSet) {
  for (const bool fuse : {true, false}) {
    const std::unique_ptr<Task> task = small_task(GetParam());
    const CompileOptions options{.fuse = fuse};
    const std::string how = fuse ? ", fused" : ", not fused";
    Tape tape;
    const TaskStep step = task->record(tape, IfUnreachable::zero);
    expect_near_bound(compile(tape, values_of(step), cpu_backend(), options), "training step" + how);
    for (const std::string& part : task->parts()) {
      Tape recorded;
      task->record_part(recorded, part);
      expect_near_bound(compile(recorded, results_of(recorded), cpu_backend(), options), part + how);
    }
  }
}

// A task and its compiled training step, fed with drawn data.
struct TaskRun {
  TaskRun(const std::string& model, bool fuse, RecomputeOptions recompute) : task(small_task(model)) {
    step = task->record(tape, IfUnreachable::zero);
    program.emplace(compile(tape, values_of(step), cpu_backend(), {.fuse = fuse, .recompute = recompute}));
    Rng rng(1);
    for (const Instr& instr : tape.instrs()) {
      if (op_def(instr.op).role != Role::input) continue;
      const Value input = tape.value(instr.outputs[0]);
      Tensor t(input.type());
      const bool whole = input.dtype() == DType::i32;
      for (std::int64_t i = 0; i < t.elements(); ++i)
        t.set(i, whole ? static_cast<double>(rng() % 10) : static_cast<double>(rng() % 1000) / 1e3);
      program->feed(input, t);
    }
    program->feed(step.learning_rate, Tensor::full({DType::f32, {}}, 1e-3));
  }
  std::unique_ptr<Task> task;
  Tape tape;
  TaskStep step;
  std::optional<Program> program;
};

// By scopes, by deeper ones, and to a budget below what the step needs.
std::vector<std::unique_ptr<TaskRun>> recomputed(const std::string& model, bool fuse, std::size_t bound) {
  std::vector<std::unique_ptr<TaskRun>> runs;
  for (const std::string& how :
       {std::string("scopes"), std::string("scopes:2"), fmt::format("budget:{}", 0.7e-6 * static_cast<double>(bound))})
    runs.push_back(std::make_unique<TaskRun>(model, fuse, recompute_by_name(how)));
  std::size_t least = bound;
  for (const auto& run : runs) least = std::min(least, run->program->stats().lower_bound_bytes);
  EXPECT_LE(static_cast<double>(least), (fuse ? 0.95 : 1.0) * static_cast<double>(bound)) << "no memory saved";
  return runs;
}

// Three steps from the same start on the same data: every variable, every metric.
TEST_P(TaskMemory, RecomputationChangesNoBit) {
  for (const bool fuse : {false, true}) {
    TaskRun plain(GetParam(), fuse, {});
    const auto others = recomputed(GetParam(), fuse, plain.program->stats().lower_bound_bytes);
    for (int i = 0; i < 3; ++i) {
      plain.program->run();
      for (const auto& run : others) run->program->run();
    }
    for (const auto& run : others) {
      SCOPED_TRACE((fuse ? "fused, " : "not fused, ") + run->program->stats().recompute.to_string({}));
      const auto a = plain.task->checkpoint(), b = run->task->checkpoint();
      ASSERT_EQ(a.size(), b.size());
      for (std::size_t k = 0; k < a.size(); ++k) EXPECT_TRUE(same_bits(a[k]->value(), b[k]->value())) << a[k]->name();
      for (const NamedValue& metric : plain.step.metrics) {
        const auto k = &metric - plain.step.metrics.data();
        EXPECT_TRUE(same_bits(plain.program->fetch(metric.value),
                              run->program->fetch(run->step.metrics[static_cast<std::size_t>(k)].value)))
            << metric.name;
      }
    }
  }
}

}  // namespace
}  // namespace sg::test
