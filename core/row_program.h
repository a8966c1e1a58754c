// Row programs: a region of a tape as one pass over memory.
//
// A region is a set of elementwise, broadcasting and reducing instructions over one space of `rows` x `columns`. Its
// values are full (one number per element), per row, per column, or a single number; reductions along a row stay inside,
// reductions over all rows leave the region as outputs. fuse_rows() finds regions, a backend executes them.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/rewrite.h"

namespace sg {

struct RowProgram {
  enum class Layout : std::uint8_t { full, row, column, scalar };
  enum class Kind : std::uint8_t {
    elementwise,
    expand,          // in[0], of any layout, repeated to full
    reduce_row,      // full -> row
    reduce_columns,  // full -> column, over all rows; an output
    reduce_all       // full or row -> scalar, over everything; an output
  };
  struct Register { Layout layout; DType dtype; };
  struct Op { Kind kind; OpId op; Attrs attrs; std::vector<int> in; int out; };

  std::int64_t rows = 1, columns = 1;
  std::vector<Register> registers;   // the inputs, in the order of the instruction's inputs, then one per op
  int inputs = 0;
  std::vector<Op> code;
  std::vector<int> outputs;          // registers, in the order of the instruction's outputs

  std::int64_t extent(Layout layout) const {
    return layout == Layout::full ? rows * columns : layout == Layout::row ? rows : layout == Layout::column ? columns : 1;
  }
  std::string formula() const;       // "r3 = mul r0 r1; ..." for explain()
};

// Whether an operand of a region comes in under another layout, too, by its own name or as a reshape of the same memory:
// then rows other than its own are read, and nothing may be written over it while the region runs.
bool is_read_across_rows(const Tape& tape, const Instr& region, int input);

// Puts the instructions that `fusible` admits (a backend's row operations) into regions. Each region becomes one
// instruction of the op with Role::region, {"program": pool index}. Instructions may move, never past a dependency.
Rewritten fuse_rows(const Tape& tape, std::span<const std::int32_t> keep, const SupportedFn& fusible);

}  // namespace sg
