// Assignment of rows to codes by balanced optimal transport, for training.
#pragma once
#include "core/tape.h"

namespace sg {

// i32 (N): for each row of z (N,D) the code with the greatest share of it in the transport plan Q between rows of equal
// mass and codes (K,D) of equal mass, after five Sinkhorn iterations from Q = exp(-10 (d - min d)), d = |z - c| / std
// of all distances (OptVQ, 2412.15195, with argmax). Rows of padding have no mass; theirs is any valid index.
// Piecewise: no gradient. N x K by nature: the plan couples all rows with all codes, so it holds a few arrays of that
// size.
Value sinkhorn_assignment(Value z, Value codes, Value mask = {});

}  // namespace sg
