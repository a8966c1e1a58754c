// Row programs on the GPU: a fused region, or one elementwise instruction as a region of one op, as generated text
// through NVRTC (row_source.h, jit.h), or without NVRTC by the interpreter kernel (kernels/row_interpreter.cu).
#include <algorithm>
#include <array>
#include <cstring>

#include "backends/cuda/jit.h"
#include "backends/cuda/kernels/row_code.h"
#include "backends/cuda/launches.h"
#include "backends/cuda/row_source.h"
#include "core/row_program.h"

namespace sg::cuda {
namespace {

using Layout = RowProgram::Layout;
using Kind = RowProgram::Kind;

constexpr std::size_t kMaxOperandsOfOp = 3;

std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }

// A region, its operands in memory (by register, null where there is none), and the scratch for its partial sums.
struct Lowered {
  std::shared_ptr<const RowProgram> own;  // of a single instruction
  RowRegion region;
  std::vector<void*> memory;
  const RowProgram& program() const { return *region.program; }
};

// One elementwise instruction. Axes along which all operands behave alike are merged; with at most two left, operands
// have one of the layouts, else some are read by strides.
void describe_single(const LowerCtx& ctx, Lowered& low) {
  struct Axis {
    std::int64_t extent;
    std::array<bool, kMaxOperandsOfOp> has;
  };
  const Instr& instr = ctx.instr();
  const Shape& out = ctx.out_type().shape;
  const std::size_t n = instr.inputs.size();
  SG_CHECK(n <= kMaxOperandsOfOp, "{} has {} operands", op_def(instr.op).name, n);
  std::vector<Axis> axes;
  for (int d = 0; d < out.rank(); ++d) {
    if (out[d] == 1) continue;
    Axis axis{out[d], {}};
    for (std::size_t i = 0; i < n; ++i) {
      const Shape& s = ctx.in_type(static_cast<int>(i)).shape;
      const int own = d - (out.rank() - s.rank());
      axis.has[i] = own >= 0 && s[own] != 1;
    }
    if (!axes.empty() && axes.back().has == axis.has)
      axes.back().extent *= axis.extent;
    else
      axes.push_back(axis);
  }
  auto program = std::make_shared<RowProgram>();
  program->inputs = static_cast<int>(n);
  for (std::size_t k = 0; k < axes.size(); ++k)
    (k + 1 == axes.size() ? program->columns : program->rows) *= axes[k].extent;
  low.region.strided.resize(n);
  for (std::size_t i = 0; i < n; ++i) {
    const auto has = [&](const Axis& a) { return a.has[i]; };
    const bool columns = axes.empty() || has(axes.back());
    const std::size_t outer = axes.empty() ? 0 : axes.size() - 1;
    const auto with = ix(std::count_if(axes.begin(), axes.begin() + static_cast<std::ptrdiff_t>(outer), has));
    Layout layout = Layout::full;
    if (with == 0) {
      layout = outer == 0 && columns ? Layout::full : columns ? Layout::column : Layout::scalar;
    } else if (with == outer) {
      layout = columns ? Layout::full : Layout::row;
    } else {
      Strided s;
      s.has_columns = columns;
      std::int64_t stride = columns ? axes.back().extent : 1;
      for (std::size_t k = outer; k-- > 0;) {
        s.axes.push_back({axes[k].extent, has(axes[k]) ? stride : 0});
        if (has(axes[k])) stride *= axes[k].extent;
      }
      low.region.strided[i] = s;
    }
    program->registers.push_back({layout, ctx.in_type(static_cast<int>(i)).dtype});
  }
  RowProgram::Op op{Kind::elementwise, instr.op, instr.attrs, {}, static_cast<int>(n)};
  for (std::size_t i = 0; i < n; ++i) op.in.push_back(static_cast<int>(i));
  program->registers.push_back({Layout::full, ctx.out_type().dtype});
  program->code.push_back(op);
  program->outputs.push_back(static_cast<int>(n));
  low.own = program;
  low.region.program = program.get();
}

std::optional<double> number_of(const LowerCtx& ctx, std::int32_t value) {
  const Instr& made_by = ctx.tape().instrs()[ix(ctx.tape().producer(value))];
  if (op_def(made_by.op).role != Role::constant || !made_by.attrs.has("value")) return std::nullopt;
  return made_by.attrs.d("value");
}

Lowered describe(LowerCtx& ctx) {
  Lowered low;
  const Instr& instr = ctx.instr();
  if (op_def(instr.op).role == Role::region) {
    low.region.program = &ctx.tape().row_program(ctx.attrs().i("program"));
    low.region.strided.resize(instr.inputs.size());
    const RowProgram& p = low.program();
    for (std::size_t i = 0; i < instr.inputs.size(); ++i)
      if (p.registers[i].layout == Layout::segment)
        low.region.strided[i] = Strided{{{p.rows_of_segment(), 0}, {p.segments, p.columns}}, true};
  } else {
    describe_single(ctx, low);
  }
  const RowProgram& p = low.program();
  low.memory.assign(p.registers.size(), nullptr);
  for (std::size_t i = 0; i < instr.inputs.size(); ++i) {
    low.memory[i] = ctx.data(instr.inputs[i]);
    low.region.constants.push_back(number_of(ctx, instr.inputs[i]));
  }
  for (std::size_t k = 0; k < p.outputs.size(); ++k) low.memory[ix(p.outputs[k])] = ctx.data(instr.outputs[k]);
  for (std::size_t k = 0; k < p.outputs.size(); ++k) {
    const auto* out = static_cast<const std::byte*>(low.memory[ix(p.outputs[k])]);
    low.region.aligned = low.region.aligned && reinterpret_cast<std::uintptr_t>(out) % 16 == 0;
    for (std::size_t i = 0; i < instr.inputs.size(); ++i)
      low.region.aliased = low.region.aliased || (!low.region.constants[i] && low.memory[i] == out);
  }
  for (std::size_t i = 0; i < instr.inputs.size(); ++i)
    if (!low.region.constants[i])
      low.region.aligned = low.region.aligned && reinterpret_cast<std::uintptr_t>(low.memory[i]) % 16 == 0;
  return low;
}

// What explain() says of the operands.
std::string traffic(const Lowered& low) {
  return low.program().traffic([&](int r) { return !low.region.constants[ix(r)] && !low.region.strided[ix(r)]; });
}

class GeneratedStep final : public Step {
 public:
  GeneratedStep(Device& device, LowerCtx& ctx, const Lowered& low) : device_(device), memory_(low.memory) {
    const RowProgram& p = low.program();
    RowSource source = row_source(low.region);
    kernel_ = jit_kernel(device, source.text, RowSource::kKernel);
    SG_CHECK(source.blocks < (std::int64_t{1} << 31), "{} blocks", source.blocks);
    how_ = {{static_cast<unsigned>(source.blocks)}, {source.block}};
    extent_ = source.extent, piece_ = source.piece;
    std::vector<std::size_t> sizes;
    const auto pointer = [&](std::vector<void*>& list, void* p_) {
      list.push_back(p_);
      sizes.push_back(sizeof(void*));
    };
    for (const int r : source.inputs) pointer(parameters_, &memory_[ix(r)]);
    std::size_t bytes = 0;
    parts_.resize(source.folds.size()), counts_.resize(source.folds.size());
    for (const int r : p.outputs)
      if (std::none_of(source.folds.begin(), source.folds.end(), [&](const auto& f) { return f.out == r; }))
        pointer(parameters_, &memory_[ix(r)]);
    for (std::size_t k = 0; k < source.folds.size(); ++k) {
      pointer(parameters_, &parts_[k]);
      offsets_.push_back(bytes);
      bytes += align256(source.folds[k].bytes());
    }
    for (long long* number : {&extent_, &piece_}) {
      parameters_.push_back(number);
      sizes.push_back(sizeof *number);
    }
    device.check_parameters(kernel_, RowSource::kKernel, sizes.data(), sizes.size());
    if (!source.folds.empty()) {
      ctx.scratch(bytes, &scratch_);
      sums_ = jit_kernel(device, source.text, RowSource::kSums);
      sums_how_ = {{static_cast<unsigned>(source.sum_blocks)}, {256}};
      sizes.clear();
      for (std::size_t k = 0; k < source.folds.size(); ++k) {
        pointer(sums_parameters_, &parts_[k]);
        pointer(sums_parameters_, &memory_[ix(source.folds[k].out)]);
        counts_[k] = static_cast<int>(source.folds[k].parts);
        sums_parameters_.push_back(&counts_[k]);
        sizes.push_back(sizeof(int));
      }
      device.check_parameters(sums_, RowSource::kSums, sizes.data(), sizes.size());
    }
    const KernelFacts facts = device.facts(kernel_, RowSource::kKernel);
    detail_ = fmt::format(
        "{} x {}, {} ops, generated, {}, {} blocks of {}, {} registers{}, {} blocks per multiprocessor, {}: {}", p.rows,
        p.columns, p.code.size(), source.how, source.blocks, source.block, facts.registers,
        facts.local_bytes > 0 ? fmt::format(" and {} bytes of local memory", facts.local_bytes) : "",
        device.blocks_per_multiprocessor(kernel_, static_cast<int>(source.block), 0), traffic(low), p.formula());
  }

