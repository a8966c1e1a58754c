// Causal softmax attention over quantized keys in linear time (Transformer-VQ, Lingle 2309.16354), as a composition.
//
// The function computed, for query t and all s <= t, in which k^_s is the code c of key s:
//   score(t,s) = (q_t + u) . k^_s + [t - s <= M] (q_t + w) . r_{t-s},   out_t = softmax_s(score(t,.)) v
// It does not depend on how tokens are cut into blocks. Tokens of the window (the last M and those of the block) have a
// score each; all older ones share one score for each of the S codes, (q_t + u) . c + log n_c, with n_c their number
// and the mean of their values in place of a value: exp(score) v summed over equal keys is n_c exp(.) mean(v). Cost for
// each token: O((M + L + S)(dk + dv)) for blocks of L; state: constant.
//
// Gradients: exact in q, u, w, r and values; a key has one while it is in the window. Codes of the cache are stopped.
#pragma once
#include "core/tape.h"

namespace sg {

// What is kept of earlier tokens. S codes, M slots of window, the latest token last.
struct AttentionMemory {
  Value keys;      // (B,M,dk) quantized
  Value values;    // (B,M,dv)
  Value indices;   // i32 (B,M): codes of the keys
  Value mean;      // (B,S,dv): mean of the values whose key had code s, of tokens older than the window
  Value count;     // (B,S): how many those are
  Value position;  // i32 []: tokens seen so far; slots older than that, and all else where it is 0, count as empty
};

// Of one key head and the G query heads that share it. Queries and keys are scaled already.
struct AttentionHead {
  Value q;         // (B,G,T,dk)
  Value keys;      // (B,T,dk), quantized
  Value values;    // (B,T,dv)
  Value indices;   // i32 (B,T)
  Value codes;     // (S,dk)
  Value u, w;      // (G,dk)
  Value relative;  // (G,M+1,dk): r by distance M, M-1, ..., 0
};

struct VqAttentionOptions {
  std::int64_t block = 512;        // L; divides T
  bool cache = true;               // off: nothing older than M tokens is seen
  bool gradient_to_memory = true;  // off: what a block leaves behind is stopped
};

// -> (B,G,T,dv). Replaces `memory` by what it is after the T tokens. Blocks are unrolled on the tape.
// Error{shape|attribute}: T is no multiple of the block; parts that do not fit.
Value vq_attention(const AttentionHead& head, AttentionMemory& memory, const VqAttentionOptions& options,
                   Loc loc = Loc::current());

// The same function with T x T scores over the tokens given, without a memory; a gradient reaches every key. indices
// and codes are not used, so that keys may be any. -> (B,G,T,dv)
Value dense_attention(const AttentionHead& head, Loc loc = Loc::current());

// band (...,L,C) -> (...,L,width): row i moved right by i, zeros elsewhere. width >= L + C - 1. (The shift of relative
// positions of Dai et al. 1901.02860, with zeros in place of what belongs to other rows.)
Value skewed(Operand band, std::int64_t width);

// (length, width): row p has sin and then cos of p lambda^(-2i/width). (1706.03762, with all sines first)
Tensor sinusoids(std::int64_t length, std::int64_t width, double lambda);

}  // namespace sg
