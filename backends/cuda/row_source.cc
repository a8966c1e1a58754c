#include "backends/cuda/row_source.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>

#include "core/bfloat16.h"
#include "ops/op_ids.h"

namespace sg::cuda {
namespace {

using Layout = RowProgram::Layout;
using Kind = RowProgram::Kind;

#define SG_ROW_FUNCTIONS(...) #__VA_ARGS__
constexpr const char* kFunctions =
#include "backends/cuda/kernels/row_functions.inc"
    ;
#undef SG_ROW_FUNCTIONS

constexpr std::int64_t kNarrowIndices = std::int64_t{1} << 30;  // elements; twice that still fits 32 bits with a stride
constexpr int kThreads = 256;                                   // of a block, unless it takes a row of its own
constexpr int kLongRowThreads = 512;                            // of a block whose rows fit no registers
constexpr std::int64_t kMaxParts = 1024;
// Elements of a row in one lane and words of registers for what stays of them; the last in a block of 1024 threads.
constexpr int kUnrolled = 16, kRegisterWords = 48;
constexpr int kMostUnrolled = 32, kFewRegisterWords = 24;
constexpr std::int64_t kElementBlocks = 4096;

std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }
std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t round_up(std::int64_t a, std::int64_t to) { return ceil_div(a, to) * to; }

std::string_view stored_type(DType t) {
  return t == DType::f32 ? "float" : t == DType::f64 ? "double" : t == DType::i32 ? "int" : "bf16";
}
std::string_view value_type(DType t) { return t == DType::bf16 ? "float" : stored_type(t); }
std::size_t value_bytes(DType t) { return t == DType::f64 ? 8 : 4; }

std::string literal(double x, DType t) {
  if (t == DType::i32) return fmt::format("(int){}ll", static_cast<std::int64_t>(x));
  if (t == DType::f64)
    return std::isfinite(x) ? fmt::format("{:a}", x)
                            : fmt::format("__longlong_as_double({:#x}ll)", std::bit_cast<std::int64_t>(x));
  const float f = t == DType::bf16 ? static_cast<float>(BFloat16(x)) : static_cast<float>(x);
  return std::isfinite(f) ? fmt::format("{:a}f", f)
                          : fmt::format("__uint_as_float({:#x}u)", std::bit_cast<std::uint32_t>(f));
}

// Of operands in bf16 these make only numbers that bf16 holds.
bool exact_in_bf16(OpId op) {
  switch (op) {
    case OpId::neg:
    case OpId::abs:
    case OpId::relu:
    case OpId::sign:
    case OpId::where:
    case OpId::minimum:
    case OpId::maximum:
    case OpId::relu_grad:
    case OpId::cast:  // to_bf16 has rounded
      return true;
    default:
      return false;
  }
}

std::string_view reduction(OpId op) { return op == OpId::sum ? "Sum" : op == OpId::reduce_max ? "Max" : "Min"; }

class Writer {
 public:
  explicit Writer(const RowRegion& region) : region_(region), p_(*region.program) {
    plan_phases();
    plan_shape();
  }

  RowSource write() {
    text_ += kFunctions;
    line("\ntypedef {} I;", narrow_ ? "unsigned" : "long long");
    if (by_rows_)
      write_rows();
    else
      write_elements();
    write_sums();
    source_.text = std::move(text_);
    return std::move(source_);
  }

 private:
  const RowProgram::Register& reg(int r) const { return p_.registers[ix(r)]; }
  bool is_input(int r) const { return r < p_.inputs; }
  bool is_constant(int r) const { return is_input(r) && region_.constants[ix(r)].has_value(); }
  const Strided* strided(int r) const {
    return is_input(r) && region_.strided[ix(r)] ? &*region_.strided[ix(r)] : nullptr;
  }
  const RowProgram::Op& maker(int r) const { return p_.code[ix(made_by_[ix(r)])]; }
  bool is_output(int r) const { return std::find(p_.outputs.begin(), p_.outputs.end(), r) != p_.outputs.end(); }
  static bool folds(Kind k) { return RowProgram::over_rows(k); }
  static bool down_columns(Kind k) { return k == Kind::reduce_columns || k == Kind::reduce_segments; }
  // Whether a register has a variable of its own for the whole row, or for the whole kernel.
  bool is_narrow(int r) const {
    return is_constant(r) || reg(r).layout == Layout::row || reg(r).layout == Layout::scalar;
  }

