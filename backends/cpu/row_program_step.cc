// Row programs by interpretation, a tile at a time: each op of the region runs over a tile that stays in the cache, so
// that memory is read and written once however long the region is.
//
// Invariants: tiles and the chunks that threads take depend on the shapes alone, folds are combined in the order of the
// chunks, so results are the same for any number of threads. run() allocates nothing. Registers of type bf16 hold f32
// numbers within a tile, rounded as soon as they are made; they are widened and narrowed at its ends.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "backends/cpu/row_jit.h"
#include "backends/cpu/row_passes.h"
#include "backends/cpu/row_runner.h"
#include "core/row_program.h"

namespace sg::cpu {
namespace {

using Layout = RowProgram::Layout;
using Kind = RowProgram::Kind;

// All temporaries of a tile. They stay in the second-level cache; in the first, tiles of short rows are so small that
// entering a loop costs more than what the cache saves. Measured on the rotation trick, 6272 x 64, over a kernel by
// hand: 2.5 with 32 KiB, 2.1 with 128.
constexpr std::size_t kTileBytes = 128 * 1024;
constexpr Index kMaxTile = 4096, kMinTile = 256;

std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }

// Where the elements of a register are, for the tile that starts at row r, element e.
struct Place {
  enum class Where : std::uint8_t { memory, scratch } where = Where::memory;
  Layout layout = Layout::full;
  std::byte* base = nullptr;  // memory: element 0 of the whole array
  std::size_t offset = 0;     // scratch: bytes into the thread's part
  std::size_t element = 4;
  Index per_element = 0, per_row = 0, per_segment = 0;  // memory: bytes from one of the space to the next
  std::byte* copy_to = nullptr;  // scratch that is an output: written to memory when the tile is done
};

struct Tile {
  Index row, rows, first, count;
  Index segment = 0;
};  // `first`: index of the first element; count = rows x columns

// Doubles of one partial sum of the op's result: a segment's are those of its columns.
Index fold_count(const RowProgram& p, Kind kind) { return kind == Kind::reduce_all ? 1 : p.columns; }

struct Exec {
  RowPass::Form form = RowPass::single;
  Kind kind = Kind::elementwise;
  RowKernel kernel;
  int code = 0;  // of a form that is not `single`
  std::array<int, 4> in{};
  int inputs = 0;
  int out = 0;
  double p = 0, q = 0;
  std::size_t fold = 0;  // doubles before this op's partial in a chunk's part
  bool rounds = false;   // to bf16
  // What an elementwise kernel is called with.
  std::size_t mode = 0;
  bool one_row = false;  // no operand changes from row to row: the tile is one long row
  std::array<Index, 4> stride{};
};

template <class T>
class Interpreter final : public ChunkedRunner<Interpreter<T>, T> {
 public:
  Interpreter(LowerCtx& ctx, const RowProgram& program)
      : p_(program), table_(common_table<T>()), flat_(can_be_cut(p_.whole_or_own())) {
    std::size_t fold_size = 0;
    for (const RowPass& pass : passes_of(p_)) {
      const RowProgram::Op& op = p_.code[ix(pass.op)];
      Exec e{pass.form, op.kind, row_kernel(op.op), pass.code, pass.in, pass.inputs, op.out};
      if (e.kernel.kind == RowKernel::unary) {
        if (op.attrs.has("slope")) e.p = op.attrs.d("slope");
        if (op.attrs.has("lo")) e.p = op.attrs.d("lo"), e.q = op.attrs.d("hi");
      }
      e.rounds = is_bf16(op.out) && op.kind == Kind::elementwise && !exact_in_bf16(e.kernel);
      if (RowProgram::over_rows(op.kind)) {
        e.fold = fold_size;
        fold_size += ix(fold_count(p_, op.kind));
      }
      code_.push_back(e);
    }
    place_registers(ctx);
    std::vector<Fold> sums;
    for (Exec& e : code_) {
      plan_operands(e);
      if (!RowProgram::over_rows(e.kind)) continue;
      sums.push_back({e.fold, fold_count(p_, e.kind), places_[ix(e.out)].base, e.kind == Kind::reduce_segments});
    }
    tiles_of_segment_ = flat_ ? ceil_div(p_.columns, tile_) : ceil_div(p_.rows_of_segment(), tile_rows_);
    this->chunks_ = Chunks<T>(ctx, tiles_of_segment_ * p_.segments, p_.segments, scratch_bytes_, fold_size,
                              std::move(sums), p_.rows * p_.columns * static_cast<Index>(code_.size()), kParallelWork);
  }

