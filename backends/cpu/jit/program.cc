// A row program as generated code: which value is computed in which pass over a row, and what is kept where between
// them.
#include "backends/cpu/jit/program.h"

#include <algorithm>

#include "backends/cpu/jit/generator.h"
#include "backends/cpu/jit/recompute.h"

namespace sg::cpu::jit {
namespace {

constexpr std::int64_t kStretch = 2048;  // columns of a block of a program of one row
constexpr std::int64_t kNearCache = 32 << 10;
constexpr std::size_t kMostScratch = std::size_t{1} << 19;  // of a thread
// Operands and results that leave the cache anyway: from here on writing past it spares reading the lines first.
// Measured, copies of 16 MB and more: 0.75 of the time, of 64 MB 0.3.
constexpr std::int64_t kStreamBytes = std::int64_t{32} << 20;

// What goes past the caches, and what is fetched before its time.
void plan_memory_traffic(Plan& plan, const RowMemory& memory) {
  const RowProgram& p = *plan.program;
  plan.streamed.assign(p.registers.size(), false), plan.fetched.assign(p.registers.size(), false);
  std::int64_t full_values = static_cast<std::int64_t>(p.outputs.size());
  for (int r = 0; r < p.inputs; ++r) full_values += plan.reg(r).layout == Layout::full ? 1 : 0;
  const bool lines = plan.flat || p.columns % 16 == 0;
  if (full_values * p.rows * p.columns * 4 >= kStreamBytes)
    for (const int r : p.outputs)
      plan.streamed[ix(r)] = plan.reg(r).layout == Layout::full && !plan.store_last[ix(r)] && lines &&
                             (memory.hints.read_soon.empty() || !memory.hints.read_soon[ix(r)]) &&
                             reinterpret_cast<std::uintptr_t>(plan.base[ix(r)]) % 64 == 0;
  std::vector<bool> full(ix(plan.phases), false);
  for (std::size_t i = 0; i < p.code.size(); ++i)
    if (const Kind k = p.code[i].kind; k == Kind::gather)
      continue;
    else if (plan.reg(p.code[i].out).layout == Layout::full || k == Kind::reduce_row || RowProgram::over_rows(k))
      full[ix(plan.phase[i])] = true;
  for (const int s : plan.store_phase)
    if (s >= 0) full[ix(s)] = true;
  for (int phase = 0; phase < plan.phases; ++phase)
    if (full[ix(phase)]) plan.full_phases.push_back(phase);
  plan.last_full_phase = plan.full_phases.empty() ? 0 : plan.full_phases.back();
  const bool chained = !memory.hints.fetch_next.empty();
  for (int r = 0; r < p.inputs; ++r)
    plan.fetched[ix(r)] = plan.reg(r).layout == Layout::full && (!chained || memory.hints.fetch_next[ix(r)]);
  if (chained) plan.fetch_distance = p.rows_of_segment() * p.columns * 4;
}

// As many rows as a vector has lanes, so that what is per row costs one instruction for all; fewer where the rows would
// not stay in the first-level cache from one pass over them to the next.
std::int64_t rows_of_block(const Plan& plan) {
  if (plan.flat) return 1;
  if (plan.last_full_phase == 0) return plan.lanes;
  const RowProgram& p = *plan.program;
  std::int64_t values = 0;  // that more than one pass touches
  for (std::size_t r = 0; r < p.registers.size(); ++r) {
    const int made = plan.op_of[r] < 0 ? 0 : plan.phase[ix(plan.op_of[r])];
    if (p.registers[r].layout == Layout::full && plan.last_phase[r] > made) ++values;
  }
  std::int64_t rows = plan.lanes;
  while (rows > 1 && rows * values * plan.columns * 4 > kNearCache) rows /= 2;
  return rows;
}

// Repeats ops in the program (recompute.h). rows: of a block, 0 where the program decides. Sums over rows are cut by
// it, so neither it nor whether there is code at all depends on what lies where.
Plan make_plan(RowProgram& p, const RowMemory& memory, bool wide, std::int64_t rows) {
  Plan plan;
  plan.program = &p;
  plan.wide = wide;
  plan.lanes = wide ? 16 : 8;
  plan.flat = p.rows == 1;
  plan.cut = std::any_of(p.registers.begin(), p.registers.begin() + p.inputs,
                         [](const auto& r) { return r.layout == Layout::segment; });
  plan.columns = plan.flat ? std::min(p.columns, kStretch) : p.columns;
  plan.base = memory.base;
  if (!plan.flat && p.columns > kMaxGeneratedColumns) throw NotGenerated{};
  for (const auto& r : p.registers)
    if (r.dtype == DType::f64 || (r.dtype == DType::bf16 && !wide)) throw NotGenerated{};

  std::vector<int> ready(p.registers.size(), 0);  // phase from which a register can be read
  for (const RowProgram::Op& op : p.code) {
    const Layout out = p.registers[ix(op.out)].layout, in = p.registers[ix(op.in[0])].layout;
    const bool fits = op.kind == Kind::elementwise
                          ? (out == Layout::full || out == Layout::row) && generated(row_kernel(op.op))
                      : op.kind == Kind::expand     ? out == Layout::full
                      : op.kind == Kind::gather     ? !plan.flat
                      : op.kind == Kind::reduce_row ? in == Layout::full && out == Layout::row
                      : op.kind == Kind::reduce_columns || op.kind == Kind::reduce_segments
                          ? in == Layout::full && !plan.flat
                          : in == Layout::full || (in == Layout::row && !plan.flat);
    if (!fits || (plan.flat && op.kind == Kind::reduce_row)) throw NotGenerated{};
    int phase = 0;
    for (const int r : op.in) phase = std::max(phase, ready[ix(r)]);
    plan.phase.push_back(phase);
    ready[ix(op.out)] = op.kind == Kind::reduce_row ? phase + 1 : phase;
    plan.phases = std::max(plan.phases, ready[ix(op.out)] + 1);
  }
  plan.place = recompute_cheap(p, plan.phase);
  const std::size_t registers = p.registers.size(), ops = p.code.size();
  plan.base.resize(registers, nullptr);
  plan.op_of.assign(registers, -1);
  plan.store_phase.assign(registers, -1), plan.last_phase.assign(registers, -1);
  plan.store_last.assign(registers, false);
  plan.aside.assign(registers, -1), plan.row_buffer.assign(registers, -1), plan.row_place.assign(registers, -1);
  plan.column_sum.assign(ops, -1), plan.fold.assign(ops, -1);
  for (std::size_t i = 0; i < ops; ++i) {
    const RowProgram::Op& op = p.code[i];
    for (const int r : op.in) plan.last_phase[ix(r)] = std::max(plan.last_phase[ix(r)], plan.phase[i]);
    plan.kernels.push_back(row_kernel(op.op));
    plan.op_of[ix(op.out)] = static_cast<int>(i);
    if (RowProgram::over_rows(op.kind)) {
      plan.fold[i] = static_cast<std::int64_t>(plan.folds);
      plan.folds += op.kind == Kind::reduce_all ? 8 : ix(round_up(p.columns, 16));
    }
  }
  // An output over an input waits until the input was read for the last time.
  for (const int r : p.outputs) {
    if (plan.op_of[ix(r)] < 0) throw NotGenerated{};
    if (p.registers[ix(r)].layout != Layout::full) continue;
    int phase = plan.phase[ix(plan.op_of[ix(r)])];
    for (int i = 0; i < p.inputs; ++i)
      if (plan.base[ix(i)] != nullptr && plan.base[ix(i)] == plan.base[ix(r)]) {
        plan.store_last[ix(r)] = true;
        phase = std::max(phase, plan.last_phase[ix(i)]);
      }
    plan.store_phase[ix(r)] = phase;
  }
  plan_memory_traffic(plan, memory);
  plan.rows = rows > 0 ? rows : std::min(rows_of_block(plan), p.rows_of_segment());
  plan.aside_row = round_up(plan.columns, plan.lanes) * 4;
  int last_read = 0;  // phase in which an output that lies over an operand is stored at the latest
  for (int i = 0; i < p.inputs; ++i)
    if (plan.reg(i).layout == Layout::full) last_read = std::max(last_read, plan.last_phase[ix(i)]);
  std::size_t asides = 0, most_asides = 0;  // bytes; were every output to lie over such an operand
  for (std::size_t r = 0; r < registers; ++r) {
    const int op = plan.op_of[r];
    if (op < 0) continue;
    const Layout layout = p.registers[r].layout;
    if (p.code[ix(op)].kind == Kind::gather) {
      plan.row_place[r] = static_cast<std::int64_t>(plan.scratch);
      plan.scratch += 64;
    } else if (layout == Layout::row) {
      plan.row_buffer[r] = static_cast<std::int64_t>(plan.scratch);
      plan.scratch += 64;
    } else if (layout == Layout::full) {
      const int made = plan.phase[ix(op)];
      const bool output = plan.store_phase[r] >= 0, in_memory = plan.store_phase[r] == made;
      const std::size_t bytes = ix(plan.aside_row * plan.rows);
      if (output ? last_read > made : plan.last_phase[r] > made) most_asides += bytes;
      if ((plan.last_phase[r] > made && !in_memory) || plan.store_phase[r] > made) {
        plan.aside[r] = static_cast<std::int64_t>(plan.scratch);
        plan.scratch += bytes;
        asides += bytes;
      }
    }
  }
  for (std::size_t i = 0; i < ops; ++i)
    if (p.code[i].kind == Kind::reduce_columns || p.code[i].kind == Kind::reduce_segments) {
      plan.column_sum[i] = static_cast<std::int64_t>(plan.scratch);
      plan.scratch += align64(ix(plan.aside_row));
    }
  plan.scratch = align64(plan.scratch);
  if (rows == 0 && plan.scratch - asides + most_asides > kMostScratch) throw NotGenerated{};
  // The median of the arrays' addresses: constants and variables may lie far from the arena.
  std::vector<std::byte*> all;
  for (std::byte* b : plan.base)
    if (b != nullptr) all.push_back(b);
  std::sort(all.begin(), all.end());
  plan.common = all.empty() ? nullptr : all[all.size() / 2];
  return plan;
}

class RowJitProgram final : public RowJit {
 public:
  RowJitProgram(const RowProgram& program, const RowMemory& memory, bool wide, std::int64_t rows = 0)
      : program_(program), plan_(make_plan(program_, memory, wide, rows)) {
    const std::int64_t all = plan_.flat ? program_.columns : program_.rows_of_segment();
    per_block_ = plan_.flat ? plan_.columns : plan_.rows;
    blocks_ = ceil_div(all, per_block_);
    const std::int64_t last = all - (blocks_ - 1) * per_block_;
    const auto make = [&](std::int64_t extent) {
      return plan_.flat ? std::make_unique<Generator>(plan_, 1, extent)
                        : std::make_unique<Generator>(plan_, extent, program_.columns);
    };
    if (blocks_ > 1 || last == per_block_) whole_ = make(per_block_);
    if (last != per_block_) last_ = make(last);
  }

