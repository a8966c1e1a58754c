// What results of a row program may not depend on: where its operands lie, and which of its outputs are asked for.
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "backends/backends.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/row_jit.h"
#include "core/program.h"
#include "core/row_program.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/backends/each_isa.h"
#include "tests/conformance/cases.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

// Generated where there is a generator, and interpreted.
void on_each_executor(const std::function<void()>& f) {
  on_each_isa({"avx512", "avx2", "generic"}, [&](const std::string& isa) {
    for (const bool generated : {true, false}) {
      SCOPED_TRACE(isa + (generated ? "" : ", interpreted"));
      cpu::set_code_generation(generated);
      f();
      cpu::set_code_generation(true);
    }
  });
}

// A region that has every kind of output, and many values at once. rare: with an op that has no generated code.
std::vector<Value> outputs_of(Value h, Value g, bool rare) {
  const Value half = 0.5 * h;  // made at once, over h where that is possible, and h is read to the end
  const Value a = tanh(h), b = exp(-square(g)), c = sigmoid(h + g);
  const Value norm = sqrt(sum(square(a), {-1}, true) + 0.1);
  const Value unit = a / norm, mixed = unit * b + c * h, steep = rare ? sin(mixed) : exp(0.1 * mixed);
  const Value along = sum(steep * c, {-1}, true);
  std::vector<Value> out{half, unit, mixed, along, steep * along};
  out.push_back(sum(mixed * a));
  std::vector<std::int64_t> rows;
  for (int k = 0; k + 1 < h.shape().rank(); ++k) rows.push_back(k);
  out.push_back(sum(steep * b, rows, false));
  if (h.shape().rank() > 2) out.push_back(sum(unit * h, {1}, true));
  return out;
}

const std::vector<Shape> kSpaces{{1500, 24}, {1, 700}, {3, 700, 24}, {70, 30, 16}, {400, 130}, {40, 1}};

// Sums over rows above all: their parts may not end elsewhere because an output lies over an operand.
TEST(RowPart, ResultsDoNotDependOnThePlanOfMemory) {
  for (const Shape& space : kSpaces)
    for (const bool rare : {false, true}) {
      SCOPED_TRACE(to_string(space));
      Rng rng(1);
      const std::int64_t columns = space[-1], rows = space.elements() / columns;
      Tape tape;
      const Value x = tape.constant(normal_reals({rows, columns}, 1)(rng));
      const Value w = tape.constant(normal_reals({columns, columns}, 0.2)(rng));
      const auto made = [&](double scale) { return reshape(matmul(x * scale, w), space); };
      std::vector<Value> fetches = outputs_of(made(1), made(-0.5), rare);
      for (Value& v : fetches)  // those of an element die again
        if (v.shape() == space) v = sum(square(matmul(reshape(v, {rows, columns}), w)));
      on_each_executor([&] {
        std::vector<std::vector<Tensor>> results;
        std::vector<std::size_t> bytes;
        for (const CompileOptions& options :
             {CompileOptions{}, CompileOptions{.reorder = false}, CompileOptions{.plan_memory = false}}) {
          Program p = compile(tape, fetches, cpu_backend(), options);
          p.run();
          bytes.push_back(p.stats().arena_bytes);
          std::vector<Tensor>& own = results.emplace_back();
          for (const Value& v : fetches) own.push_back(p.fetch(v));
        }
        EXPECT_LT(bytes[0], bytes[2]);
        for (const auto& other : results)
          for (std::size_t k = 0; k < fetches.size(); ++k)
            EXPECT_TRUE(same_bits(results[0][k], other[k])) << "output " << k;
      });
    }
}

struct RegionRun {
  std::vector<Tensor> outputs;
  std::string how;
};
// A region by itself, as it stands.
RegionRun run_region(const RowProgram& program, const std::vector<Tensor>& operands,
                     const std::vector<TensorType>& outputs) {
  Tape tape;
  std::vector<Value> inputs;
  for (const Tensor& t : operands) inputs.push_back(tape.input("x" + std::to_string(inputs.size()), t.type()));
  std::vector<std::int64_t> types;
  for (const TensorType& t : outputs) {
    types.push_back(static_cast<std::int64_t>(t.dtype));
    types.push_back(t.shape.rank());
    for (const std::int64_t d : t.shape) types.push_back(d);
  }
  const std::int64_t index = tape.add_program(std::make_shared<const RowProgram>(program));
  const std::vector<Value> made = tape.emit(op_with_role(Role::region), inputs, {{"program", index}, {"types", types}});
  Program p = compile(tape, made, cpu_backend(), {.fuse = false});
  for (std::size_t k = 0; k < inputs.size(); ++k) p.feed(inputs[k], operands[k]);
  p.run();
  RegionRun run{{}, p.explain()};
  for (const Value& v : made) run.outputs.push_back(p.fetch(v));
  return run;
}

// Random subsets of the outputs, others given: the bits of the whole, also where the whole is interpreted for an op
// that the part does not have.
TEST(RowPart, GivesTheBitsOfTheWhole) {
  int parts = 0, given_used = 0;
  for (const DType dtype : {DType::f32, DType::f64})
    for (const Shape& space : kSpaces)
      for (const bool rare : {false, true}) {
        Rng rng(2);
        Tape tape;
        const Value h = tape.input("h", {dtype, space}), g = tape.input("g", {dtype, space});
        const std::vector<Value> fetches = outputs_of(h, g, rare);
        const Program fused = compile(tape, fetches, cpu_backend());
        const auto instrs = fused.compiled_tape().instrs();
        const auto region = std::find_if(instrs.begin(), instrs.end(), [](const Instr& i) {
          return op_def(i.op).role == Role::region && i.outputs.size() > 2;
        });
        ASSERT_NE(region, instrs.end()) << fused.explain();
        const RowProgram& whole = fused.compiled_tape().row_program(region->attrs.i("program"));
        std::vector<Tensor> operands;
        std::vector<TensorType> types;
        for (const std::int32_t v : region->inputs)
          operands.push_back(normal_reals(fused.compiled_tape().type(v).shape, 1)(rng).cast(dtype));
        for (const std::int32_t v : region->outputs) types.push_back(fused.compiled_tape().type(v));
        on_each_executor([&] {
          const RegionRun all = run_region(whole, operands, types);
          std::mt19937 draw(3);
          for (int trial = 0; trial < 6; ++trial) {
            std::vector<int> wanted;
            std::vector<char> given(types.size(), 0);
            std::vector<TensorType> wanted_types;
            for (std::size_t k = 0; k < types.size(); ++k) {
              if (draw() % 3 == 0) wanted.push_back(static_cast<int>(k)), wanted_types.push_back(types[k]);
              given[k] = draw() % 2 == 0;
            }
            if (wanted.empty()) continue;
            const RowPart part = part_of(whole, wanted, given);
            std::vector<Tensor> in;
            for (const int o : part.operands) {
              in.push_back(o >= 0 ? operands[static_cast<std::size_t>(o)] : all.outputs[static_cast<std::size_t>(~o)]);
              given_used += o < 0;
            }
            const RegionRun some = run_region(*part.program, in, wanted_types);
            for (std::size_t k = 0; k < wanted.size(); ++k)
              EXPECT_TRUE(same_bits(some.outputs[k], all.outputs[static_cast<std::size_t>(wanted[k])]))
                  << to_string(space) << " output " << wanted[k] << "\n"
                  << all.how << some.how;
            ++parts;
          }
        });
      }
  EXPECT_GT(parts, 100);
  EXPECT_GT(given_used, 20);
}

}  // namespace
}  // namespace sg::test
