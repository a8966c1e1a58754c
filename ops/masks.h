// Masks of rows: f32 (N), 1 for a row, 0 for padding. A null mask means that all are rows. Compositions.
//
// What is summed over rows goes through these, so that padding counts nowhere, neither in a value nor in a gradient.
// Padding may hold anything, NaN too, where zero_padding comes first.
#pragma once
#include "core/tape.h"

namespace sg {

// x (N,...) with zeros in place of padding; elsewhere its bits. x itself where the mask is null.
Value zero_padding(Operand x, Value mask);
// How many rows there are, at least 1: a scalar of x's dtype.
Value count_rows(Operand x, Value mask);
// Mean of x (N,...) over the rows and all other axes; 0 where there is no row. -> scalar
Value mean_of_rows(Operand x, Value mask);
// Mean of x (N,...) over the rows -> (...); zeros where there is no row.
Value mean_row(Operand x, Value mask);
// i32 (N): the numbers of the rows, in order, over and over again: 0, 2, 3, 0, 2 for the mask 1 0 1 1 0. All 0 where
// there is no row. O(N log N) work, O(N) memory. Exact up to 2^24 rows.
Value row_numbers(Value mask, Loc loc = Loc::current());

}  // namespace sg