  std::int64_t blocks() const override { return blocks_ * program_.segments; }
  std::size_t scratch_bytes() const override { return plan_.scratch; }
  std::size_t fold_doubles() const override { return plan_.folds; }
  std::size_t fold_of(std::size_t op) const override { return ix(plan_.fold[plan_.place[op]]); }

  void run(std::int64_t block, std::byte* scratch, double* folds) const override {
    const std::int64_t segment = program_.segments == 1 ? 0 : block / blocks_, of_segment = block - segment * blocks_;
    const std::int64_t first = segment * program_.rows_of_segment() + of_segment * per_block_;
    const Args args{plan_.flat ? first * 4 : first * program_.columns * 4, plan_.flat ? 0 : first * 4,
                    segment * program_.columns * 4, scratch, folds};
    (of_segment == blocks_ - 1 && last_ != nullptr ? last_ : whole_)->run(args);
  }

  std::int64_t rows() const { return plan_.rows; }
  std::string detail() const override {
    return fmt::format("{} code of {} bytes", plan_.wide ? "avx512" : "avx2",
                       (whole_ ? whole_->getSize() : 0) + (last_ ? last_->getSize() : 0));
  }

 private:
  RowProgram program_;
  const Plan plan_;
  std::int64_t per_block_ = 1, blocks_ = 0;  // rows of a block; blocks of a segment
  std::unique_ptr<Generator> whole_, last_;
};

}  // namespace

std::unique_ptr<RowJit> make_program(const RowProgram& program, const RowMemory& memory, bool avx512) {
  try {
    // A part has code where the whole has, and blocks of as many rows.
    const std::int64_t rows = program.whole ? RowJitProgram(*program.whole, {}, avx512).rows() : 0;
    return std::make_unique<RowJitProgram>(program, memory, avx512, rows);
  } catch (const NotGenerated&) {
    return nullptr;
  } catch (const Xbyak::Error&) {  // too long, or the system gives no memory for code
    return nullptr;
  }
}

}  // namespace sg::cpu::jit