  template <class... A>
  void line(fmt::format_string<A...> format, A&&... a) {
    text_.append(static_cast<std::size_t>(indent_) * 2, ' ');
    text_ += fmt::format(format, std::forward<A>(a)...);
    text_ += '\n';
  }
  template <class... A>
  void open(fmt::format_string<A...> format, A&&... a) {
    line(format, std::forward<A>(a)...);
    ++indent_;
  }
  void close(const char* after = "") {
    --indent_;
    line("}}{}", after);
  }

  // ---- plan

  void plan_phases() {
    const std::size_t registers = p_.registers.size();
    made_by_.assign(registers, -1);
    std::vector<int> ready(registers, 0);
    for (std::size_t i = 0; i < p_.code.size(); ++i) {
      const RowProgram::Op& op = p_.code[i];
      int phase = 0;
      for (const int r : op.in) phase = std::max(phase, ready[ix(r)]);
      phase_.push_back(phase);
      made_by_[ix(op.out)] = static_cast<int>(i);
      ready[ix(op.out)] = phase + (op.kind == Kind::reduce_row ? 1 : 0);
      phases_ = std::max(phases_, ready[ix(op.out)] + 1);
      const Layout out = reg(op.out).layout;
      SG_CHECK(op.kind != Kind::elementwise || out == Layout::full || out == Layout::row, "{}", p_.formula());
      by_rows_ = by_rows_ || op.kind == Kind::reduce_row || down_columns(op.kind);
      cut_ = cut_ || op.kind == Kind::reduce_segments;
      sums_rows_ = sums_rows_ || op.kind == Kind::reduce_row;
    }
    for (const int r : p_.outputs) SG_CHECK(made_by_[ix(r)] >= 0, "{}", p_.formula());
  }

  // What a pass over the row computes, in order, and what it reads.
  struct Pass {
    std::set<int> ops, loads, from_kept;
    bool empty() const { return ops.empty() && loads.empty() && from_kept.empty(); }
  };

  // The pass in which an output of full layout is stored: over an input only when all has been read.
  int store_phase(int r) const { return region_.aliased ? phases_ - 1 : phase_[ix(made_by_[ix(r)])]; }

  // What becomes of a value that an earlier pass made: all are kept, all are made again, or those that cost little are
  // made again from what is kept.
  enum class Later : std::uint8_t { keep, keep_dear, repeat };

  static bool is_dear(OpId op) {
    switch (op) {
      case OpId::pow:
      case OpId::exp:
      case OpId::log:
      case OpId::sin:
      case OpId::cos:
      case OpId::acos:
      case OpId::erf:
      case OpId::tanh:
      case OpId::sigmoid:
      case OpId::softplus:
      case OpId::silu:
      case OpId::gelu:
        return true;
      default:
        return false;
    }
  }

  void need(Pass& pass, int q, int r, Later later, std::set<int>& kept) const {
    if (is_narrow(r)) return;
    if (is_input(r)) {
      pass.loads.insert(r);
      return;
    }
    const int i = made_by_[ix(r)];
    const RowProgram::Op& op = p_.code[ix(i)];
    const bool keep = later == Later::keep || (later == Later::keep_dear && is_dear(op.op));
    if (keep && op.kind == Kind::elementwise && phase_[ix(i)] < q) {
      pass.from_kept.insert(r);
      kept.insert(r);
      return;
    }
    if (!pass.ops.insert(i).second) return;
    for (const int in : op.in) need(pass, q, in, later, kept);
  }

