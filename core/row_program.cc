#include "core/row_program.h"

#include <fmt/format.h>

namespace sg {
namespace {

std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }

}  // namespace

std::int64_t RowProgram::extent(Layout layout) const {
  switch (layout) {
    case Layout::full:
    case Layout::table:
      return rows * columns;
    case Layout::row:
      return rows;
    case Layout::column:
      return columns;
    case Layout::segment:
      return segments * columns;
    case Layout::scalar:
      break;
  }
  return 1;
}

std::string RowProgram::extents() const {
  if (segments == 1) return fmt::format("{} x {}", rows, columns);
  return fmt::format("{} segments of {} x {}", segments, rows_of_segment(), columns);
}

std::string RowProgram::traffic(const std::function<bool(int)>& counts) const {
  std::size_t read = 0, written = 0;
  for (int r = 0; r < inputs; ++r)
    if (!counts || counts(r)) read += bytes(r);
  for (const int r : outputs) written += bytes(r);
  return fmt::format("reads {} bytes, writes {}", read, written);
}

std::string RowProgram::formula() const {
  static constexpr std::string_view kKinds[] = {"", "expand", "row ", "columns ", "all ", "segments "};
  std::string text;
  for (const Op& op : code) {
    if (op.kind == Kind::gather) {
      text += fmt::format("{}r{} = r{}[r{}]", text.empty() ? "" : "; ", op.out, op.in[0], op.in[1]);
      continue;
    }
    text += fmt::format("{}r{} = {}{}", text.empty() ? "" : "; ", op.out, kKinds[static_cast<std::size_t>(op.kind)],
                        op.kind == Kind::expand ? std::string_view() : op_def(op.op).name);
    for (int i : op.in) text += fmt::format(" r{}", i);
    if (op.kind == Kind::elementwise && !op.attrs.empty()) text += " " + to_string(op.attrs);
  }
  return text;
}

bool is_gather(const Instr& instr) { return op_def(instr.op).moves && instr.inputs.size() == 2; }

RowPart part_of(const RowProgram& program, std::span<const int> wanted, const std::vector<char>& given) {
  std::vector<char> needed(program.registers.size(), 0), is_given(program.registers.size(), 0);
  for (std::size_t k = 0; k < given.size(); ++k)
    if (given[k] != 0) is_given[ix(program.outputs[k])] = 1;
  for (const int k : wanted) {
    needed[ix(program.outputs[ix(k)])] = 1;
    is_given[ix(program.outputs[ix(k)])] = 0;
  }
  for (std::size_t i = program.code.size(); i-- > 0;)
    if (const RowProgram::Op& op = program.code[i]; needed[ix(op.out)] != 0 && is_given[ix(op.out)] == 0)
      for (const int r : op.in) needed[ix(r)] = 1;

  auto part = std::make_shared<RowProgram>();
  part->rows = program.rows, part->columns = program.columns, part->segments = program.segments;
  RowPart result;
  std::vector<int> renumbered(program.registers.size(), -1);
  const auto add = [&](int r) {
    renumbered[ix(r)] = static_cast<int>(part->registers.size());
    part->registers.push_back(program.registers[ix(r)]);
  };
  const auto operand = [&](int r, int which) {
    if (needed[ix(r)] == 0) return;
    add(r);
    result.operands.push_back(which);
  };
  for (int r = 0; r < program.inputs; ++r) operand(r, r);
  for (std::size_t k = 0; k < program.outputs.size(); ++k)
    if (is_given[ix(program.outputs[k])] != 0) operand(program.outputs[k], ~static_cast<int>(k));
  part->inputs = static_cast<int>(part->registers.size());
  for (RowProgram::Op op : program.code) {
    if (needed[ix(op.out)] == 0 || is_given[ix(op.out)] != 0) continue;
    add(op.out);
    for (int& r : op.in) r = renumbered[ix(r)];
    op.out = renumbered[ix(op.out)];
    part->code.push_back(std::move(op));
  }
  for (const int k : wanted) {
    part->outputs.push_back(renumbered[ix(program.outputs[ix(k)])]);
    part->origins.push_back(program.origins[ix(k)]);
  }
  part->whole = program.whole ? program.whole : std::make_shared<const RowProgram>(program);
  result.program = std::move(part);
  return result;
}

bool is_read_across_rows(const Tape& tape, const Instr& region, int input) {
  return is_read_across_rows(tape, tape.row_program(region.attrs.i("program")), region.inputs, input);
}

bool is_read_across_rows(const Tape& tape, const RowProgram& p, std::span<const std::int32_t> inputs, int input) {
  if (p.registers[ix(input)].layout == RowProgram::Layout::table) return true;
  const auto memory_of = [&](std::int32_t v) {
    for (;;) {
      const Instr& maker = tape.instrs()[ix(tape.producer(v))];
      const Role role = op_def(maker.op).role;
      if (role != Role::alias && role != Role::after && role != Role::stop_gradient) return v;
      v = maker.inputs[0];
    }
  };
  const std::int32_t memory = memory_of(inputs[ix(input)]);
  for (std::size_t k = 0; k < inputs.size(); ++k)
    if (memory_of(inputs[k]) == memory && p.registers[k].layout != p.registers[ix(input)].layout) return true;
  return false;
}

}  // namespace sg