  std::string detail() const override {
    return fmt::format("{}, {} ops in {} {}, tiles of {}, {}: {}", p_.extents(), p_.code.size(), code_.size(),
                       code_.size() == 1 ? "pass" : "passes", flat_ ? tile_ : tile_rows_ * p_.columns, p_.traffic(),
                       p_.formula());
  }

  void run_piece(Index k, std::byte* scratch, double* folds) const {
    Tile t{};
    if (flat_) {
      t = {0, 1, k * tile_, std::min(tile_, p_.columns - k * tile_)};
    } else {
      const Index before = k % tiles_of_segment_ * tile_rows_;
      t.segment = k / tiles_of_segment_;
      t.row = t.segment * p_.rows_of_segment() + before;
      t.rows = std::min(tile_rows_, p_.rows_of_segment() - before);
      t.first = t.row * p_.columns;
      t.count = t.rows * p_.columns;
    }
    for (const auto& [reg, from] : widened_) {
      const auto [first, count] = extent_in(places_[ix(reg)].layout, t);
      simd_table().widen(from + first, reinterpret_cast<float*>(scratch + places_[ix(reg)].offset), count);
    }
    for (const Exec& e : code_) {
      run_op(e, t, scratch, folds);
      if (e.rounds) {
        auto* y = reinterpret_cast<float*>(scratch + places_[ix(e.out)].offset);
        simd_table().round_to_bf16(y, y, extent_in(places_[ix(e.out)].layout, t).second);
      }
    }
    for (int r : p_.outputs)
      if (const Place& p = places_[ix(r)]; p.copy_to != nullptr) {
        const auto [first, count] = extent_in(p.layout, t);
        if (is_bf16(r))
          simd_table().narrow(reinterpret_cast<const float*>(scratch + p.offset),
                              reinterpret_cast<std::uint16_t*>(p.copy_to) + first, count);
        else
          std::memcpy(p.copy_to + ix(first) * p.element, scratch + p.offset, ix(count) * p.element);
      }
  }

 private:
  static constexpr Index kParallelWork = 65536;

  // One long row that can be cut anywhere: no value is of the row, none of a column.
  static bool can_be_cut(const RowProgram& p) {
    return p.rows == 1 && std::all_of(p.registers.begin(), p.registers.end(), [](const auto& r) {
             return r.layout == Layout::full || r.layout == Layout::scalar;
           });
  }
  bool is_bf16(int reg) const { return p_.registers[ix(reg)].dtype == DType::bf16; }
  Index columns_of(const Tile& t) const { return flat_ ? t.count : p_.columns; }