  // The passes over a row, and the values that stay in registers from one to another.
  std::vector<Pass> plan_passes(Later later, std::set<int>& kept) const {
    std::vector<Pass> passes(ix(phases_));
    for (int q = phases_ - 1; q >= 0; --q) {
      Pass& pass = passes[ix(q)];
      for (std::size_t i = 0; i < p_.code.size(); ++i) {
        const RowProgram::Op& op = p_.code[i];
        const bool reads_full = (op.kind == Kind::reduce_row || folds(op.kind)) && reg(op.in[0]).layout != Layout::row;
        if (phase_[i] == q && reads_full) {
          pass.ops.insert(static_cast<int>(i));
          need(pass, q, op.in[0], later, kept);
        }
      }
      for (const int r : p_.outputs)
        if (reg(r).layout == Layout::full && store_phase(r) == q) need(pass, q, r, later, kept);
      for (const int r : std::set<int>(kept))
        if (phase_[ix(made_by_[ix(r)])] == q) need(pass, q, r, later, kept);
    }
    if (later == Later::repeat) return passes;
    std::set<int> seen;
    for (Pass& pass : passes)
      for (auto it = pass.loads.begin(); it != pass.loads.end();) {
        const int r = *it;
        if (reg(r).layout == Layout::full && !seen.insert(r).second) {
          kept.insert(r);
          pass.from_kept.insert(r);
          it = pass.loads.erase(it);
        } else {
          ++it;
        }
      }
    return passes;
  }

  void plan_shape() {
    const std::int64_t rows = p_.rows, columns = p_.columns, elements = rows * columns;
    narrow_ = elements < kNarrowIndices;
    std::size_t widest = 2;
    for (const auto& r : p_.registers)
      if (r.layout == Layout::full) widest = std::max(widest, size_of(r.dtype));
    vector_ = 16 / static_cast<int>(widest);
    if (!region_.aligned || ((by_rows_ || rows > 1) && columns % vector_ != 0)) vector_ = 1;
    for (int r = 0; r < p_.inputs; ++r)
      if (!is_constant(r)) source_.inputs.push_back(r);
    if (by_rows_)
      plan_rows();
    else
      plan_elements();
    for (const RowProgram::Op& op : p_.code)
      if (folds(op.kind)) {
        RowSource::Fold fold{op.out, 1, source_.blocks, value_bytes(reg(op.out).dtype)};
        if (down_columns(op.kind)) fold.count = columns, fold.parts = parts_;
        if (op.kind == Kind::reduce_segments) fold.parts = parts_of_segment_, fold.segments = p_.segments;
        source_.folds.push_back(fold);
      }
    for (const auto& f : source_.folds) source_.sum_blocks += ceil_div(f.count, 32) * f.segments;
  }

  bool has_folds() const {
    return std::any_of(p_.code.begin(), p_.code.end(), [](const auto& op) { return folds(op.kind); });
  }

  void plan_elements() {
    const std::int64_t elements = p_.rows * p_.columns, unit = kThreads * vector_;
    source_.extent = elements;
    source_.block = kThreads;
    if (has_folds()) {
      source_.piece = round_up(std::max(ceil_div(elements, kMaxParts), 4 * unit), unit);
      source_.blocks = ceil_div(elements, source_.piece);
    } else {
      source_.blocks = std::clamp<std::int64_t>(ceil_div(elements, unit), 1, kElementBlocks);
    }
    source_.how = fmt::format("by elements, {} at a time", vector_);
    std::set<int> kept;
    passes_ = plan_passes(Later::repeat, kept);
  }

  std::size_t words_of(const std::set<int>& registers) const {
    std::size_t words = 0;
    for (const int r : registers) words += value_bytes(reg(r).dtype) / 4;
    return words;
  }

