// Softmax and normalisations. All but group_norm work on rows of the last axis.
#pragma once
#include "core/tape.h"

namespace sg {

Value softmax(Operand x);
Value log_softmax(Operand x);
Value cross_entropy(Operand logits, Operand labels);       // logits S + [C], labels i32 S -> S, in nats
Value layer_norm(Operand x, Operand gamma, Operand beta, double eps = 1e-5);   // gamma, beta (C)
Value rms_norm(Operand x, Operand gamma, double eps = 1e-6);
Value group_norm(Operand x, Operand gamma, Operand beta, std::int64_t groups, double eps = 1e-6);  // x (N,...,C): statistics per (N, group)
// x / sqrt(|x|^2 + 1e-12) over the last axis: rows of length 1, and a row of zeros stays one, with a finite derivative.
inline constexpr double kUnitRowEps = 1e-12;
Value unit_rows(Operand x);

}  // namespace sg
