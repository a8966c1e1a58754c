// Gradient estimators for a quantizer: given the encoder's rows z (N,D) and their codes q (N,D), a z_q whose forward
// value is q and whose Jacobian in z is chosen. Each is a composition; none is known to the engine.
#pragma once
#include <functional>

#include "core/tape.h"

namespace sg {

using Estimator = std::function<Value(Value z, Value q)>;

// The forward value of one, the derivative of the other: gradient + sg[forward - gradient]. The exact-forward pass
// makes it `forward` bit for bit. Every estimator below ends in it. Both of one type. Jacobian: that of `gradient`.
Value graft(Value forward, Value gradient);

// z + sg[q - z]. Jacobian I. (Bengio et al. 1308.3432; van den Oord et al. 1711.00937)
Value straight_through(Value z, Value q);

// sg[G] z + sg[q - sg[G] z], for G scalar [], diagonal per row (N,D) or shared (D), or dense per row (N,D,D). Jacobian
// G. (2410.06424; kexue.fm 10489)
Value g_matrix(Value z, Value q, Value g);

// G = (|q|/|z|) R with R the rotation of z/|z| onto q/|q| in their plane, applied without forming R:
// R z = z - 2 w (w.z) + 2 v (u.z), w = (u+v)/|u+v|. Jacobian (|q|/|z|) R. (Fifty et al. 2410.06424, eq. 4)
// Degenerate rows: z = 0 gives I (there is no direction to rotate), q = 0 gives 0, q = -z gives the reflection
// (|q|/|z|)(I - 2uu^T). Norms up to 1e-18 count as 0.
Value rotation_trick(Value z, Value q);

// G = (|q|/|z|) (I - 2 r r^T), r = (u - v)/|u - v|. Jacobian G. (2410.06424, A.8)
// z = 0 and q = 0 as above; q = z gives (|q|/|z|) I.
Value reflection(Value z, Value q);

// G-matrix estimators whose G scales z onto q in norm: by the ratio of the batch's mean norms, |q|/|z| of each row, and
// the rotation trick's (|q|/|z|) R formed as a matrix (N,D,D), to compare with.
Value scaled_by_batch(Value z, Value q);
Value scaled_by_row(Value z, Value q);
Value rotation_by_matrix(Value z, Value q);

}  // namespace sg
