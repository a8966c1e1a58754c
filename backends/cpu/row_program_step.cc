// Row programs by interpretation, a tile at a time: each op of the region runs over a tile that stays in the
// first-level cache, so that memory is read and written once however long the region is.
//
// Invariants: tiles and the chunks that threads take depend on the shapes alone, folds are combined in the order of the
// chunks, so results are the same for any number of threads. run() allocates nothing. Registers of type bf16 hold f32
// numbers within a tile, rounded as soon as they are made; they are widened and narrowed at its ends.
#include <omp.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "backends/cpu/lowering.h"
#include "backends/cpu/row_jit.h"
#include "core/row_program.h"

namespace sg::cpu {
namespace {

using Layout = RowProgram::Layout;
using Kind = RowProgram::Kind;

constexpr std::size_t kTileBytes =
    24 * 1024;  // all temporaries of a tile: they share the first-level cache with operands
constexpr Index kMaxTile = 4096, kMinTile = 256;
constexpr Index kMaxChunks = 64;

std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }

// Where the elements of a register are, for the tile that starts at row r, element e.
struct Place {
  enum class Where : std::uint8_t { memory, scratch } where = Where::memory;
  Layout layout = Layout::full;
  std::byte* base = nullptr;  // memory: element 0 of the whole array
  std::size_t offset = 0;     // scratch: bytes into the thread's part
  std::size_t element = 4;
  std::byte* copy_to = nullptr;  // scratch that is an output: written to memory when the tile is done
};

struct Tile {
  Index row, rows, first, count;
};  // `first`: index of the first element; count = rows x columns

// Sums of one chunk, and where the sums of all chunks of a part are.
struct Folds {
  double* first = nullptr;
  Index chunks = 0;
  std::size_t stride = 0;  // doubles from one chunk's to the next's

  // y[k] = sum over chunks of their folds[offset + k], in the order of the chunks.
  template <class T>
  void combine(std::size_t offset, Index count, T* y) const {
    for (Index k = 0; k < count; ++k) {
      double s = 0;
      for (Index c = 0; c < chunks; ++c) s += first[ix(c) * stride + offset + ix(k)];
      y[k] = static_cast<T>(s);
    }
  }
};

// One row program of a step, in pieces (tiles or blocks) that do not depend on each other.
class Part {
 public:
  virtual ~Part() = default;
  virtual Index pieces() const = 0;
  virtual std::size_t thread_bytes() const = 0;  // scratch of a thread
  virtual std::size_t fold_doubles() const = 0;  // sums of a chunk of pieces, zeroed before its first
  virtual Index work() const = 0;                // in units of which kParallelWork are worth waking a thread
  virtual void run(Index piece, std::byte* scratch, double* folds) const = 0;
  virtual void finish(const Folds& folds) const = 0;
  virtual std::string detail() const = 0;
};
constexpr Index kParallelWork = 65536;

// All parts of a step, shared out in chunks that depend on the number of a part's pieces alone.
class RowProgramStep final : public Step {
 public:
  RowProgramStep(LowerCtx& ctx, std::vector<std::unique_ptr<Part>> parts) : parts_(std::move(parts)) {
    std::size_t fold_bytes = 0;
    Index work = 0;
    for (const auto& part : parts_) {
      thread_bytes_ = std::max(thread_bytes_, align64(part->thread_bytes()));
      work += part->work();
      const Index pieces = part->pieces(), per_chunk = ceil_div(pieces, std::min(pieces, kMaxChunks));
      const std::size_t stride = align64(part->fold_doubles() * sizeof(double));
      places_.push_back({fold_bytes, ceil_div(pieces, per_chunk), stride});
      for (Index first = 0; first < pieces; first += per_chunk) {
        chunks_.push_back({part.get(), first, std::min(pieces, first + per_chunk), fold_bytes});
        fold_bytes += stride;
      }
    }
    threads_ = work < kParallelWork ? 1 : omp_get_max_threads();
    scratch_ = Scratch(ctx, thread_bytes_ * ix(threads_) + fold_bytes);
  }

