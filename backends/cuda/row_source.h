// A row program as the text of CUDA kernels, for NVRTC. No header is needed to compile it.
//
// One kernel makes everything but the sums over all rows. Where no value belongs to a row it runs over elements with a
// grid stride; else a group of lanes (part of a warp, a warp, or a block) takes a row, and passes over it as often as
// sums along it are needed: a value that is computed before such a sum and used after it stays in registers where the
// row fits into those of its group, and is computed again from memory where it does not. Sums over all rows are made in
// parts, whose number depends on the shape alone, and added up by a second kernel in a fixed order: results do not
// depend on the GPU. No part of a program that sums over segments has rows of two of them.
//
// The text depends on rows and on the elements of a flat program only through the width of indices, so that one formula
// over many sizes is compiled once; with values of segments it depends on their number and length.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "core/row_program.h"

namespace sg::cuda {

// How an input is read that has no layout of RowProgram, as NumPy broadcasting makes them: element (row, column) is at
// the sum of the row's digits times their strides, plus the column where it has columns.
struct Strided {
  struct Axis {
    std::int64_t extent, stride;
  };
  std::vector<Axis> axes;  // the row's digits, innermost first
  bool has_columns = false;
};

// A row program and what is known where it is lowered. Vectors are by input.
struct RowRegion {
  const RowProgram* program = nullptr;
  std::vector<std::optional<double>> constants;  // the number that all elements are: no operand then
  std::vector<std::optional<Strided>> strided;
  bool aligned = true;   // all operands begin at multiples of 16 bytes
  bool aliased = false;  // an output lies over an input: of full layout both, element for element
};

struct RowSource {
  static constexpr const char* kKernel = "row_program";
  static constexpr const char* kSums = "row_program_sums";

  // A sum over all rows, or over those of each segment: its parts are numbers of `element` bytes in scratch, `parts` x
  // `count` of them for each segment.
  struct Fold {
    int out;  // register
    std::int64_t count, parts;
    std::size_t element;
    std::int64_t segments = 1;
    std::size_t bytes() const { return static_cast<std::size_t>(count * parts * segments) * element; }
  };

  std::string text;
  std::string how;       // "one warp per row", ... for explain()
  unsigned block = 256;  // threads
  std::int64_t blocks = 1;
  std::int64_t extent = 0, piece = 0;  // rows or elements; those of a block where there are folds
  std::vector<int> inputs;             // that are operands
  std::vector<Fold> folds;
  std::int64_t sum_blocks = 0;
  // Parameters of kKernel: inputs, the outputs that are no folds, the parts of the folds, extent and piece (long long).
  // Parameters of kSums: for each fold parts, out and the number of parts (int).
};

// Largest number of operands that a kernel takes as parameters; programs of more go to the interpreter.
constexpr std::size_t kMaxRowOperands = 480;

RowSource row_source(const RowRegion& region);

}  // namespace sg::cuda