  // Slots for temporaries, reused when the last reader has run; outputs that wait keep theirs.
  struct Slot {
    Layout layout;
    std::size_t element;
    DType dtype;  // of what is in it
    int free_after;
  };
  struct Slots {
    std::vector<Slot> slots;
    std::vector<int> of;  // by register; -1: none
  };
  static std::size_t element_of(const RowProgram& p, std::size_t r) {
    return p.registers[r].dtype == DType::bf16 ? sizeof(float) : size_of(p.registers[r].dtype);
  }
  static Slots slots_of(const RowProgram& p, const std::vector<char>& temporary) {
    const std::vector<RowPass> passes = passes_of(p);
    std::vector<int> until(p.registers.size(), -1);
    for (std::size_t i = 0; i < passes.size(); ++i) {
      for (int k = 0; k < passes[i].inputs; ++k) until[ix(passes[i].in[ix(k)])] = static_cast<int>(i);
      int& own = until[ix(p.code[ix(passes[i].op)].out)];
      own = std::max(own, static_cast<int>(i));
    }
    for (const int r : p.outputs) until[ix(r)] = std::numeric_limits<int>::max();
    Slots s{{}, std::vector<int>(p.registers.size(), -1)};
    for (std::size_t i = 0; i < passes.size(); ++i) {
      const RowProgram::Op& op = p.code[ix(passes[i].op)];
      const auto r = ix(op.out);
      const auto [layout, dtype] = p.registers[r];
      const std::size_t element = element_of(p, r);
      if (temporary[r] == 0 || (layout != Layout::full && layout != Layout::row)) continue;
      // Elementwise kernels may write over an operand of the same type whose last reader they are.
      const int now = static_cast<int>(i);
      int found = -1;
      for (std::size_t k = 0; k < s.slots.size() && found < 0; ++k)
        if (const Slot& slot = s.slots[k];
            slot.layout == layout && slot.element == element &&
            (slot.free_after < now || (slot.free_after == now && slot.dtype == dtype && op.kind == Kind::elementwise)))
          found = static_cast<int>(k);
      if (found < 0) {
        found = static_cast<int>(s.slots.size());
        s.slots.push_back({layout, element, dtype, 0});
      }
      s.slots[ix(found)].free_after = until[r], s.slots[ix(found)].dtype = dtype;
      s.of[r] = found;
    }
    return s;
  }

  // Elements of a tile whose temporaries fit the cache. Sums over rows are cut by it, so it is what the
  // program is, not where its operands lie: outputs that wait because they lie over one are left out of account.
  static Index tile_elements(const RowProgram& p) {
    std::vector<char> temporary(p.registers.size(), 1);
    for (const int r : p.outputs) temporary[ix(r)] = p.registers[ix(r)].dtype == DType::bf16 ? 1 : 0;
    std::size_t bytes = 0;
    for (const Slot& s : slots_of(p, temporary).slots) bytes += s.layout == Layout::full ? s.element : 0;
    for (int i = 0; i < p.inputs; ++i)
      if (const auto& reg = p.registers[ix(i)]; reg.dtype == DType::bf16 && reg.layout == Layout::full)
        bytes += sizeof(float);
    const Index elements = bytes == 0 ? kMaxTile : static_cast<Index>(kTileBytes / bytes) / 64 * 64;
    return std::clamp(elements, kMinTile, kMaxTile);
  }

