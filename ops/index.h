// Rows by index. indices are i32 of any shape S.
#pragma once
#include "core/tape.h"

namespace sg {

Value gather_rows(Operand table, Operand indices);                              // (K,D), S -> S + [D]
Value scatter_add_rows(Operand indices, Operand updates, std::int64_t rows);    // S, S + [D] -> (rows, D), deterministic
Value one_hot(Operand indices, std::int64_t depth, DType dtype = DType::f32);   // S -> S + [depth]
Value histogram(Operand indices, std::int64_t bins);                            // i32 [bins]

enum class Metric : std::uint8_t { euclidean, cosine };
// For each row of z (N,D) the index of the nearest row of codes (K,D): least Euclidean distance, or greatest cosine.
// Ties go to the lowest index. Never stores an N x K array. Piecewise: no gradient.
Value nearest_code(Operand z, Operand codes, Metric metric = Metric::euclidean);

}  // namespace sg
