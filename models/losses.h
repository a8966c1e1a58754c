// Losses, each term defined once. Means are over all elements, so that weights do not depend on batch or image size.
#pragma once
#include "core/tape.h"

namespace sg {

// mean (x - y)^2. Trains whatever either side depends on. x, y: one shape. -> scalar
// mask, here and below: f32 (N) for x of (N,...), 1 for a row, 0 for padding, which does not count: the loss is that of
// the rows alone. Null: all are rows.
Value mean_squared_error(Operand x, Operand y, Value mask = {});

// mean (q - sg z)^2: moves the codes q to the encoder outputs z. Trains the codebook only. (1711.00937, eq. 3, second
// term)
Value codebook_loss(Operand z, Operand q, Value mask = {});

// mean (z - sg q)^2: holds the encoder outputs z near their codes q. Trains the encoder only. (1711.00937, eq. 3, third
// term)
Value commitment_loss(Operand z, Operand q, Value mask = {});

// |Cn Cn^T|_F^2 / K^2 - 1/K for codes (K,D), Cn their rows divided by their lengths: the mean squared cosine between
// two codes, the K with themselves left out. 0 where all are orthogonal, which takes K <= D. Trains the codes. Computed
// as |Cn^T Cn|_F^2, which is the same number, so that nothing K x K is stored. A code of length 0 counts as orthogonal
// to all. (2112.00384, eq. 2)
Value orthogonal_loss(Operand codes);

// The codebook's entropies with p = softmax(-|z - c|^2 / temperature), in nats, of the rows z (N,D) and codes (K,D).
// Train both. They hold N x K numbers. See entropies() for the parts.
//   entropy   = E[H(p)] - H(E[p]): each row certain of its code, all codes in use (2310.05737, 2412.02692)
//   diversity = -H(E[p]): the second alone
struct EntropyLosses {
  Value entropy, diversity;
};
EntropyLosses entropy_losses(Operand z, Operand codes, double temperature, Value mask = {});

// beta codebook + gamma commitment. q must be the looked-up codes, not an estimator's output: a straight-through z_q
// gives no gradient to the codes, which gradients() then reports as unreachable.
struct VqLosses {
  Value codebook, commitment;  // unweighted
  Value total;                 // beta codebook + gamma commitment
};
VqLosses vq_losses(Operand z, Operand q, double beta = 1.0, double gamma = 0.25);

}  // namespace sg