  void plan_rows() {
    const std::int64_t rows = p_.rows, columns = p_.columns;
    const auto vectors = ceil_div(columns, vector_);
    bool rereads = false;
    const auto lanes_for = [&](int most) {
      return static_cast<int>(std::min<std::int64_t>(most, std::bit_ceil(static_cast<std::uint64_t>(vectors))));
    };
    if (!sums_rows_) {
      lanes_ = lanes_for(kThreads), steps_ = 1;
      tiles_ = ceil_div(vectors, lanes_);
      passes_ = plan_passes(Later::repeat, kept_);
    } else {
      // Of two ways the one that needs fewer registers.
      std::set<int> fewer;
      auto other = plan_passes(Later::keep_dear, fewer);
      passes_ = plan_passes(Later::keep, kept_);
      if (words_of(fewer) < words_of(kept_)) passes_ = std::move(other), kept_ = fewer;
      std::size_t words = words_of(kept_);
      for (const RowProgram::Op& op : p_.code)
        if (down_columns(op.kind)) words += value_bytes(reg(op.out).dtype) / 4;
      const auto steps_with = [&](int lanes) {
        return static_cast<int>(std::min<std::int64_t>(ceil_div(vectors, lanes), 1 << 20));
      };
      const auto fits = [&](int lanes) {
        const int each = steps_with(lanes) * vector_;
        const bool most = lanes == 1024;
        return each <= (most ? kMostUnrolled : kUnrolled) &&
               each * static_cast<int>(words) <= (most ? kFewRegisterWords : kRegisterWords);
      };
      lanes_ = lanes_for(32);
      if (words == 0) {
        if (columns > 1024) lanes_ = columns > 8192 ? kLongRowThreads : kThreads;
        again_ = true;
      } else {
        while (lanes_ < 1024 && !fits(lanes_)) lanes_ *= 2;
        again_ = !fits(lanes_);
        if (again_)
          lanes_ = kLongRowThreads, rereads = !kept_.empty(), kept_.clear(),
          passes_ = plan_passes(Later::repeat, kept_);
      }
      steps_ = again_ ? 0 : steps_with(lanes_);
    }
    threads_ = std::max(lanes_, lanes_ <= 32 || !sums_rows_ ? kThreads : lanes_);
    at_once_ = threads_ / lanes_;
    source_.block = static_cast<unsigned>(threads_);
    source_.extent = rows;
    source_.piece = at_once_;
    const std::int64_t runs = cut_ ? p_.segments : 1, run = rows / runs;
    if (has_folds())
      source_.piece = round_up(ceil_div(run, std::max<std::int64_t>(kMaxParts / tiles_ / runs, 1)), at_once_);
    parts_of_segment_ = ceil_div(run, source_.piece);
    parts_ = runs * parts_of_segment_;
    source_.blocks = parts_ * tiles_;
    source_.how = !sums_rows_    ? fmt::format("{} rows at a time, {} lanes each", at_once_, lanes_)
                  : lanes_ > 32  ? fmt::format("a block of {} per row", lanes_)
                  : lanes_ == 32 ? std::string("a warp per row")
                                 : fmt::format("{} lanes per row", lanes_);
    if (sums_rows_) source_.how += !kept_.empty() ? ", values kept" : rereads ? ", values made again" : "";
  }

  // ---- text

  void write_signature(const char* kernel) {
    std::string parameters;
    const auto add = [&](const std::string& p) { parameters += (parameters.empty() ? "" : ", ") + p; };
    const char* restricted = region_.aliased ? "" : " __restrict__";
    for (const int r : source_.inputs) add(fmt::format("const {}*{} in{}", stored_type(reg(r).dtype), restricted, r));
    for (const int r : p_.outputs)
      if (!folds(maker(r).kind)) add(fmt::format("{}*{} out{}", stored_type(reg(r).dtype), restricted, r));
    for (const auto& f : source_.folds)
      add(fmt::format("{}*{} part{}", value_type(reg(f.out).dtype), restricted, f.out));
    add("long long extent"), add("long long piece");
    open("extern \"C\" __global__ void __launch_bounds__({}, 1) {}({}) {{", source_.block, kernel, parameters);
    for (int r = 0; r < p_.inputs; ++r) {
      const auto type = value_type(reg(r).dtype);
      if (is_constant(r))
        line("const {} r{} = {};", type, r, literal(*region_.constants[ix(r)], reg(r).dtype));
      else if (reg(r).layout == Layout::scalar && strided(r) == nullptr)
        line("const {} r{} = value(*in{});", type, r, r);
    }
  }

