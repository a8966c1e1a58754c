// Bundles: several regions (core/row_program.h) run as one step.
//
// A *chain* runs regions that hand values to each other part by part: every value of the chain is cut into as many equal
// runs of memory, the samples of a batch, and all regions pass over one part before any of them begins with the next. So
// a part stays in the cache from the first pass over it to the last: group norm takes three, and reads memory once.
// *Updates* do not need each other: the new values of all variables, made by an optimizer, in one pass for all threads.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "core/rewrite.h"
#include "core/row_program.h"

namespace sg {

// What an instruction of Role::bundle says: {"programs": pool indices, "operands": for the inputs of all programs, one
// after the other, an input of the instruction or, from inputs.size() on, an output, "types", "parts"}.
struct RowBundle {
  struct Region {
    const RowProgram* program;
    std::vector<std::int32_t> inputs, outputs;  // values
  };
  std::vector<Region> regions;  // a region reads what earlier ones made
  std::int64_t parts = 1;       // of a chain, each program has as many segments; 1: updates
};
RowBundle row_bundle(const Tape& tape, const Instr& instr);

// Cuts the rows of small regions that work on what came of each segment (the numbers of a group, of a sample) into those
// segments, so that they can be part of a chain. To be run before anything depends on the order of regions: the cut of a
// region's rows decides how its sums are rounded.
Rewritten align_segments(const Tape& tape);

// Puts regions of the tape into bundles. A chain is made of regions that follow each other, updates of regions that make
// nothing but new values of variables and numbers, and whose operands are there when the first of them runs.
Rewritten bundle_rows(const Tape& tape, std::span<const std::int32_t> keep);

// Off: bundle_rows() leaves the tape as it is, and every region is a step of its own. For tests and comparisons; no bit of
// a result depends on it.
void set_row_bundles(bool on);

// Whether an output of a bundle may be written over an input: where the region that makes it alone may do so, by the
// backend's rule, and no other region reads the input afterwards.
using RegionInPlaceFn =
    std::function<bool(const RowProgram& program, std::span<const std::int32_t> inputs, int input, int output)>;
bool bundle_in_place(const Tape& tape, const Instr& instr, int input, int output, const RegionInPlaceFn& in_region);

}  // namespace sg