  void place_registers(LowerCtx& ctx) {
    places_.resize(p_.registers.size());
    const Instr& instr = ctx.instr();
    std::vector<int> last_use(p_.registers.size(), -1), made_at(p_.registers.size(), -1);
    for (std::size_t i = 0; i < code_.size(); ++i) {
      for (int k = 0; k < code_[i].inputs; ++k) last_use[ix(code_[i].in[ix(k)])] = static_cast<int>(i);
      made_at[ix(code_[i].out)] = static_cast<int>(i);
    }
    for (std::size_t r = 0; r < places_.size(); ++r) {
      places_[r].layout = p_.registers[r].layout;
      places_[r].element = element_of(p_, r);
    }
    for (int i = 0; i < p_.inputs; ++i) places_[ix(i)].base = static_cast<std::byte*>(ctx.data(instr.inputs[ix(i)]));

    std::vector<char> temporary(places_.size(), 0);
    for (std::size_t r = ix(p_.inputs); r < places_.size(); ++r) temporary[r] = 1;
    for (std::size_t k = 0; k < p_.outputs.size(); ++k) {
      const int r = p_.outputs[k];
      Place& place = places_[ix(r)];
      auto* memory = static_cast<std::byte*>(ctx.data(instr.outputs[k]));
      // An output that lies over an input which a later op still reads waits in scratch until the tile is done.
      bool clobbers = is_bf16(r);  // is narrowed there
      for (int i = 0; i < p_.inputs; ++i)
        clobbers = clobbers || (places_[ix(i)].base == memory && last_use[ix(i)] > made_at[ix(r)]);
      // ... or which this op reads as another element type.
      const Exec& maker = code_[ix(made_at[ix(r)])];
      for (int k = 0; k < maker.inputs; ++k) {
        const int in = maker.in[ix(k)];
        clobbers = clobbers || (in < p_.inputs && places_[ix(in)].base == memory &&
                                p_.registers[ix(in)].dtype != p_.registers[ix(r)].dtype);
      }
      if (clobbers)
        place.copy_to = memory;
      else
        place.base = memory, temporary[ix(r)] = 0;
    }
    const auto [slots, slot_of] = slots_of(p_, temporary);
    tile_ = tile_elements(p_.whole_or_own());
    tile_rows_ = std::clamp<Index>(tile_ / std::max<Index>(p_.columns, 1), 1, p_.rows_of_segment());
    const Index full = flat_ ? tile_ : tile_rows_ * p_.columns;
    std::vector<std::size_t> offsets;
    for (const Slot& s : slots) {
      offsets.push_back(scratch_bytes_);
      scratch_bytes_ += align64(ix(s.layout == Layout::full ? full : tile_rows_) * s.element);
    }
    for (int i = 0; i < p_.inputs; ++i) {
      if (!is_bf16(i) || places_[ix(i)].layout == Layout::table) continue;
      Place& place = places_[ix(i)];
      widened_.push_back({i, reinterpret_cast<const std::uint16_t*>(place.base)});
      place.where = Place::Where::scratch;
      place.offset = scratch_bytes_;
      const Index most = place.layout == Layout::full     ? full
                         : place.layout == Layout::row    ? tile_rows_
                         : place.layout == Layout::scalar ? 1
                                                          : p_.columns;
      scratch_bytes_ += align64(ix(most) * sizeof(float));
    }
    for (std::size_t r = 0; r < places_.size(); ++r) {
      const auto element = static_cast<Index>(places_[r].element);
      places_[r].per_element = places_[r].layout == Layout::full ? element : 0;
      places_[r].per_row = places_[r].layout == Layout::row ? element : 0;
      places_[r].per_segment = places_[r].layout == Layout::segment ? element * p_.columns : 0;
      if (slot_of[r] >= 0) {
        places_[r].where = Place::Where::scratch;
        places_[r].offset = offsets[ix(slot_of[r])];
      }
    }
  }

  template <class U>
  U* at(int reg, const Tile& t, std::byte* scratch) const {
    const Place& p = places_[ix(reg)];
    if (p.where == Place::Where::scratch) return reinterpret_cast<U*>(scratch + p.offset);
    return reinterpret_cast<U*>(p.base + t.first * p.per_element + t.row * p.per_row + t.segment * p.per_segment);
  }

  // As the operand of an op whose result is full: the distance between rows, and whether a row is one number.
  Index stride(int reg) const {
    const Layout l = places_[ix(reg)].layout;
    return l == Layout::full ? p_.columns : l == Layout::row ? 1 : 0;
  }
  bool one_number(int reg, bool row_result) const {
    const Layout l = places_[ix(reg)].layout;
    return row_result ? l == Layout::scalar : l == Layout::row || l == Layout::scalar;
  }

