// Memory of a large codebook: a step of nearest_code and EMA holds nothing of N x K elements, and is linear in N + K.
#include <algorithm>

#include "core/autodiff.h"
#include "models/statistics.h"
#include "ops/reduce.h"
#include "tests/models/codebook_support.h"

namespace sg {
namespace {

using namespace models_test;

constexpr std::int64_t kDim = 8;

struct Memory {
  std::size_t bytes;           // of variables, constants, arena, scratch and feeds
  std::int64_t largest_value;  // elements
};

// A whole step with `rows` rows and as many codes: lookup, straight-through z_q and its gradient, both losses, EMA,
// revival, usage and perplexity. `run` feeds and runs it once.
Memory memory_of_step(std::int64_t rows, CodebookUpdate rule, Revival policy, bool run) {
  QuantizerConfig config = codebook_config(rule, rows, kDim);
  config.revival = 1;
  config.revival_policy = policy;
  config.init = CodebookInit::normal;
  Codebook c(config);
  const Value z = c.tape.input("z", {DType::f32, {rows, kDim}});
  const Quantized out = c.step(z, c.training());
  const Value counts = code_counts(out.indices, rows);
  const Value total = sum(out.z_q * out.z_q) + out.total_loss();
  Program program = compile(c.tape, {total, gradient(total, z), usage(counts), perplexity(counts)}, backend("cpu"));
  if (run) {
    program.feed(z, random_rows({rows, kDim}, 1));
    program.run();
    EXPECT_GT(program.fetch_scalar(total), 0);
  }
  const ProgramStats stats = program.stats();
  const Tape& compiled = program.compiled_tape();
  Memory out_memory{stats.arena_bytes + stats.persistent_bytes + stats.scratch_bytes + stats.feed_bytes, 0};
  for (const Variable* v : c.root.variables()) out_memory.bytes += v->value().bytes();
  for (std::int32_t id = 0; id < compiled.value_count(); ++id)
    out_memory.largest_value = std::max(out_memory.largest_value, compiled.type(id).shape.elements());
  return out_memory;
}

TEST(CodebookMemory, OfNearestCodeAndEmaIsLinearInRowsPlusCodes) {
  constexpr std::int64_t kLarge = 65536;
  for (const CodebookUpdate rule : {CodebookUpdate::ema, CodebookUpdate::ema_loss})
    for (const Revival policy : {Revival::threshold, Revival::split}) {
      const Memory half = memory_of_step(kLarge / 2, rule, policy, false);
      const Memory whole = memory_of_step(kLarge, rule, policy, false);
      const double unit = static_cast<double>(2 * kLarge * kDim * 4);  // bytes of z and of the codes together
      EXPECT_LT(static_cast<double>(whole.bytes), 5.5 * unit) << to_string(rule) << " " << to_string(policy);
      EXPECT_EQ(whole.largest_value, kLarge * kDim) << "no distances, no one-hot";
      const double growth = static_cast<double>(whole.bytes) / static_cast<double>(half.bytes);
      EXPECT_GT(growth, 1.9);
      EXPECT_LT(growth, 2.1);
    }
}

TEST(CodebookMemory, TheSameStepRunsSmaller) {
  const Memory small = memory_of_step(1024, CodebookUpdate::ema, Revival::threshold, true);
  EXPECT_EQ(small.largest_value, 1024 * kDim);
}

}  // namespace
}  // namespace sg
