// Row programs: a region of a tape as one pass over memory.
//
// A region is a set of elementwise, broadcasting and reducing instructions over one space of `rows` x `columns`. Its
// values are full (one number per element), per row, per column, or a single number; reductions along a row stay inside,
// reductions over all rows leave the region as outputs. The rows may be cut into `segments` equal runs, the samples of a
// batch: a value of a segment is one number per run and column, read by all rows of its run, or the sum over them, which
// leaves the region too. What is read may also be rows of a table, looked up by their numbers. fuse_rows() finds regions,
// a backend executes them.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/rewrite.h"

namespace sg {

struct RowProgram {
  // table: any number of rows; an input.
  enum class Layout : std::uint8_t { full, row, column, scalar, segment, table };
  enum class Kind : std::uint8_t {
    elementwise,
    expand,          // in[0], of any layout, repeated to full
    reduce_row,      // full -> row
    reduce_columns,  // full -> column, over all rows; an output
    reduce_all,      // full or row -> scalar, over everything; an output
    reduce_segments, // full -> segment, over the rows of each; an output
    gather           // table, row of i32 -> full: row r is the table's row number in[1][r], of attrs {"rows"}
  };
  struct Register { Layout layout; DType dtype; };
  struct Op { Kind kind; OpId op; Attrs attrs; std::vector<int> in; int out; Loc loc{}; };  // loc: of a gather

  std::int64_t rows = 1, columns = 1;
  std::int64_t segments = 1;         // runs of rows / segments rows; 1 where no register is of a segment
  std::vector<Register> registers;   // the inputs, in the order of the instruction's inputs, then one per op
  int inputs = 0;
  std::vector<Op> code;
  std::vector<int> outputs;          // registers, in the order of the instruction's outputs
  // Of each output: where on the tape it was recorded, and whether by a derivative rule.
  struct Origin { std::int32_t scope = 0; bool in_gradient = false; };
  std::vector<Origin> origins;
  // The program that this one is a part of (part_of), null where it is none. Executors run a part in the way, and cut its
  // rows where they would cut those, of the whole: so the part's results have the bits that they have there.
  std::shared_ptr<const RowProgram> whole;
  const RowProgram& whole_or_own() const { return whole ? *whole : *this; }

  std::int64_t extent(Layout layout) const;  // of a table: what is read of it, one row for each row
  std::int64_t rows_of_segment() const { return rows / segments; }
  // Known after the last row only: partial sums of an executor's pieces become an output.
  static bool over_rows(Kind kind) {
    return kind == Kind::reduce_columns || kind == Kind::reduce_all || kind == Kind::reduce_segments;
  }
  std::size_t bytes(int reg) const {
    return static_cast<std::size_t>(extent(registers[static_cast<std::size_t>(reg)].layout)) *
           size_of(registers[static_cast<std::size_t>(reg)].dtype);
  }
  // "reads 144 bytes, writes 32": one pass over the inputs that `counts` admits (by default all) and the outputs.
  std::string traffic(const std::function<bool(int)>& counts = {}) const;
  std::string extents() const;       // "512 x 64", "8 segments of 64 x 32": for explain()
  std::string formula() const;       // "r3 = mul r0 r1; r4 = r2[r5]; ..." for explain()
};

// The ops of a program that some of its outputs need.
struct RowPart {
  std::shared_ptr<const RowProgram> program;
  // Of each of its inputs: the input of the whole that it is, or, as ~k, the whole's output k.
  std::vector<int> operands;
};

// `wanted`: positions of outputs, ascending. Outputs for which given[k] is set are operands where they are needed, no
// longer made: an output holds what its register does, so nothing changes a bit. Sums over rows are used by no op.
RowPart part_of(const RowProgram& program, std::span<const int> wanted, const std::vector<char>& given);

// Whether an operand of a region is a table, or comes in under another layout, too, by its own name or as a reshape of
// the same memory: then rows other than its own are read, and nothing may be written over it while the region runs.
bool is_read_across_rows(const Tape& tape, const Instr& region, int input);
bool is_read_across_rows(const Tape& tape, const RowProgram& program, std::span<const std::int32_t> inputs, int input);

// Puts the instructions that `fusible` admits (a backend's row operations) into regions. Each region becomes one
// instruction of the op with Role::region, {"program": pool index}. Instructions may move, never past a dependency. A
// gather that is admitted and read by regions of its rows and columns alone is done by each of them: nothing uses its
// own instruction any more.
// `singles`: also single instructions between regions, and sums over segments, for the sake of bundles (row_bundle.h).
Rewritten fuse_rows(const Tape& tape, std::span<const std::int32_t> keep, const SupportedFn& fusible,
                    bool singles = false);

// Whether the op gathers: rows of its first input, a table (K,D), by the numbers that its second holds. A number that is
// out of range is Error{attribute} at the instruction's line, in a region too, before it writes anything.
bool is_gather(const Instr& instr);

// Whether a region would cut its rows into segments for the instruction's sake. A backend whose executor has no segments
// does not admit such ones.
bool cuts_rows(const Tape& tape, const Instr& instr);

}  // namespace sg