  void run() override {
    const int threads = std::min(threads_, omp_get_max_threads());
    const auto count = static_cast<Index>(chunks_.size());
    if (threads == 1 || count == 1) {
      for (Index c = 0; c < count; ++c) run_chunk(c, 0);
    } else if (parts_.size() == 1) {
#pragma omp parallel for schedule(static) num_threads(threads)
      for (Index c = 0; c < count; ++c) run_chunk(c, omp_get_thread_num());
    } else {  // chunks of unequal length
#pragma omp parallel for schedule(dynamic) num_threads(threads)
      for (Index c = 0; c < count; ++c) run_chunk(c, omp_get_thread_num());
    }
    for (std::size_t i = 0; i < parts_.size(); ++i)
      parts_[i]->finish({folds(places_[i].offset), places_[i].chunks, places_[i].stride / sizeof(double)});
  }

  std::string detail() const override {
    if (parts_.size() == 1) return parts_[0]->detail();
    std::string text = fmt::format("{} programs", parts_.size());
    for (const auto& part : parts_) text += "\n      " + part->detail();
    return text;
  }

 private:
  struct Chunk {
    const Part* part;
    Index first, end;
    std::size_t folds;  // bytes into those of all parts
  };
  struct FoldPlace {
    std::size_t offset;
    Index chunks;
    std::size_t stride;
  };

  double* folds(std::size_t offset) const { return scratch_.at<double>(thread_bytes_ * ix(threads_) + offset); }

  void run_chunk(Index c, int thread) const {
    const Chunk& chunk = chunks_[ix(c)];
    double* const sums = folds(chunk.folds);
    std::fill_n(sums, chunk.part->fold_doubles(), 0.0);
    for (Index k = chunk.first; k < chunk.end; ++k)
      chunk.part->run(k, scratch_.at<std::byte>(thread_bytes_ * ix(thread)), sums);
#ifdef __SSE__
    _mm_sfence();  // generated code may write past the caches
#endif
  }

  std::vector<std::unique_ptr<Part>> parts_;
  std::vector<FoldPlace> places_;
  std::vector<Chunk> chunks_;
  std::size_t thread_bytes_ = 0;
  int threads_ = 1;
  Scratch scratch_;
};

// The operands of one program of an instruction.
struct Operands {
  LowerCtx& ctx;
  std::size_t first_input, first_output;
  std::byte* input(int i) const { return static_cast<std::byte*>(ctx.data(ctx.instr().inputs[first_input + ix(i)])); }
  std::byte* output(std::size_t k) const {
    return static_cast<std::byte*>(ctx.data(ctx.instr().outputs[first_output + k]));
  }
};

std::string describe(const RowProgram& p, const std::string& how) {
  return fmt::format("{} x {}, {} ops, reads {:.3f} MB, writes {:.3f} MB, {}: {}", p.rows, p.columns, p.code.size(),
                     static_cast<double>(p.bytes_read()) * 1e-6, static_cast<double>(p.bytes_written()) * 1e-6, how,
                     p.formula());
}

bool over_rows(Kind kind) { return kind == Kind::reduce_columns || kind == Kind::reduce_all; }

struct Exec {
  Kind kind = Kind::elementwise;
  RowKernel kernel;
  std::array<int, 3> in{};
  int inputs = 0;
  int out = 0;
  double p = 0, q = 0;
  std::size_t fold = 0;  // doubles before this op's partial in a chunk's part
  bool rounds = false;   // to bf16
};

template <class T>
class Interpreter final : public Part {
 public:
  Interpreter(const Operands& operands, const RowProgram& program) : p_(program), table_(common_table<T>()) {
    place_registers(operands);
    for (const RowProgram::Op& op : p_.code) {
      Exec e{op.kind, row_kernel(op.op), {}, static_cast<int>(op.in.size()), op.out};
      std::copy(op.in.begin(), op.in.end(), e.in.begin());
      if (e.kernel.kind == RowKernel::unary) {
        if (op.attrs.has("slope")) e.p = op.attrs.d("slope");
        if (op.attrs.has("lo")) e.p = op.attrs.d("lo"), e.q = op.attrs.d("hi");
      }
      e.rounds = is_bf16(op.out) && op.kind == Kind::elementwise && !exact_in_bf16(e.kernel);
      if (over_rows(op.kind)) {
        e.fold = fold_size_;
        fold_size_ += ix(p_.extent(p_.registers[ix(op.out)].layout));
      }
      code_.push_back(e);
    }
  }

