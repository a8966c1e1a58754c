// How far a picture is from its original, one number per image. Compositions; differentiable.
#pragma once
#include "core/tape.h"

namespace sg {

// Structural similarity (Wang et al. 2004, the index of section III-B with its constants): windows of 11 x 11 weighted
// by a Gaussian of deviation 1.5 px, those that lie inside the image; K1 = 0.01, K2 = 0.03, values in [0,1].
//   (2 mu_x mu_y + C1)(2 s_xy + C2) / ((mu_x^2 + mu_y^2 + C1)(s_x^2 + s_y^2 + C2)),  C1 = K1^2, C2 = K2^2
// with population variances (weights sum to 1). x, y: (N,H,W,C), H and W at least 11 -> (N): mean over windows and
// channels, 1 for equal images. In f32 the variances carry an error of about 1e-7, the index one of up to 1e-4.
inline constexpr std::int64_t kSsimWindow = 11;
Value structural_similarity(Operand x, Operand y);

// Means over the pixels and channels of each image: (N,H,W,C) -> (N).
Value image_squared_error(Operand x, Operand y);
Value image_absolute_error(Operand x, Operand y);

// What an 8-bit file of the image would hold: clamped to [0,1], rounded to multiples of 1/255. Piecewise.
Value as_stored(Operand images);

}  // namespace sg