  void run() override {
    for (std::size_t k = 0; k < parts_.size(); ++k) parts_[k] = static_cast<std::byte*>(scratch_) + offsets_[k];
    device_.launch(kernel_, how_, parameters_.data());
    if (sums_ != nullptr) device_.launch(sums_, sums_how_, sums_parameters_.data());
  }
  std::string detail() const override { return detail_; }

 private:
  Device& device_;
  CUfunction kernel_ = nullptr, sums_ = nullptr;
  Launch how_, sums_how_;
  std::vector<void*> memory_, parts_;  // what parameters point to
  std::vector<int> counts_;
  std::vector<std::size_t> offsets_;
  long long extent_ = 0, piece_ = 0;
  void* scratch_ = nullptr;
  std::vector<void*> parameters_, sums_parameters_;
  std::string detail_;
};

class InterpretedStep final : public Step {
 public:
  InterpretedStep(Device& device, LowerCtx& ctx, const Lowered& low)
      : device_(device),
        kernel_(device, "row_interpreter", "row_interpreter"),
        sums_(device, "row_interpreter", "row_interpreter_sums") {
    const RowProgram& p = low.program();
    const bool flat = p.rows == 1 && std::none_of(p.registers.begin(), p.registers.end(), [](const auto& r) {
                        return r.layout == Layout::row || r.layout == Layout::column;
                      });
    code_.rows = p.rows, code_.columns = p.columns;
    code_.tile = flat ? std::min<std::int64_t>(p.columns, kTile) : 0;
    code_.pieces = flat ? ceil_div(p.columns, kTile) : p.rows;
    const bool cut =
        std::any_of(p.code.begin(), p.code.end(), [](const auto& op) { return op.kind == Kind::reduce_segments; });
    code_.segment = cut ? p.rows_of_segment() : 0;
    const std::int64_t width = flat ? code_.tile : p.columns;

    std::vector<RowRegister> registers;
    const std::vector<std::int64_t> slots = place(p, width);
    for (std::size_t r = 0; r < p.registers.size(); ++r) {
      RowRegister reg;
      reg.type = static_cast<RowType>(p.registers[r].dtype);
      reg.layout = static_cast<RowLayout>(p.registers[r].layout);
      reg.memory = low.memory[r];
      reg.input = static_cast<int>(r) < p.inputs;
      reg.slot = slots[r];
      if (reg.input && low.region.constants[r]) {
        reg.layout = RowLayout::number;
        reg.number = static_cast<double>(p.registers[r].dtype == DType::bf16
                                             ? static_cast<double>(BFloat16(*low.region.constants[r]))
                                             : *low.region.constants[r]);
      } else if (reg.input && low.region.strided[r]) {
        const Strided& s = *low.region.strided[r];
        reg.layout = RowLayout::strided;
        reg.has_columns = s.has_columns;
        reg.axes = static_cast<int>(s.axes.size());
        SG_CHECK(reg.axes <= kRowAxes, "{} axes", reg.axes);
        for (std::size_t k = 0; k < s.axes.size(); ++k)
          reg.extent[k] = s.axes[k].extent, reg.stride[k] = s.axes[k].stride;
      }
      registers.push_back(reg);
    }
    std::vector<RowOp> ops;
    for (const RowProgram::Op& op : p.code) {
      RowOp o;
      o.kind = static_cast<RowKind>(op.kind);
      o.op = static_cast<int>(op.op);
      std::copy(op.in.begin(), op.in.end(), o.in);
      o.out = op.out;
      if (op.attrs.has("slope")) o.p = op.attrs.d("slope");
      if (op.attrs.has("lo")) o.p = op.attrs.d("lo"), o.q = op.attrs.d("hi");
      if (RowProgram::over_rows(op.kind)) {
        o.fold = code_.fold_count;
        o.count = op.kind == Kind::reduce_all ? kRowThreads : p.columns;
        code_.fold_count += o.count;
        if (op.kind != Kind::reduce_segments)
          folds_.push_back({o.fold, o.count, op.kind == Kind::reduce_columns, p.registers[ix(op.out)].dtype,
                            low.memory[ix(op.out)]});
      }
      ops.push_back(o);
    }
    const std::int64_t of_block = (code_.slots + code_.fold_count) * 8;
    std::int64_t blocks = std::clamp<std::int64_t>(kScratch / std::max<std::int64_t>(of_block, 1), 1, kMaxBlocks);
    const std::int64_t unit = cut ? code_.segment : 1, units = code_.pieces / unit;
    code_.pieces_of_block = ceil_div(units, std::min<std::int64_t>(blocks, units)) * unit;
    blocks_ = ceil_div(code_.pieces, code_.pieces_of_block);
    ctx.scratch(static_cast<std::size_t>(std::max<std::int64_t>(of_block * blocks_, 8)), &scratch_);

    const std::size_t register_bytes = align256(registers.size() * sizeof(RowRegister));
    std::vector<std::byte> image(register_bytes + ops.size() * sizeof(RowOp));
    std::memcpy(image.data(), registers.data(), registers.size() * sizeof(RowRegister));
    std::memcpy(image.data() + register_bytes, ops.data(), ops.size() * sizeof(RowOp));
    auto* at = static_cast<std::byte*>(ctx.persistent(image.size()));
    device.upload(at, image.data(), image.size());
    code_.registers = reinterpret_cast<const RowRegister*>(at);
    code_.ops = reinterpret_cast<const RowOp*>(at + register_bytes);
    code_.register_count = static_cast<int>(registers.size());
    code_.op_count = static_cast<int>(ops.size());
    detail_ = fmt::format("{} x {}, {} ops, interpreted, {} blocks, {}: {}", p.rows, p.columns, p.code.size(), blocks_,
                          traffic(low), p.formula());
  }