  Index pieces() const override { return flat() ? ceil_div(p_.columns, tile_) : ceil_div(p_.rows, tile_rows_); }
  std::size_t thread_bytes() const override { return scratch_bytes_; }
  std::size_t fold_doubles() const override { return fold_size_; }
  Index work() const override { return p_.rows * p_.columns * static_cast<Index>(code_.size()); }
  void run(Index tile, std::byte* scratch, double* folds) const override { run_tile(tile, scratch, folds); }
  void finish(const Folds& folds) const override {
    for (const Exec& e : code_)
      if (over_rows(e.kind))
        folds.combine(e.fold, p_.extent(places_[ix(e.out)].layout), reinterpret_cast<T*>(places_[ix(e.out)].base));
  }
  std::string detail() const override {
    return describe(p_, fmt::format("tiles of {}", flat() ? tile_ : tile_rows_ * p_.columns));
  }

 private:
  bool flat() const { return p_.rows == 1; }
  bool is_bf16(int reg) const { return p_.registers[ix(reg)].dtype == DType::bf16; }
  Index columns_of(const Tile& t) const { return flat() ? t.count : p_.columns; }

  void place_registers(const Operands& operands) {
    places_.resize(p_.registers.size());
    std::vector<int> last_use(p_.registers.size(), -1), made_at(p_.registers.size(), -1);
    for (std::size_t i = 0; i < p_.code.size(); ++i) {
      for (int r : p_.code[i].in) last_use[ix(r)] = static_cast<int>(i);
      made_at[ix(p_.code[i].out)] = static_cast<int>(i);
    }
    for (std::size_t r = 0; r < places_.size(); ++r) {
      places_[r].layout = p_.registers[r].layout;
      places_[r].element = is_bf16(static_cast<int>(r)) ? sizeof(float) : size_of(p_.registers[r].dtype);
    }
    for (int i = 0; i < p_.inputs; ++i) places_[ix(i)].base = operands.input(i);

    std::vector<char> temporary(places_.size(), 0);
    for (std::size_t r = ix(p_.inputs); r < places_.size(); ++r) temporary[r] = 1;
    for (std::size_t k = 0; k < p_.outputs.size(); ++k) {
      const int r = p_.outputs[k];
      Place& place = places_[ix(r)];
      std::byte* const memory = operands.output(k);
      // An output that lies over an input which a later op still reads waits in scratch until the tile is done.
      bool clobbers = is_bf16(r);  // is narrowed there
      for (int i = 0; i < p_.inputs; ++i)
        clobbers = clobbers || (places_[ix(i)].base == memory && last_use[ix(i)] > made_at[ix(r)]);
      // ... or which this op reads as another element type.
      for (int in : p_.code[ix(made_at[ix(r)])].in)
        clobbers = clobbers || (in < p_.inputs && places_[ix(in)].base == memory &&
                                p_.registers[ix(in)].dtype != p_.registers[ix(r)].dtype);
      if (clobbers)
        place.copy_to = memory;
      else
        place.base = memory, temporary[ix(r)] = 0;
    }
    // Slots for temporaries, reused when the last reader has run; outputs that wait keep theirs.
    struct Slot {
      Layout layout;
      std::size_t element;
      int free_after;
    };
    std::vector<Slot> slots;
    std::vector<int> slot_of(places_.size(), -1);
    for (std::size_t i = 0; i < p_.code.size(); ++i) {
      const auto r = ix(p_.code[i].out);
      const Layout layout = places_[r].layout;
      if (temporary[r] == 0 || (layout != Layout::full && layout != Layout::row)) continue;
      const int until =
          places_[r].copy_to != nullptr ? std::numeric_limits<int>::max() : std::max(last_use[r], static_cast<int>(i));
      // Elementwise kernels may write over an operand of the same type whose last reader they are.
      const int now = static_cast<int>(i);
      int found = -1;
      for (std::size_t s = 0; s < slots.size() && found < 0; ++s)
        if (slots[s].layout == layout && slots[s].element == places_[r].element && slots[s].free_after < now)
          found = static_cast<int>(s);
      if (found < 0) {
        found = static_cast<int>(slots.size());
        slots.push_back({layout, places_[r].element, 0});
      }
      slots[ix(found)].free_after = until;
      slot_of[r] = found;
    }
    std::size_t per_element = 0;
    for (const Slot& s : slots) per_element += s.layout == Layout::full ? s.element : 0;
    for (int i = 0; i < p_.inputs; ++i)
      if (is_bf16(i) && places_[ix(i)].layout == Layout::full) per_element += sizeof(float);
    tile_ = per_element == 0 ? kMaxTile : static_cast<Index>(kTileBytes / per_element) / 64 * 64;
    tile_ = std::clamp(tile_, kMinTile, kMaxTile);
    tile_rows_ = std::max<Index>(1, tile_ / std::max<Index>(p_.columns, 1));
    const Index full = flat() ? tile_ : tile_rows_ * p_.columns;
    std::vector<std::size_t> offsets;
    for (const Slot& s : slots) {
      offsets.push_back(scratch_bytes_);
      scratch_bytes_ += align64(ix(s.layout == Layout::full ? full : tile_rows_) * s.element);
    }
    for (int i = 0; i < p_.inputs; ++i) {
      if (!is_bf16(i)) continue;
      Place& place = places_[ix(i)];
      widened_.push_back({i, reinterpret_cast<const std::uint16_t*>(place.base)});
      place.where = Place::Where::scratch;
      place.offset = scratch_bytes_;
      const Index most = place.layout == Layout::full     ? full
                         : place.layout == Layout::row    ? tile_rows_
                         : place.layout == Layout::column ? p_.columns
                                                          : 1;
      scratch_bytes_ += align64(ix(most) * sizeof(float));
    }
    accumulator_offset_ = scratch_bytes_;
    scratch_bytes_ += align64(ix(tile_rows_) * sizeof(double));
    for (std::size_t r = 0; r < places_.size(); ++r)
      if (slot_of[r] >= 0) {
        places_[r].where = Place::Where::scratch;
        places_[r].offset = offsets[ix(slot_of[r])];
      }
  }

