// Lookup-free quantizers of one bit per dimension: the code is the sign of each number. Bit i of the index is z_i > 0,
// so that 0 and NaN are 0 bits. config.codes = 2^d codes, d dimensions; config.dim plays no part.
//
// Losses. A row z is a distribution over the codes, p(c) = softmax(-|z - c|^2 / t), t = config.entropy_temperature,
// under which its bits are independent: p(bit i is 1) = sigmoid(4 z_i s / t), s the size of a code's numbers.
//   "entropy"    E[H(p)] - H(E[p]), weight config.entropy: rows sure of their code, codes used alike. In nats.
//   "diversity"  -H(E[p]), weight config.diversity
//   "commitment" mean (z - sg c)^2, weight config.gamma
// The first two are recorded where their weight is not 0. E[H(p)] is exact: entropies of independent bits add up.
#pragma once
#include "models/quantizers/grid.h"

namespace sg {

class BinaryQuantizer : public GridQuantizer {
 protected:
  // bits_at_once: entropy of E[p] by groups of so many bits; see batch_entropy.
  BinaryQuantizer(Module& parent, std::string_view name, std::string_view what, const QuantizerConfig& config,
                  bool spherical, std::int64_t bits_at_once);

 private:
  Assigned assign(Value rows) const override;
  std::vector<LossTerm> losses(Value smooth, Value code, Value mask) const override;
  bool spherical_;
  std::int64_t bits_at_once_;
  double entropy_, diversity_, temperature_, gamma_;
};

// LFQ (Yu et al. 2310.05737): code = sign z, Jacobian I. H(E[p]) is exact up to 2^20 codes, from an N x 2^(d/2) array
// on each side of a product: no N x K array. Above, it is the sum over groups of 20 bits, an upper bound.
class LookupFreeQuantizer final : public BinaryQuantizer {
 public:
  LookupFreeQuantizer(Module& parent, std::string_view name, const QuantizerConfig& config)
      : BinaryQuantizer(parent, name, "lfq", config, false, 20) {}
};

// BSQ (Zhao et al. 2406.07548): u = z/|z|, code = sign(z)/sqrt d, Jacobian (I - uu^T)/|z|; the losses are those of u.
// H(E[p]) is the paper's sum of the entropies of each bit, an upper bound. z = 0 stays 0, with Jacobian I.
class BinarySphericalQuantizer final : public BinaryQuantizer {
 public:
  BinarySphericalQuantizer(Module& parent, std::string_view name, const QuantizerConfig& config)
      : BinaryQuantizer(parent, name, "bsq", config, true, 1) {}
};

// Entropies in nats of rows whose B bits are independent and 1 with probability sigmoid(logit). Logits beyond +-80
// count as +-80. logits (N,B).
Value row_entropies(Value logits);  // (N,B): of each bit; a row's is their sum
// Entropy of the distribution of codes averaged over the rows: sum over groups of neighbouring bits, bits_at_once in
// each (the last may be smaller), of the entropy of the group's joint distribution. Exact where there is one group.
Value batch_entropy(Value logits, Value mask, std::int64_t bits_at_once);

}  // namespace sg
