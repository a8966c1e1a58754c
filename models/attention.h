// Scaled dot-product attention (Vaswani et al. 1706.03762) as a composition, and a module of several heads.
#pragma once
#include "models/layers.h"

namespace sg {

// softmax(scale q k^T + bias) v for q (B...,T,dk), k (B...,S,dk), v (B...,S,dv) -> (B...,T,dv). scale 0: dk^(-1/2).
// bias: null, or what broadcasts to (B...,T,S): causal_bias(), positions. Holds T x S scores per leading extent.
// Error{shape} where extents disagree.
Value attention(Operand q, Operand k, Operand v, Value bias = {}, double scale = 0);

// What a masked score gets: finite, so that no row of scores makes a NaN, and exp of it is 0 beside any other score.
inline constexpr double kMaskedScore = -1e30;

// (T,T): 0 where column <= row, kMaskedScore elsewhere: position t sees positions up to t.
Value causal_bias(Tape& tape, std::int64_t t, DType dtype = DType::f32, Loc loc = Loc::current());

// Queries, keys and values of x by heads, attended to and projected back: (B...,T,dim) -> (B...,T,dim), heads of
// dim / heads numbers. A cache of keys and values is made of project() and merge(). Error{attribute}: dim is no
// multiple of heads.
class MultiHeadAttention : public Module {
 public:
  MultiHeadAttention(Module& parent, std::string_view name, std::int64_t dim, std::int64_t heads, bool bias = true);

  struct Heads {
    Value q, k, v;  // (B...,heads,T,dim/heads)
  };
  Heads project(Operand x) const { return {split(query_, x), split(key_, x), split(value_, x)}; }
  Value merge(Operand out) const;  // (B...,heads,T,dim/heads) -> (B...,T,dim), projected

  // bias as in attention(); it broadcasts to (B...,heads,T,S).
  Value operator()(Operand x, Value bias = {}) const { return (*this)(x, x, bias); }
  Value operator()(Operand x, Operand context,
                   Value bias) const;  // queries of x; keys and values of context (B...,S,dim)

  std::int64_t heads() const { return heads_; }

 private:
  Value split(const Linear& projection, const Operand& x) const;

  std::int64_t heads_, dim_;
  Linear query_, key_, value_, out_;
};

}  // namespace sg