  // Where a strided operand of the row begins.
  void write_row_offset(int r) {
    const Strided& s = *strided(r);
    std::string offset = "0";
    std::string rest = "row";
    for (std::size_t k = 0; k < s.axes.size(); ++k) {
      const bool last = k + 1 == s.axes.size();
      const std::string digit = last ? rest : fmt::format("({} % {})", rest, s.axes[k].extent);
      if (s.axes[k].stride != 0) offset += fmt::format(" + {} * (I){}", digit, s.axes[k].stride);
      rest = fmt::format("({} / {})", rest, s.axes[k].extent);
    }
    line("const I at{} = {};", r, offset);
  }

  void write_row_inputs(const char* live) {
    for (const int r : source_.inputs) {
      if (strided(r) != nullptr)
        write_row_offset(r);
      else if (reg(r).layout == Layout::row)
        line("const {0} r{1} = {2}value(in{1}[row]){3};", value_type(reg(r).dtype), r, live, *live != 0 ? " : 0" : "");
    }
  }

  std::string call(const RowProgram::Op& op) const {
    const DType out = reg(op.out).dtype;
    const auto arguments = [&] {
      std::string text;
      for (const int r : op.in) text += fmt::format("{}r{}", text.empty() ? "" : ", ", r);
      for (const char* name : {"slope", "lo", "hi"})
        if (op.attrs.has(name)) text += ", " + literal(op.attrs.d(name), out == DType::bf16 ? DType::f32 : out);
      return text;
    };
    std::string text;
    if (op.kind == Kind::expand)
      return fmt::format("r{}", op.in[0]);
    else if (op.op == OpId::cast)
      text = fmt::format("to_{}(r{})", to_string(out), op.in[0]);
    else
      text = fmt::format("op_{}({})", op_def(op.op).name, arguments());
    return out == DType::bf16 && !exact_in_bf16(op.op) ? fmt::format("rounded({})", text) : text;
  }

  // The body of a pass for V elements from column c, element i; slot: where kept values of these are.
  void write_body(int q, const char* slot) {
    const Pass& pass = passes_[ix(q)];
    for (const int r : pass.loads) {
      if (strided(r) != nullptr) continue;
      line("const Vec<{0}, V> v{1} = *reinterpret_cast<const Vec<{0}, V>*>(in{1} + {2});", stored_type(reg(r).dtype), r,
           reg(r).layout == Layout::column ? "c" : "i");
    }
    std::vector<int> stores;
    for (const int r : p_.outputs)
      if (reg(r).layout == Layout::full && store_phase(r) == q) stores.push_back(r);
    for (const int r : stores) line("Vec<{}, V> w{};", stored_type(reg(r).dtype), r);
    line("#pragma unroll");
    open("for (int v = 0; v < V; ++v) {{");
    for (const int r : pass.loads) {
      const auto type = value_type(reg(r).dtype);
      if (const Strided* s = strided(r); s != nullptr)
        line("const {0} r{1} = value(in{1}[at{1}{2}]);", type, r, s->has_columns ? " + c + v" : "");
      else
        line("const {0} r{1} = value(v{1}.at[v]);", type, r);
      if (kept_.contains(r)) line("kept{0}[{1} + v] = r{0};", r, slot);
    }
    for (const int r : pass.from_kept) line("const {0} r{1} = kept{1}[{2} + v];", value_type(reg(r).dtype), r, slot);
    for (const int i : pass.ops) {
      const RowProgram::Op& op = p_.code[ix(i)];
      const int in = op.in[0], out = op.out;
      switch (op.kind) {
        case Kind::reduce_row:
          line("sum{0} = {1}::join(sum{0}, r{2});", out, reduction(op.op), in);
          break;
        case Kind::reduce_all:
          line("sum{0} = op_add(sum{0}, r{1});", out, in);
          break;
        case Kind::reduce_columns:
        case Kind::reduce_segments:
          if (again_)
            line("part{0}[c + v] = row == begin ? r{1} : op_add(part{0}[c + v], r{1});", out, in);
          else
            line("sum{0}[{1} + v] = op_add(sum{0}[{1} + v], r{2});", out, slot, in);
          break;
        default:
          line("const {} r{} = {};", value_type(reg(out).dtype), out, call(op));
          if (kept_.contains(out)) line("kept{0}[{1} + v] = r{0};", out, slot);
      }
    }
    for (const int r : stores) line("put(w{0}.at[v], r{0});", r);
    close();
    for (const int r : stores)
      line("*reinterpret_cast<Vec<{0}, V>*>(out{1} + i) = w{1};", stored_type(reg(r).dtype), r);
  }

