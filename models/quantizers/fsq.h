// Finite scalar quantization: each dimension is squashed into a bounded interval and rounded. No codebook, no loss.
#pragma once
#include "models/quantizers/grid.h"

namespace sg {

// FSQ (Mentzer et al. 2309.15505). For L levels: h = (L-1)(1 + 1e-3)/2, o = 1/2 where L is even and 0 where it is odd,
// s = atanh(o/h), f = tanh(z + s) h - o, code = round(f) / floor(L/2).
// Jacobian: diag(h sech^2(z + s)) / floor(L/2). Quantized::z is f / floor(L/2).
// Levels: config.grid, or the paper's for config.codes (fsq_levels); at least 3 of each dimension: with 2, s puts z = 0
// on the flat part of tanh. encode(decode(i)) is not i for every grid, as codes are not mapped to themselves by f;
// requantize(i) always is.
class FiniteScalarQuantizer final : public GridQuantizer {
 public:
  FiniteScalarQuantizer(Module& parent, std::string_view name, const QuantizerConfig& config);

 private:
  Assigned assign(Value rows) const override;
};

// FSQ with levels that lie symmetrically about 0 (Parker et al. 2411.19842, section 3.2):
// code = 2/(L-1) floor((L-1)(tanh z + 1)/2 + 1/2) - 1, so that L = 2 is {-1, 1}. Jacobian: diag(sech^2 z).
// In training the share config.dither of the elements gets noise instead of rounding: tanh z + u, u uniform over one
// step, [-1/(L-1), 1/(L-1)). Indices and evaluation have none. Quantized::z is tanh z.
class SymmetricScalarQuantizer final : public GridQuantizer {
 public:
  SymmetricScalarQuantizer(Module& parent, std::string_view name, const QuantizerConfig& config);

 private:
  Assigned assign(Value rows) const override;
  Value forward(Value code, Value smooth, const QuantizeContext& context) const override;
  double dither_;
};

// config.grid where there is one, each of at least `least` levels; else the levels that table 1 of 2309.15505
// recommends for 2^8, 2^10, 2^12, 2^14 or 2^16 codes (their products come near these). Error{usage} for other sizes.
std::vector<std::int64_t> fsq_levels(std::string_view what, const QuantizerConfig& config, std::int64_t least);

}  // namespace sg