  template <class U>
  U* at(int reg, const Tile& t, std::byte* scratch) const {
    const Place& p = places_[ix(reg)];
    if (p.where == Place::Where::scratch) return reinterpret_cast<U*>(scratch + p.offset);
    auto* base = reinterpret_cast<U*>(p.base);
    return p.layout == Layout::full ? base + t.first : p.layout == Layout::row ? base + t.row : base;
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

  // First element and number of elements of a value in a tile.
  std::pair<Index, Index> extent_in(Layout layout, const Tile& t) const {
    switch (layout) {
      case Layout::full:
        return {t.first, t.count};
      case Layout::row:
        return {t.row, t.rows};
      case Layout::column:
        return {0, p_.columns};
      case Layout::scalar:
        break;
    }
    return {0, 1};
  }

  void run_tile(Index k, std::byte* scratch, double* folds) const {
    Tile t{};
    if (flat()) {
      t = {0, 1, k * tile_, std::min(tile_, p_.columns - k * tile_)};
    } else {
      t.row = k * tile_rows_;
      t.rows = std::min(tile_rows_, p_.rows - t.row);
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
      case Kind::elementwise:
        break;
    }
    // A row result is one flat stretch of t.rows numbers, a full one t.rows stretches of cols.
    const Index n = row_result ? t.rows : t.count;
    auto operand_stride = [&](int reg) { return row_result ? 0 : stride(reg); };
    auto whole = [&](int reg) {
      return one_number(reg, row_result) ? places_[ix(reg)].layout == Layout::scalar
                                         : places_[ix(reg)].layout != Layout::column;
    };
    switch (e.kernel.kind) {
      case RowKernel::unary:
        table_.unary[e.kernel.code](at<T>(e.in[0], t, scratch), at<T>(e.out, t, scratch), n, e.p, e.q);
        return;
      case RowKernel::cast: {
        T* y = at<T>(e.out, t, scratch);
        if (is_real(p_.registers[ix(e.in[0])].dtype)) {
          std::memmove(y, at<T>(e.in[0], t, scratch), ix(n) * sizeof(T));
          return;
        }
        const std::int32_t* x = at<std::int32_t>(e.in[0], t, scratch);
        for (Index i = 0; i < n; ++i) y[i] = static_cast<T>(x[i]);
        return;
      }
      case RowKernel::binary:
      case RowKernel::compare: {
        const int a = e.in[0], b = e.in[1];
        const std::size_t mode = one_number(b, row_result) ? 1 : one_number(a, row_result) ? 2 : 0;
        // Where neither operand changes from row to row, the tile is one long row.
        const bool one_row = row_result || flat() || (whole(a) && whole(b));
        const Index rows = one_row ? 1 : t.rows, length = one_row ? n : cols;
        if (e.kernel.kind == RowKernel::binary)
          table_.binary[e.kernel.code][mode](at<T>(a, t, scratch), operand_stride(a), at<T>(b, t, scratch),
                                             operand_stride(b), at<T>(e.out, t, scratch), rows, length);
        else
          table_.compare[e.kernel.code][mode](at<T>(a, t, scratch), operand_stride(a), at<T>(b, t, scratch),
                                              operand_stride(b), at<std::int32_t>(e.out, t, scratch), rows, length);
        return;
      }
      case RowKernel::where: {
        const int c = e.in[0], a = e.in[1], b = e.in[2];
        const std::size_t mode = (one_number(c, row_result) ? 1u : 0u) | (one_number(a, row_result) ? 2u : 0u) |
                                 (one_number(b, row_result) ? 4u : 0u);
        const bool one_row = row_result || flat() || (whole(c) && whole(a) && whole(b));
        table_.where[mode](at<std::int32_t>(c, t, scratch), operand_stride(c), at<T>(a, t, scratch), operand_stride(a),
                           at<T>(b, t, scratch), operand_stride(b), at<T>(e.out, t, scratch), one_row ? 1 : t.rows,
                           one_row ? n : cols);
        return;
      }
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
          std::memcpy(y, x, ix(cols) * sizeof(U));
          break;
        case Layout::row:
          std::fill(y, y + cols, x[r]);
          break;
        case Layout::scalar:
          std::fill(y, y + cols, *x);
          break;
      }
  }

  void reduce_row(const Exec& e, const Tile& t, std::byte* scratch) const {
    const T* x = at<T>(e.in[0], t, scratch);
    T* y = at<T>(e.out, t, scratch);
    const Index cols = columns_of(t);
    if (static_cast<Reduction>(e.kernel.code) == Reduction::sum) {
      auto* acc = reinterpret_cast<double*>(scratch + accumulator_offset_);
      std::fill(acc, acc + t.rows, 0.0);
      table_.sum_rows(x, t.rows, cols, cols, acc);
      for (Index r = 0; r < t.rows; ++r) y[r] = static_cast<T>(acc[r]);
      return;
    }
    const bool max = static_cast<Reduction>(e.kernel.code) == Reduction::max;
    const T start = max ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::infinity();
    std::fill(y, y + t.rows, start);
    (max ? table_.max_rows : table_.min_rows)(x, t.rows, cols, cols, y);
  }

  const RowProgram p_;
  const simd::Common<T>& table_;
  std::vector<Place> places_;
  std::vector<Exec> code_;
  std::vector<std::pair<int, const std::uint16_t*>> widened_;  // inputs in bf16 and where they are
  Index tile_ = 0, tile_rows_ = 1;
  std::size_t scratch_bytes_ = 0, accumulator_offset_ = 0, fold_size_ = 0;
};

// The same by generated code, a block at a time.
class Generated final : public Part {
 public:
  Generated(const Operands& operands, const RowProgram& program, std::unique_ptr<RowJit> code)
      : p_(program), code_(std::move(code)) {
    for (std::size_t i = 0; i < p_.code.size(); ++i)
      if (over_rows(p_.code[i].kind)) {
        const int out = p_.code[i].out;
        const auto k = std::find(p_.outputs.begin(), p_.outputs.end(), out) - p_.outputs.begin();
        sums_.push_back({code_->fold_of(i), p_.extent(p_.registers[ix(out)].layout),
                         reinterpret_cast<float*>(operands.output(ix(k)))});
      }
  }