  void write_total(const RowProgram::Op& op) {
    line("sum{0} = over_block<Sum, {1}>(sum{0}, reinterpret_cast<{2}*>(shared));", op.out, source_.block / 32,
         value_type(reg(op.out).dtype));
    line("if (threadIdx.x == 0) part{0}[blockIdx.x] = sum{0};", op.out);
  }

  void write_elements() {
    write_signature(RowSource::kKernel);
    for (const RowProgram::Op& op : p_.code)
      if (folds(op.kind)) line("{} sum{} = 0;", value_type(reg(op.out).dtype), op.out);
    open("const auto body = [&](auto width, const I i) {{");
    line("constexpr int V = decltype(width)::value;");
    if (p_.rows > 1) {
      line("const I row = i / {};", p_.columns);
      line("[[maybe_unused]] const I c = i - row * {};", p_.columns);
      write_row_inputs("");
    }
    write_body(0, "");
    close(";");
    const bool parts = has_folds();
    line("const I begin = {};", parts ? "(I)blockIdx.x * (I)piece" : "0");
    line("const I left = (I)extent - begin;");
    line("const I n = {};", parts ? "left < (I)piece ? left : (I)piece" : "left");
    line("const I stride = {}{};", parts ? "" : "(I)gridDim.x * ", kThreads);
    line("const I first = {}threadIdx.x;", parts ? "" : fmt::format("(I)blockIdx.x * {} + ", kThreads));
    line("for (I k = first; k < n / {0}; k += stride) body(Width<{0}>(), begin + k * {0});", vector_);
    if (vector_ > 1)
      line("for (I k = n / {0} * {0} + first; k < n; k += stride) body(Width<1>(), begin + k);", vector_);
    if (parts) line("__shared__ double shared[{}];", kThreads / 32);
    for (const RowProgram::Op& op : p_.code)
      if (folds(op.kind)) write_total(op);
    close();
  }

  void write_row_stage(int q) {
    for (std::size_t i = 0; i < p_.code.size(); ++i) {
      const RowProgram::Op& op = p_.code[i];
      if (phase_[i] != q) continue;
      if (op.kind == Kind::elementwise && reg(op.out).layout == Layout::row)
        line("const {} r{} = {};", value_type(reg(op.out).dtype), op.out, call(op));
      if (op.kind == Kind::reduce_all && reg(op.in[0]).layout == Layout::row)
        line("if ({2}lane == 0) sum{0} = op_add(sum{0}, r{1});", op.out, op.in[0], at_once_ > 1 ? "live && " : "");
    }
  }

