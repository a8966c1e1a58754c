// Matrix products: (B..., M, K) x (B..., K, N) -> (B..., M, N). Batch extents broadcast. A side may be transposed in its last two axes.
#pragma once
#include "core/tape.h"

namespace sg {

Value matmul(Operand a, Operand b, bool transpose_a = false, bool transpose_b = false);

}  // namespace sg