  void plan_operands(Exec& e) const {
    const bool row_result = places_[ix(e.out)].layout == Layout::row;
    const auto one = [&](int k) { return one_number(e.in[ix(k)], row_result); };
    const auto bits = [&](std::initializer_list<int> operands) {
      std::size_t mode = 0, bit = 1;
      for (const int k : operands) mode |= one(k) ? bit : 0, bit *= 2;
      return mode;
    };
    e.one_row = true;
    for (int k = 0; k < e.inputs; ++k) {
      const Layout layout = places_[ix(e.in[ix(k)])].layout;
      e.stride[ix(k)] = row_result ? 0 : stride(e.in[ix(k)]);
      const bool repeats = layout == Layout::column || layout == Layout::segment;
      e.one_row = e.one_row && (one(k) ? layout == Layout::scalar : !repeats);
    }
    e.one_row = e.one_row || row_result || flat_;
    switch (e.form) {
      case RowPass::single:
        if (e.kernel.kind == RowKernel::binary || e.kernel.kind == RowKernel::compare)
          e.mode = one(1) ? 1 : one(0) ? 2 : 0;
        if (e.kernel.kind == RowKernel::where) e.mode = bits({0, 1, 2});
        return;
      case RowPass::pair:
        e.mode = bits({1, 2});
        return;
      case RowPass::two_products:
        e.mode = bits({1, 3});
        return;
      case RowPass::row_products:
        return;
    }
  }

  // First element and number of elements of a value in a tile.
  std::pair<Index, Index> extent_in(Layout layout, const Tile& t) const {
    switch (layout) {
      case Layout::full:
        return {t.first, t.count};
      case Layout::row:
        return {t.row, t.rows};
      case Layout::column:
        return {0, p_.columns};
      case Layout::segment:
        return {t.segment * p_.columns, p_.columns};
      case Layout::scalar:
      case Layout::table:
        break;
    }
    return {0, 1};
  }

  void run_op(const Exec& e, const Tile& t, std::byte* scratch, double* folds) const {
    const Index cols = columns_of(t);
    const bool row_result = places_[ix(e.out)].layout == Layout::row;
    switch (e.kind) {
      case Kind::reduce_all: {
        const bool rows_only = places_[ix(e.in[0])].layout == Layout::row;
        const Index n = rows_only ? t.rows : t.count;
        table_.sum_rows(at<T>(e.in[0], t, scratch), 1, n, n, folds + e.fold);
        return;
      }
      case Kind::reduce_columns:
      case Kind::reduce_segments:
        table_.sum_cols(at<T>(e.in[0], t, scratch), t.rows, cols, cols, folds + e.fold);
        return;
      case Kind::reduce_row:
        reduce_row(e, t, scratch);
        return;
      case Kind::expand:
        if (places_[ix(e.out)].element == sizeof(T))
          expand<T>(e, t, scratch);
        else
          expand<std::int32_t>(e, t, scratch);
        return;
      case Kind::gather:
        gather(e, t, scratch);
        return;
      case Kind::elementwise:
        break;
    }
    // A row result is one flat stretch of t.rows numbers, a full one t.rows stretches of cols.
    const Index n = row_result ? t.rows : t.count;
    const Index rows = e.one_row ? 1 : t.rows, length = e.one_row ? n : cols;
    const auto in = [&](std::size_t k) { return at<T>(e.in[k], t, scratch); };
    if (e.form == RowPass::pair) {
      table_.pair[e.code][e.mode](in(0), e.stride[0], in(1), e.stride[1], in(2), e.stride[2], at<T>(e.out, t, scratch),
                                  rows, length);
      return;
    }
    if (e.form == RowPass::two_products) {
      table_.two_products[e.code][e.mode](in(0), e.stride[0], in(1), e.stride[1], in(2), e.stride[2], in(3),
                                          e.stride[3], at<T>(e.out, t, scratch), rows, length);
      return;
    }
    switch (e.kernel.kind) {
      case RowKernel::unary:
        table_.unary[e.kernel.code](in(0), at<T>(e.out, t, scratch), n, e.p, e.q);
        return;
      case RowKernel::cast: {
        T* y = at<T>(e.out, t, scratch);
        if (is_real(p_.registers[ix(e.in[0])].dtype)) {
          std::memmove(y, in(0), ix(n) * sizeof(T));
          return;
        }
        const std::int32_t* x = at<std::int32_t>(e.in[0], t, scratch);
        for (Index i = 0; i < n; ++i) y[i] = static_cast<T>(x[i]);
        return;
      }
      case RowKernel::binary:
        table_.binary[e.kernel.code][e.mode](in(0), e.stride[0], in(1), e.stride[1], at<T>(e.out, t, scratch), rows,
                                             length);
        return;
      case RowKernel::compare:
        table_.compare[e.kernel.code][e.mode](in(0), e.stride[0], in(1), e.stride[1],
                                              at<std::int32_t>(e.out, t, scratch), rows, length);
        return;
      case RowKernel::where:
        table_.where[e.mode](at<std::int32_t>(e.in[0], t, scratch), e.stride[0], in(1), e.stride[1], in(2), e.stride[2],
                             at<T>(e.out, t, scratch), rows, length);
        return;
      default:
        return;
    }
  }