  Index pieces() const override { return code_->blocks(); }
  std::size_t thread_bytes() const override { return code_->scratch_bytes(); }
  std::size_t fold_doubles() const override { return code_->fold_doubles(); }
  Index work() const override { return p_.rows * p_.columns * static_cast<Index>(p_.code.size()) / 4; }
  void run(Index block, std::byte* scratch, double* folds) const override { code_->run(block, scratch, folds); }
  void finish(const Folds& folds) const override {
    for (const Sum& sum : sums_) folds.combine(sum.offset, sum.count, sum.out);
  }
  std::string detail() const override { return describe(p_, code_->detail()); }

 private:
  struct Sum {
    std::size_t offset;
    Index count;
    float* out;
  };
  const RowProgram p_;
  std::unique_ptr<RowJit> code_;
  std::vector<Sum> sums_;
};

std::unique_ptr<Part> make_part(const Operands& operands, const RowProgram& program) {
  RowMemory memory{std::vector<std::byte*>(program.registers.size(), nullptr)};
  for (int i = 0; i < program.inputs; ++i) memory.base[ix(i)] = operands.input(i);
  for (std::size_t k = 0; k < program.outputs.size(); ++k) memory.base[ix(program.outputs[k])] = operands.output(k);
  if (auto code = RowJit::make(program, memory)) return std::make_unique<Generated>(operands, program, std::move(code));
  const bool wide = std::any_of(program.registers.begin(), program.registers.end(),
                                [](const auto& r) { return r.dtype == DType::f64; });
  if (wide) return std::make_unique<Interpreter<double>>(operands, program);
  return std::make_unique<Interpreter<float>>(operands, program);
}

}  // namespace

StepPtr lower_row_program(LowerCtx& ctx, int) {
  std::vector<std::unique_ptr<Part>> parts;
  Operands operands{ctx, 0, 0};
  for (std::int64_t k = 0; k < ctx.attrs().i("count"); ++k) {
    const RowProgram& program = ctx.tape().row_program(ctx.attrs().i("program") + k);
    parts.push_back(make_part(operands, program));
    operands.first_input += ix(program.inputs), operands.first_output += program.outputs.size();
  }
  return std::make_unique<RowProgramStep>(ctx, std::move(parts));
}

// A tile reads and writes its own rows only, so an output may take the place of an input of the same layout.
bool row_program_in_place(const Tape& tape, const Instr& instr, int i, int output) {
  // The same value may come in under two layouts, or for another program; then others read it, too.
  if (std::count(instr.inputs.begin(), instr.inputs.end(), instr.inputs[ix(i)]) != 1) return false;
  std::int64_t k = instr.attrs.i("program");
  const RowProgram* p = &tape.row_program(k);
  while (i >= p->inputs && output >= static_cast<int>(p->outputs.size())) {
    i -= p->inputs, output -= static_cast<int>(p->outputs.size());
    p = &tape.row_program(++k);
  }
  if (i < 0 || output < 0 || i >= p->inputs || output >= static_cast<int>(p->outputs.size())) return false;
  const auto &in = p->registers[ix(i)], &out = p->registers[ix(p->outputs[ix(output)])];
  const bool tiled = in.layout == Layout::full || in.layout == Layout::row;
  return tiled && in.layout == out.layout && size_of(in.dtype) == size_of(out.dtype);
}

}  // namespace sg::cpu