  void run() override {
    code_.scratch = static_cast<double*>(scratch_);
    code_.folds = code_.scratch + code_.slots * blocks_;
    const auto blocks = static_cast<unsigned>(blocks_);
    kernel_({{blocks}, {kRowThreads}}, code_);
    for (const Fold& f : folds_)
      sums_({{f.columns ? static_cast<unsigned>(ceil_div(f.count, kRowThreads)) : 1}, {kRowThreads}}, code_.folds,
            static_cast<int>(blocks_), code_.fold_count, f.first, f.count, static_cast<int>(f.columns),
            static_cast<int>(f.type), f.out);
  }
  std::string detail() const override { return detail_; }

 private:
  static constexpr std::int64_t kTile = 4096;                       // columns of a piece of a flat program
  static constexpr std::int64_t kScratch = std::int64_t{32} << 20;  // bytes of scratch that many blocks may share
  static constexpr std::int64_t kMaxBlocks = 256;

  struct Fold {
    long long first, count;
    bool columns;
    DType type;
    void* out;
  };

  // Where a block keeps what it makes: slots of 8 bytes per element, given on when the last reader has run.
  std::vector<std::int64_t> place(const RowProgram& p, std::int64_t width) {
    std::vector<int> last(p.registers.size(), -1);
    for (std::size_t i = 0; i < p.code.size(); ++i)
      for (const int r : p.code[i].in) last[ix(r)] = static_cast<int>(i);
    for (const int r : p.outputs) last[ix(r)] = static_cast<int>(p.code.size());
    struct Slot {
      std::int64_t first, size;
      int until;
    };
    std::vector<Slot> slots;
    std::vector<std::int64_t> place(p.registers.size(), -1);
    for (std::size_t i = 0; i < p.code.size(); ++i) {
      const auto r = ix(p.code[i].out);
      if (RowProgram::over_rows(p.code[i].kind)) continue;
      const std::int64_t size = p.registers[r].layout == Layout::full ? width : 1;
      const auto now = static_cast<int>(i);
      auto found =
          std::find_if(slots.begin(), slots.end(), [&](const Slot& s) { return s.size == size && s.until < now; });
      if (found == slots.end()) {
        slots.push_back({code_.slots, size, 0});
        found = slots.end() - 1;
        code_.slots += size;
      }
      found->until = std::max(last[r], now);
      place[r] = found->first;
    }
    return place;
  }

