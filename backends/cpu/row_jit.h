// Row programs by generated code: a region becomes one x86-64 function (AVX-512, or AVX2 with FMA) in which values stay
// in vector registers from their load to their store, and only what a later pass over the row needs is put aside, in
// the first-level cache.
//
// The function works on a block: as many rows as a vector has lanes, so that what is per row is computed for all rows
// of the block at once; or, where the program is one long row, on a stretch of it. No block has rows of two segments.
// Blocks are independent but for sums over rows, which go into `folds` in double.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/row_program.h"

namespace sg::cpu {

// In a chain of programs that pass over one segment after the other (core/row_bundle.h), by register: outputs that
// should stay in the cache however large they are, and inputs to fetch for the next segment. Empty: not in a chain;
// large outputs go past the caches and inputs are fetched for the next block.
struct RowHints {
  std::vector<bool> read_soon, fetch_next;
};

// Where a program's inputs and outputs are, by register number; null for temporaries.
struct RowMemory {
  std::vector<std::byte*> base;
  RowHints hints;
};

class RowJit {
 public:
  // Null where the program has an op or a type that is not generated (f64, the rarer functions, very long rows), or the
  // instruction set in use has no generator.
  static std::unique_ptr<RowJit> make(const RowProgram& program, const RowMemory& memory);
  virtual ~RowJit() = default;

  virtual std::int64_t blocks() const = 0;        // as many in each segment of the program, one segment after the other
  virtual std::size_t scratch_bytes() const = 0;  // of a thread
  virtual std::size_t fold_doubles() const = 0;   // partial sums of a chunk of blocks, to be zeroed before the first
  // Where in the folds the sums of this op of the program begin.
  virtual std::size_t fold_of(std::size_t op) const = 0;
  virtual void run(std::int64_t block, std::byte* scratch, double* folds) const = 0;
  virtual std::string detail() const = 0;  // "avx512, 1312 bytes"
};

// Longer rows would lose digits in f32 sums, and leave the cache.
constexpr std::int64_t kMaxGeneratedColumns = 4096;

// Whether the instruction set in use has a generator and it is switched on.
bool has_generator();

// Off: row programs are interpreted, on any processor. For tests and comparisons; concerns what is lowered from now on.
void set_code_generation(bool on);
bool code_generation();

}  // namespace sg::cpu