  void write_pass(int q) {
    const auto results = [&](auto&& f) {
      for (std::size_t i = 0; i < p_.code.size(); ++i)
        if (phase_[i] == q && p_.code[i].kind == Kind::reduce_row) f(p_.code[i]);
    };
    results([&](const RowProgram::Op& op) {
      const auto type = value_type(reg(op.out).dtype);
      line("{0} sum{1} = {2}::start({0}());", type, op.out, reduction(op.op));
    });
    if (!passes_[ix(q)].empty()) {
      const bool uneven = again_ || tiles_ * steps_ * lanes_ * vector_ != p_.columns;
      std::string guard = at_once_ > 1 ? "live" : "";
      if (again_) {
        if (!guard.empty()) open("if ({}) {{", guard);
        open("for (I c = lane * {0}; c < {1}; c += {2}) {{", vector_, p_.columns, lanes_ * vector_);
        line("[[maybe_unused]] const I i = row * {} + c;", p_.columns);
        write_body(q, "");
        close();
        if (!guard.empty()) close();
      } else {
        line("#pragma unroll");
        open("for (int k = 0; k < {}; ++k) {{", steps_);
        line("const I c = {}(k * {} + lane) * {};", tiles_ > 1 ? fmt::format("tile * {} + ", lanes_ * vector_) : "",
             lanes_, vector_);
        if (uneven) guard += fmt::format("{}c < {}", guard.empty() ? "" : " && ", p_.columns);
        open("{} {{", guard.empty() ? "" : fmt::format("if ({})", guard));
        line("[[maybe_unused]] const I i = row * {} + c;", p_.columns);
        write_body(q, fmt::format("k * {}", vector_).c_str());
        close();
        close();
      }
    }
    results([&](const RowProgram::Op& op) {
      const DType t = reg(op.out).dtype;
      const std::string total = lanes_ > 32
                                    ? fmt::format("over_block<{}, {}>(sum{}, reinterpret_cast<{}*>(shared))",
                                                  reduction(op.op), lanes_ / 32, op.out, value_type(t))
                                    : fmt::format("over_lanes<{}, {}>(sum{})", reduction(op.op), lanes_, op.out);
      line("const {} r{} = {};", value_type(t), op.out, t == DType::bf16 ? "rounded(" + total + ")" : total);
    });
  }

  void write_rows() {
    write_signature(RowSource::kKernel);
    line("constexpr int V = {};", vector_);
    if (lanes_ == threads_)
      line("const int lane = threadIdx.x;");
    else
      line("const int lane = threadIdx.x % {0}, group = threadIdx.x / {0};", lanes_);
    const int slots = steps_ * vector_;
    bool over_all = false, over_columns = false;
    for (const RowProgram::Op& op : p_.code) {
      const auto type = value_type(reg(op.out).dtype);
      if (op.kind == Kind::reduce_all) line("{} sum{} = 0;", type, op.out), over_all = true;
      if (!down_columns(op.kind)) continue;
      over_columns = true;
      if (again_)
        line("part{} += (long long)blockIdx.x * {};", op.out, p_.columns);
      else
        line("{} sum{}[{}] = {{}};", type, op.out, slots);
    }
    const bool combines = over_columns && !again_ && at_once_ > 1;
    const int tile = lanes_ * steps_ * vector_;
    std::size_t numbers = over_all || lanes_ > 32 ? 32 : 0;
    if (combines) numbers = std::max<std::size_t>(numbers, ix(at_once_) * ix(tile) / (has_double() ? 1 : 2));
    if (numbers > 0) line("__shared__ double shared[{}];", numbers);
    if (tiles_ > 1)
      line("const I tile = blockIdx.x % {0}, part = blockIdx.x / {0};", tiles_);
    else
      line("const I part = blockIdx.x;");
    if (cut_) {
      line("const I stop = (part / {0} + 1) * (I){1};", parts_of_segment_, p_.rows_of_segment());
      line("const I begin = stop - (I){1} + part % {0} * (I)piece;", parts_of_segment_, p_.rows_of_segment());
    } else {
      line("const I stop = (I)extent, begin = part * (I)piece;");
    }
    line("const I end = stop - begin < (I)piece ? stop : begin + (I)piece;");
    open("for (I first = begin; first < end; first += {}) {{", at_once_);
    if (at_once_ > 1) {
      line("const I row = first + group;");
      line("const bool live = row < end;");
    } else {
      line("const I row = first;");
    }
    write_row_inputs(at_once_ > 1 ? "live ? " : "");
    for (const int r : kept_) line("{} kept{}[{}];", value_type(reg(r).dtype), r, slots);
    for (int q = 0; q < phases_; ++q) {
      write_row_stage(q);
      write_pass(q);
    }
    for (const int r : p_.outputs)
      if (reg(r).layout == Layout::row)
        line("if ({1}lane == 0) put(out{0}[row], r{0});", r, at_once_ > 1 ? "live && " : "");
    close();
    for (const RowProgram::Op& op : p_.code) {
      if (op.kind == Kind::reduce_all) write_total(op);
      if (down_columns(op.kind) && !again_) write_columns(op, combines, tile);
    }
    close();
  }

