// Writes the machine code of a row program for blocks of one extent. See row_jit.h for what a block is.
#pragma once
#include <xbyak/xbyak.h>

#include <initializer_list>
#include <map>
#include <vector>

#include "backends/cpu/lowering.h"
#include "core/row_program.h"

namespace sg::cpu::jit {

using Layout = RowProgram::Layout;
using Kind = RowProgram::Kind;
using Xbyak::Reg64;
using Vec = Xbyak::Xmm;  // of either width: which one is in the register, not in its C++ type

constexpr int kMaxUnrolled = 8;   // vectors of columns in one stretch of straight-line code
constexpr int kStackSlots = 128;  // vectors that gave up their register; one more is a function's own

inline std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }

struct NotGenerated {};  // thrown where the interpreter has to take the program

// Whether there is code for the op.
bool generated(const RowKernel& kernel);

// What the generated function gets.
struct Args {
  std::int64_t full;     // bytes from an array's start to the block's first element
  std::int64_t row;      // bytes from a per-row array's start to the block's first row
  std::int64_t segment;  // bytes from the start of an array of segments to the block's one
  std::byte* scratch;
  double* folds;
};

// What the functions of a program share: everything that does not depend on a block's extent.
struct Plan {
  const RowProgram* program = nullptr;
  bool wide = false;  // AVX-512
  int lanes = 8;
  bool flat = false;                   // one long row
  bool cut = false;                    // some operand is of a segment
  std::int64_t rows = 1, columns = 0;  // of a full block
  std::vector<RowKernel> kernels;
  std::vector<int> op_of;          // register -> op that makes it, -1 for inputs
  std::vector<std::size_t> place;  // op of the program that was given -> op of `program`
  std::vector<int> phase;          // of each op: a value that needs a row's sum is of a later phase than the summed
  std::vector<std::byte*> base;    // register -> memory
  std::vector<int> store_phase;    // register -> phase at whose end it goes to memory; -1: never
  std::vector<bool> store_last;    // ... after everything else of its column was read, as it lies over an input
  std::vector<bool> streamed;      // register -> stored past the caches
  std::vector<bool> fetched;       // register -> an input that is fetched for the next block
  std::int64_t fetch_distance = 0; // bytes to what is fetched instead; 0: the next block
  std::vector<int> full_phases;    // those that pass over the columns
  std::vector<int> last_phase;     // register -> last phase that reads it; -1: none
  // Offsets into the scratch: values put aside for a later phase, values per row; sums down the columns by op.
  std::vector<std::int64_t> aside, row_buffer, column_sum;
  std::vector<std::int64_t> row_place;  // register -> offset of the address of its row in a table; -1: not looked up
  std::vector<std::int64_t> fold;  // by op, into the folds
  int phases = 1, last_full_phase = 0;
  std::int64_t aside_row = 0;  // bytes of a row that is put aside
  std::size_t scratch = 0, folds = 0;
  std::byte* common = nullptr;  // most arrays are near it

  const RowProgram::Register& reg(int r) const { return program->registers[ix(r)]; }
  bool is_input(int r) const { return r < program->inputs; }
  bool is_gathered(int r) const { return op_of[ix(r)] >= 0 && program->code[ix(op_of[ix(r)])].kind == Kind::gather; }
};

struct Source {
  enum Where : std::uint8_t { nowhere, full, row, column, scalar, segment, table_row, row_buffer, put_aside } where = nowhere;
};

class Generator : public Xbyak::CodeGenerator {
 public:
  Generator(const Plan& plan, std::int64_t rows, std::int64_t columns);
  void run(const Args& args) const { getCode<void (*)(const Args*)>()(&args); }

 private:
  struct Item {
    int op;  // of the program; -1: a store of `reg`
    int at;  // which vector of columns
    int reg;
  };
  Vec vec(int i) const { return plan_.wide ? Vec(Xbyak::Zmm(i)) : Vec(Xbyak::Ymm(i)); }
  Vec temp(int i) const { return vec(first_temp_ + i); }
  bool masked(int at) const { return over_rows_ ? row_masked_ : stretch_masked_ && at == stretch_count_ - 1; }
  Xbyak::Opmask mask() const { return over_rows_ ? k2 : k1; }

