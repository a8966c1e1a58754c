// Gradient estimators for a quantizer: given the encoder's rows z (N,D) and their codes q (N,D), a z_q whose Jacobians
// in z and q are chosen and whose forward value is q, but for those that say otherwise. Each is a composition; none is
// known to the engine. Names and default arguments of the command line are in ops/estimator_table.h.
//
// Written below: u = z/|z|, v = q/|q|, lambda = |q|/|z|, R the rotation of u onto v in their plane, d = (q-z)/|q-z|.
// "Jacobian" is that in z; nothing reaches q or the codes unless a Jacobian in them is given.
//
// Degenerate rows: lengths up to 1e-18 count as 0. z = 0 gives lambda = 1 and R = I (there is no direction to rotate),
// q = 0 gives lambda = 0 and R = I, q = -z makes R the reflection I - 2uu^T, q = z the identity. No small number is
// added to any length, so every other row has exactly the Jacobian that is stated.
#pragma once
#include <functional>

#include "core/tape.h"

namespace sg {

using Estimator = std::function<Value(Value z, Value q)>;

// The forward value of one, the derivative of the other: gradient + sg[forward - gradient]. The exact-forward pass
// makes it `forward` bit for bit. Every estimator below whose forward value is q ends in it. Both of one type.
// Jacobian: that of `gradient`.
Value graft(Value forward, Value gradient);

// ---- linear maps of z

// z + sg[q - z]. Jacobian I. (Bengio et al. 1308.3432; van den Oord et al. 1711.00937)
Value straight_through(Value z, Value q);

// z + sg[q - z] + nu (q - sg q). Jacobians I in z, nu I in q: the codebook gets nu times the decoder's gradient.
// (Huh et al. 2305.08842)
Value synchronized(Value z, Value q, double nu);

// sg[G] z + sg[q - sg[G] z], for G scalar [], diagonal per row (N,D) or shared (D), or dense per row (N,D,D). Jacobian
// G. (2410.06424; kexue.fm 10489)
Value g_matrix(Value z, Value q, Value g);

// The same for G = I + U V^T, applied from right to left and never formed. U and V: (D,r), or (N,D,r) per row; stopped.
Value g_low_rank(Value z, Value q, Value u, Value v);

// G-matrix estimators with a G of their own: the ratio of the batch's mean norms, lambda of each row, lambda R formed
// as a matrix (N,D,D), and R as I + U V^T with U = [-2w, 2v], V = [w, u], w = (u+v)/|u+v|. The last two are there to
// compare with rotation_trick and corrected_rotation.
Value scaled_by_batch(Value z, Value q);
Value scaled_by_row(Value z, Value q);
Value rotation_by_matrix(Value z, Value q);
Value rotation_by_low_rank(Value z, Value q);

// ---- rotations

// G = lambda R, applied without forming R: R z = z - 2 w (w.z) + 2 v (u.z), w = (u+v)/|u+v|. Jacobian lambda R.
// (Fifty et al. 2410.06424, eq. 4)
Value rotation_trick(Value z, Value q);

// What 2410.06424's code for its tables 3 and 4 does: R is applied to |q| u with u not stopped. Jacobian
// lambda R (I - uu^T): the encoder gets no gradient along z. Written as this linear map of z with u stopped, so that at
// order 2 it does not follow the motion of u.
Value released_rotation(Value z, Value q);

// G = R, without lambda: "R + (q - R e)" of 2410.06424, table 6. Jacobian R.
Value corrected_rotation(Value z, Value q);

// G = gamma R with gamma = 1 / (c |q-z|^2), 1 where |q-z| counts as 0. Jacobian gamma R. (2410.06424 A.9.2: c = 8)
// gamma is unbounded where codes come near.
Value inverse_distance_rotation(Value z, Value q, double c);

// sg[lambda^a R] z + b sg[q - lambda^a R z]. Jacobian lambda^a R. Forward q where b = 1, and where a = 1 (then the
// second term is 0 but for rounding, and z_q is made q exactly). (Asked for by the reviewers of 2410.06424)
Value two_parameter_rotation(Value z, Value q, double a, double b);

// The rotation trick about an origin o (D), which is stopped: G rotates and scales z-o onto q-o. Jacobian G. Shifting
// z, q and o alike does not change G; the uncentred rotation's goes to I far from the origin.
Value centred_rotation(Value z, Value q, Value origin);

// G = lambda (I - 2 r r^T), r = (u - v)/|u - v|. Jacobian G. q = z gives lambda I. (2410.06424, A.8)
Value reflection(Value z, Value q);

// ---- by the distance between z and q

// z + r sg[(q-z)/r], r = |q-z|^a. Jacobians I - a dd^T in z, a dd^T in q; I and 0 where q = z. (Seed author's follow-up
// to kexue.fm 10489; GRIT-VQ 2602.01140)
Value radius(Value z, Value q, double a);

// z + |q-z| sg[e/|e|], e = noise (N,D), standard normal. Forward value: as far from z as q is, in a random direction.
// Jacobians I - ed^T in z, ed^T in q, with e of unit length; I and 0 where q = z. (Vali & Backstrom, IEEE Access 2022,
// 9696322)
Value nsvq(Value z, Value q, Value noise);

// z + |q-z| sg[(q-z+e)/|q-z+e|], e = noise (N,D), N(0, s^2 I). Forward value: near q. Jacobians I - fd^T in z, fd^T in
// q, with f that unit vector. (Vali et al. 2509.26469: s^2 = 1e-3; its code draws with a standard deviation of 1e-3,
// that of lucidrains has s^2 = 5e-3.) Without noise, "DiVeQ-detach", it is radius(z, q, 1).
Value diveq(Value z, Value q, Value noise);

// DiVeQ towards a point between two codes: z + |q-z| sg[(1-t) f] + |q'-z| sg[t f'], f = (q-z+e)/|q-z+e| and likewise
// f'. t (N,1) in [0,1]. Forward value: near (1-t) q + t q'. Jacobians I - (1-t) fd^T - t f'd'^T in z, (1-t) fd^T in q,
// t f'd'^T in q'. (2509.26469, eq. 12; SFVQ 2410.20573)
Value sf_diveq(Value z, Value q, Value q_next, Value t, Value noise);

// ---- by a distribution over all codes (K,D)
//
// z_q = y C with y = onehot(k) + pi - sg[pi], written as q + pi sg[C] - sg[pi C]: no one-hot is formed, and the codes
// get the gradient at z_q directly in row k (through q) and through the logits in every row. The probabilities pi are
// (N,K) arrays by nature.

// Logits (N,K) whose softmax is that of -|z-c|^2, up to a constant of each row: 2 z.c - |c|^2.
Value distance_logits(Value z, Value codes);

// pi = softmax((l + noise)/tau), l = distance_logits. tau: a number or a scalar. noise: (N,K), or null for none.
// Jacobian (2/tau) Cov_pi(C), Cov_pi(C) = sum_k pi_k (c_k - m)(c_k - m)^T, m = sum_k pi_k c_k. (With Gumbel noise, by
// which k was drawn too: Gumbel-softmax ST, Jang et al. 1611.01144. Without: softmax ST, the backward half of decoupled
// ST, Shah et al. 2410.13331)
Value soft_one_hot(Value z, Value q, Value codes, Operand tau, Value noise = {});

// ReinMax: p0 = softmax l, p1 = softmax(sg[log p - l] + l) with p = (onehot + softmax(l/tau))/2, pi = 2 p1 - p0/2,
// written without the one-hot. Jacobian 4 Cov_p(C) - Cov_p0(C). (Liu et al. 2304.08612)
Value reinmax(Value z, Value q, Value codes, double tau);

// pi = softmax(l/tau), l = z C^T. Jacobian (1/tau) Cov_pi(C). (Index backpropagation, Shi et al. 2412.02692)
Value index_backpropagation(Value z, Value q, Value codes, double tau);

// ---- by a term of the loss
//
// Scalars of forward value 0 that are added to `loss`, a function of z_q on the same tape. z_q may be the rows in
// another shape, such as a map (N,H,W,D). Parameters get nothing by them but through z.

// To go with straight_through: the encoder gets g + H(q)(z - q) where it got g = dL/dz_q, H the Hessian of the loss in
// z_q, by a double backward. (2410.06424, section 3)
Value hessian_term(Value loss, Value z, Value q, Value z_q);

// To go with z_q = sg[q]: the encoder gets dL/dz_q at z_q = z, by recording the loss once more with z in the place of
// z_q and every variable that it reads stopped. (2410.06424, section 3, which scales a second decode by 1e6 and back
// instead)
Value exact_gradient_term(Value loss, Value z, Value z_q);

}  // namespace sg