  template <class U>
  void expand(const Exec& e, const Tile& t, std::byte* scratch) const {
    const U* x = at<U>(e.in[0], t, scratch);
    U* y = at<U>(e.out, t, scratch);
    const Index cols = columns_of(t);
    for (Index r = 0; r < t.rows; ++r, y += cols) switch (places_[ix(e.in[0])].layout) {
        case Layout::full:
          std::memcpy(y, x + r * cols, ix(cols) * sizeof(U));
          break;
        case Layout::column:
        case Layout::segment:
          std::memcpy(y, x, ix(cols) * sizeof(U));
          break;
        case Layout::row:
          std::fill(y, y + cols, x[r]);
          break;
        case Layout::scalar:
          std::fill(y, y + cols, *x);
          break;
        case Layout::table:
          break;
      }
  }

  void gather(const Exec& e, const Tile& t, std::byte* scratch) const {
    const std::byte* table = places_[ix(e.in[0])].base;
    const std::int32_t* index = at<std::int32_t>(e.in[1], t, scratch);
    T* y = at<T>(e.out, t, scratch);
    const Index cols = p_.columns;
    for (Index r = 0; r < t.rows; ++r, y += cols)
      if (is_bf16(e.in[0]))
        simd_table().widen(reinterpret_cast<const std::uint16_t*>(table) + index[r] * cols, reinterpret_cast<float*>(y),
                           cols);
      else
        std::memcpy(y, reinterpret_cast<const T*>(table) + index[r] * cols, ix(cols) * sizeof(T));
  }

  void reduce_row(const Exec& e, const Tile& t, std::byte* scratch) const {
    const T* x = at<T>(e.in[0], t, scratch);
    T* y = at<T>(e.out, t, scratch);
    const Index cols = columns_of(t);
    if (e.form == RowPass::row_products) {
      table_.row_products(x, stride(e.in[0]), at<T>(e.in[1], t, scratch), stride(e.in[1]), t.rows, cols, y);
      return;
    }
    if (static_cast<Reduction>(e.kernel.code) == Reduction::sum) {
      table_.row_sums(x, t.rows, cols, y);
      return;
    }
    const bool max = static_cast<Reduction>(e.kernel.code) == Reduction::max;
    const T start = max ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::infinity();
    std::fill(y, y + t.rows, start);
    (max ? table_.max_rows : table_.min_rows)(x, t.rows, cols, cols, y);
  }