  Device& device_;
  Kernel<RowCode> kernel_;
  Kernel<const double*, int, long long, long long, long long, int, int, void*> sums_;
  RowCode code_;
  std::int64_t blocks_ = 1;
  std::vector<Fold> folds_;
  void* scratch_ = nullptr;
  std::string detail_;
};

}  // namespace

// Sums of bf16 are made in f32 by those who cast before; i32 takes part like the rest.
bool row_op(const Tape& tape, const Instr& instr) {
  const OpDef& def = op_def(instr.op);
  if (instr.op == OpId::broadcast) return true;
  if (def.reduction) return tape.type(instr.inputs[0]).dtype != DType::bf16;
  return def.elementwise;
}

bool lowers_as_row_program(const Tape&, const Instr& instr) {
  const OpDef& def = op_def(instr.op);
  return def.elementwise || def.role == Role::region;
}

bool row_program_in_place(const Tape& tape, const Instr& instr, int i, int output) {
  if (op_def(instr.op).role != Role::region)
    return op_def(instr.op).elementwise && tape.type(instr.inputs[ix(i)]).shape == tape.type(instr.outputs[0]).shape &&
           size_of(tape.type(instr.inputs[ix(i)]).dtype) == size_of(tape.type(instr.outputs[0]).dtype);
  const RowProgram& p = tape.row_program(instr.attrs.i("program"));
  const auto &in = p.registers[ix(i)], &out = p.registers[ix(p.outputs[ix(output)])];
  return in.layout == Layout::full && out.layout == Layout::full && size_of(in.dtype) == size_of(out.dtype) &&
         !is_read_across_rows(tape, instr, i);
}

std::unique_ptr<Step> lower_row_program(Device& device, LowerCtx& ctx) {
  const Lowered low = describe(ctx);
  const bool generated =
      device.tables().no_nvrtc.empty() && low.program().outputs.size() + ix(low.program().inputs) <= kMaxRowOperands;
  if (generated) return std::make_unique<GeneratedStep>(device, ctx, low);
  return std::make_unique<InterpretedStep>(device, ctx, low);
}

}  // namespace sg::cuda
