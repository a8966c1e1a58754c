// Entropies of rows of choices: how certain each row is, and how evenly all of them use what there is. A composition;
// it holds arrays of the size of its logits, N x K for rows against a codebook.
#pragma once
#include "core/tape.h"

namespace sg {

// Of p = softmax(logits), logits (N,K), in nats: 0 to log K. mask: see ops/masks.h. eps stands in the logarithm of the
// second: -sum E[p] log(E[p] + eps).
struct Entropies {
  Value of_each;  // E[H(p)], the mean over the rows
  Value of_mean;  // H(E[p])
};
Entropies entropies(Operand logits, Value mask = {}, double eps = 1e-30);

}  // namespace sg