  const RowProgram p_;
  const simd::Common<T>& table_;
  const bool flat_;
  std::vector<Place> places_;
  std::vector<Exec> code_;
  std::vector<std::pair<int, const std::uint16_t*>> widened_;  // inputs in bf16 and where they are
  Index tile_ = 0, tile_rows_ = 1, tiles_of_segment_ = 1;
  std::size_t scratch_bytes_ = 0;
};

// The same by generated code, a block at a time.
class Generated final : public ChunkedRunner<Generated, float> {
 public:
  Generated(LowerCtx& ctx, const RowProgram& program, std::unique_ptr<RowJit> code)
      : p_(program), code_(std::move(code)) {
    constexpr Index kParallelWork = 262144;
    std::vector<Fold> sums;
    for (std::size_t i = 0; i < p_.code.size(); ++i)
      if (const RowProgram::Op& op = p_.code[i]; RowProgram::over_rows(op.kind)) {
        const auto k = std::find(p_.outputs.begin(), p_.outputs.end(), op.out) - p_.outputs.begin();
        sums.push_back({code_->fold_of(i), fold_count(p_, op.kind), ctx.data(ctx.instr().outputs[ix(k)]),
                        op.kind == Kind::reduce_segments});
      }
    chunks_ = Chunks<float>(ctx, code_->blocks(), p_.segments, code_->scratch_bytes(), code_->fold_doubles(),
                            std::move(sums), p_.rows * p_.columns * static_cast<Index>(p_.code.size()), kParallelWork);
  }

  std::string detail() const override {
    return fmt::format("{}, {} ops, {}, {}: {}", p_.extents(), p_.code.size(), code_->detail(), p_.traffic(),
                       p_.formula());
  }
  void run_piece(Index block, std::byte* scratch, double* folds) const { code_->run(block, scratch, folds); }

 private:
  const RowProgram p_;
  std::unique_ptr<RowJit> code_;
};

RowMemory memory_of(LowerCtx& ctx, const RowProgram& program, const RowHints& hints = {}) {
  RowMemory memory{std::vector<std::byte*>(program.registers.size(), nullptr), hints};
  for (int i = 0; i < program.inputs; ++i)
    memory.base[ix(i)] = static_cast<std::byte*>(ctx.data(ctx.instr().inputs[ix(i)]));
  for (std::size_t k = 0; k < program.outputs.size(); ++k)
    memory.base[ix(program.outputs[k])] = static_cast<std::byte*>(ctx.data(ctx.instr().outputs[k]));
  return memory;
}

class RowProgramStep final : public Step {
 public:
  RowProgramStep(GatherChecks checks, std::unique_ptr<RowRunner> runner)
      : checks_(std::move(checks)), runner_(std::move(runner)) {}
  void run() override {
    checks_();
    runner_->run();
  }
  std::string detail() const override { return runner_->detail(); }

 private:
  GatherChecks checks_;
  std::unique_ptr<RowRunner> runner_;
};

}  // namespace

std::unique_ptr<RowRunner> make_row_runner(LowerCtx& ctx, const RowProgram& program, const RowHints& hints) {
  if (auto code = RowJit::make(program, memory_of(ctx, program, hints)))
    return std::make_unique<Generated>(ctx, program, std::move(code));
  const bool wide = std::any_of(program.registers.begin(), program.registers.end(),
                                [](const auto& r) { return r.dtype == DType::f64; });
  if (wide) return std::make_unique<Interpreter<double>>(ctx, program);
  return std::make_unique<Interpreter<float>>(ctx, program);
}

StepPtr lower_row_program(LowerCtx& ctx, int) {
  const RowProgram& program = ctx.tape().row_program(ctx.attrs().i("program"));
  return std::make_unique<RowProgramStep>(GatherChecks(program, memory_of(ctx, program).base),
                                          make_row_runner(ctx, program, {}));
}

// A tile reads and writes its own rows only, so an output may take the place of an input of the same layout. What is of
// a column or a segment is read by many tiles.
bool may_lie_over(const RowProgram& p, int input, int output) {
  const auto &in = p.registers[ix(input)], &out = p.registers[ix(p.outputs[ix(output)])];
  const bool tiled = in.layout == Layout::full || in.layout == Layout::row;
  return tiled && in.layout == out.layout && size_of(in.dtype) == size_of(out.dtype);
}

bool row_program_in_place(const Tape& tape, const Instr& instr, int i, int output) {
  return may_lie_over(tape.row_program(instr.attrs.i("program")), i, output) && !is_read_across_rows(tape, instr, i);
}

}  // namespace sg::cpu
