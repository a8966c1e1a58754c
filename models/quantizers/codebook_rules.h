// How a codebook learns, besides by the gradient of a loss: the parts of VectorQuantizer::update that are formulas.
// Rows are (N,D), indices i32 (N), codes (K,D); masks as in ops/masks.h, and padding is 0 in the rows.
#pragma once
#include "models/quantizers/config.h"

namespace sg {

// Error{usage} naming the first field that a codebook cannot have, alone or with the others.
void check_codebook_config(const QuantizerConfig& config);

// Whether the codebook is a parameter, or made of parameters, that the codebook loss trains: loss, simvq, affine.
// The others hold it as state, which no gradient reaches: codes are sg[state].
bool trained_by_loss(CodebookUpdate rule);
bool averaged(CodebookUpdate rule);  // ema, ema_loss

// A count and a sum of rows for each code: of a batch, or averaged over batches.
struct CodeSums {
  Value count;  // (K)
  Value sum;    // (K,D)
};
CodeSums sums_by_code(Operand rows, Operand indices, std::int64_t codes, Value mask = {});

// EMA (1711.00937, appendix): N <- g N + (1-g) n, m <- g m + (1-g) s, for averages N, m and the batch's n, s.
CodeSums moved_averages(const CodeSums& averages, const CodeSums& batch, double decay);
// The same as the gradient of a loss (2309.16354): L = sum sg[N - N_tgt] st(N) + sum sg[m - m_tgt] st(m) with
// st(x) = x - sg[x] and N_tgt = g N + (1-g) parts n, m_tgt alike. Its forward value is 0; a step of SGD with rate 1
// along its gradient in N and m is the EMA step. Where the gradient is to be averaged over `parts` parts of a batch
// (micro-batches, machines), each part's loss takes its own sums and that number, and the average is the step of the
// whole batch.
Value ema_loss(const CodeSums& averages, const CodeSums& batch, double decay, std::int64_t parts = 1);
// One such step: averages - gradient.
CodeSums stepped_by_ema_loss(const CodeSums& averages, const CodeSums& batch, double decay);
// m / N~ with Laplace smoothing: N~ = (N + eps) / (sum N + K eps) sum N.
Value averaged_codes(const CodeSums& averages, double eps);

// One step of gradient descent on 1/2 sum_k mean_{rows of k} |c_k - sg[z]|^2: c_k moves by `rate` of the way to the
// mean of its rows; codes without rows stay. The assignment is taken as given (2305.08842, alternated optimisation).
Value inner_step(Value codes, Value rows, Value indices, Value mask, double rate);

}  // namespace sg