  Xbyak::Address memory(std::byte* base, const Reg64& index, std::int64_t bytes);
  bool is_bf16(int reg) const { return plan_.reg(reg).dtype == DType::bf16; }
  Xbyak::Address half_memory(std::byte* base, const Reg64& index, std::int64_t bytes);
  void load_bf16(const Vec& v, const Xbyak::Address& from, bool one_number, bool part);
  void store_bf16(const Xbyak::Address& to, const Vec& v, bool part);
  void round_to_bf16(const Vec& y);
  Source::Where source_of(int reg) const;
  void load(const Vec& v, int reg, int at);
  void store(int reg, const Vec& v, int at);
  void put_aside(int reg, const Vec& v, int at);
  void fetch_ahead(int count);

  int id_of(int reg, int at) const;
  int next_use(int id, int now) const;
  int take(int now);
  int fetch(int reg, int at, int now);
  void bind(int id, int vector) { vector_of_[id] = vector, holder_[ix(vector)] = id; }
  void emit_stretch(const std::vector<Item>& items, bool over_rows, int count, bool mask_last);

  void emit(const Item& item, int now);
  void elementwise(const RowProgram::Op& op, const RowKernel& kernel, const Vec& y, const std::vector<Vec>& x);
  void unary(simd::Unary f, const RowProgram::Op& op, const Vec& y, const Vec& x);
  void exponential(const Vec& y, const Vec& x);
  void exponential_within(const Vec& y);
  void hyperbolic_tangent(const Vec& y, const Vec& x);
  void logistic(const Vec& y, const Vec& x);
  void logarithm(const Vec& y, const Vec& x);
  void logarithm_of_normal(const Vec& y);
  void soft_plus(const Vec& y, const Vec& x);
  void piecewise(const Vec& a, const float (*table)[16], int degree, float shift, int low_bit);
  void complementary_error(const Vec& y, const Vec& a);
  void error_near_zero();
  void error_function(const Vec& y, const Vec& x);
  void gaussian_unit(const Vec& y, const Vec& x);
  void arc_cosine(const Vec& y, const Vec& x);
  void polynomial(const Vec& p, const Vec& x, std::initializer_list<float> coefficients, const Vec& scratch);
  void where(const Vec& y, const Vec& condition, const Vec& yes, const Vec& no);
  void choose(const Vec& y, int predicate, const Vec& a, const Vec& b, const Vec& yes, const Vec& no);
  void keep_nan(const Vec& y, const Vec& candidate);
  void broadcast_bits(const Vec& v, std::uint32_t bits);
  void broadcast_number(const Vec& v, float x) { broadcast_bits(v, __builtin_bit_cast(std::uint32_t, x)); }
  Xbyak::Address every_lane(std::uint32_t bits);
  Xbyak::Address every_lane(float x) { return every_lane(__builtin_bit_cast(std::uint32_t, x)); }
  void emit_constants();
  Vec accumulator(int op, int at) const { return vec(accumulator_.at(op) - at % copies_.at(op)); }
  void accumulate(Reduction r, const Vec& acc, const Vec& v, bool masked);
  void fold_lanes(Reduction r, const Vec& acc);
  void add_to_fold(int op, const Vec& sum);

  void row_phase();
  void full_phase();
  void find_rows(const std::vector<Item>& of_one);
  void columns(const std::vector<Item>& of_one);
  void finish_block();

  const Plan& plan_;
  const RowProgram& p_;
  const std::int64_t rows_, columns_;
  const int lanes_, first_temp_, mask_vector_;
  int phase_ = 0;
  bool row_masked_ = false;
  // The stretch of straight-line code that is being written.
  bool over_rows_ = false, stretch_masked_ = false;
  int stretch_count_ = 0;
  std::map<int, std::vector<int>> uses_;  // id -> items that read it, ascending
  std::map<int, int> vector_of_, slot_of_;
  std::vector<int> holder_;  // vector -> id; -1 free, -2 not ours to give
  std::vector<int> pinned_;
  int slots_ = 0;
  std::map<int, int> accumulator_;  // op -> the last of its `copies_` vectors
  std::map<int, int> copies_;       // so that one comparison need not wait for the one before
  std::map<std::uint32_t, Xbyak::Label> constants_;

  const Reg64 common_ = rbx, full_ = r13, row_ = r12, column_ = r14, scratch_ = r10, folds_ = r11, aside_ = rsi,
              row_memory_ = rdx, tmp_ = rax, half_ = rcx, loop_ = r15, ahead_ = r8, segment_ = r9;
};

}  // namespace sg::cpu::jit
