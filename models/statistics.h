// What is logged about a quantizer, all computed on the tape. Everything here is cut off from the gradient.
#pragma once
#include <string>
#include <vector>

#include "core/tape.h"

namespace sg {

struct NamedValue {
  std::string name;
  Value value;
};  // a named scalar

// f32 (codes): how often each index below `codes` occurs. mask: f32, of the indices' number of elements; 1: a row, 0:
// padding, which does not count. Null: all are rows. Exact up to 2^24.
Value code_counts(Operand indices, std::int64_t codes, Value mask = {});

// counts (K), real or i32: how often each code was chosen over whatever the counts cover.
Value usage(Operand counts);  // the fraction of codes chosen at least once
// exp(-sum p log(p + 1e-10)), p = counts / their sum: between 1 and K. 1 where the sum is 0. With several books (counts
// of one after the other) the mean of theirs.
Value perplexity(Operand counts, std::int64_t books = 1);

// A number per row, summed up: arithmetic mean, 5 % and 95 % quantiles. All scalars.
struct Spread {
  Value mean, low, high;
};
Spread spread(Operand per_row, Value mask = {});

// z (N,D) rows and q (N,D) their codes. With a mask, f32 (N), means are those of the rows alone, and quantiles are
// taken after padding is replaced by rows over and over again: they may lie between other neighbours than those of the
// rows alone.
struct RowStatistics {
  Value relative_error;  // mean over rows of |z - q|^2 / |z|^2: unlike |z - q|^2 no shrinking of both lowers it
  Spread norm_ratio;     // |q| / |z|
  Spread angle;          // between z and q, in degrees; 90 where one of them is 0
  // relative_error, norm_ratio, norm_ratio_p5, norm_ratio_p95, angle, angle_p5, angle_p95: as they are logged.
  std::vector<NamedValue> named() const;
};
RowStatistics row_statistics(Operand z, Operand q, Value mask = {});

// A ring of the histograms of the last `window` steps: ring f32 (W,K) and slot i32 [], both state. Writes `counts` into
// the oldest row, moves the slot on, and returns the counts (K) over the window, this step included.
Value windowed_counts(Tape& tape, Variable& ring, Variable& slot, Value counts, Loc loc = Loc::current());

}  // namespace sg