  // What each lane summed of its columns goes to the block's part; first over the groups of the block, in their order.
  void write_columns(const RowProgram::Op& op, bool combines, int tile) {
    const std::string column = fmt::format("(k / {0} * {1} + lane) * {0} + k % {0}", vector_, lanes_);
    const std::string base = tiles_ > 1 ? fmt::format("tile * {} + ", tile) : "";
    const std::string part = fmt::format("part{}[(long long)part * {} + ", op.out, p_.columns);
    const auto type = value_type(reg(op.out).dtype);
    if (!combines) {
      line("#pragma unroll");
      open("for (int k = 0; k < {}; ++k) {{", steps_ * vector_);
      line("const I c = {}{};", base, column);
      line("if (c < {}) {}c] = sum{}[k];", p_.columns, part, op.out);
      close();
      return;
    }
    open("{{");
    line("{0}* const all = reinterpret_cast<{0}*>(shared);", type);
    line("__syncthreads();");
    line("#pragma unroll");
    line("for (int k = 0; k < {}; ++k) all[group * {} + {}] = sum{}[k];", steps_ * vector_, tile, column, op.out);
    line("__syncthreads();");
    open("for (int k = threadIdx.x; k < {}; k += {}) {{", tile, threads_);
    line("{} total = all[k];", type);
    line("for (int g = 1; g < {}; ++g) total = op_add(total, all[g * {} + k]);", at_once_, tile);
    line("const I c = {}k;", base);
    line("if (c < {}) {}c] = total;", p_.columns, part);
    close();
    close();
  }

  bool has_double() const {
    return std::any_of(p_.registers.begin(), p_.registers.end(), [](const auto& r) { return r.dtype == DType::f64; });
  }

  void write_sums() {
    if (source_.folds.empty()) return;
    std::string parameters;
    for (const auto& f : source_.folds)
      parameters += fmt::format("{0}const {1}* __restrict__ part{2}, {3}* __restrict__ out{2}, int parts{2}",
                                parameters.empty() ? "" : ", ", value_type(reg(f.out).dtype), f.out,
                                stored_type(reg(f.out).dtype));
    open("extern \"C\" __global__ void __launch_bounds__(256) {}({}) {{", RowSource::kSums, parameters);
    std::int64_t first = 0;
    for (const auto& f : source_.folds) {
      const std::int64_t of_segment = ceil_div(f.count, 32), blocks = of_segment * f.segments;
      if (!down_columns(maker(f.out).kind)) {
        line("if (blockIdx.x == {0}) add_up(part{1}, out{1}, parts{1});", first, f.out);
      } else {
        open("if (blockIdx.x >= {0} && blockIdx.x < {1}) {{", first, first + blocks);
        line("const long long k = blockIdx.x - {0}, s = k / {1};", first, of_segment);
        line("add_up_columns(part{0} + s * parts{0} * {1}, out{0} + s * {1}, {1}, parts{0}, k % {2} * 32);", f.out,
             f.count, of_segment);
        close();
      }
      first += blocks;
    }
    close();
  }

  const RowRegion& region_;
  const RowProgram& p_;
  RowSource source_;
  std::string text_;
  int indent_ = 0;

  std::vector<int> made_by_, phase_;
  int phases_ = 1;
  bool by_rows_ = false, sums_rows_ = false, narrow_ = true;
  bool cut_ = false;  // sums over segments: no block has rows of two
  int vector_ = 1;
  // By rows: lanes of a row, vectors that each takes of it, threads of a block, rows of a block at a time.
  int lanes_ = 1, steps_ = 1, threads_ = kThreads, at_once_ = 1;
  std::int64_t tiles_ = 1, parts_ = 1, parts_of_segment_ = 1;  // of columns; of rows
  bool again_ = false;                                         // a loop over the row for each pass, and nothing kept
  std::set<int> kept_;
  std::vector<Pass> passes_;
};

}  // namespace

RowSource row_source(const RowRegion& region) { return Writer(region).write(); }

}  // namespace sg::cuda
