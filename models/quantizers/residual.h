// ResidualQuantizer: levels of codebooks, each of which codes what those before it left over.
//
//   r_1 = z,  q_i = nearest code of r_i,  r_{i+1} = r_i - sg[q_i],  z_q = estimator(z, q_1 + ... + q_L)
// (SoundStream 2107.03312, RQ-VAE 2203.01941, EnCodec 2210.13438)
//
// Each level's losses are between r_i and q_i, so every codebook learns and every level's commitment reaches the
// encoder: r_i is z less a constant. No level's gradient passes through another's straight-through output, which is how
// later levels of other implementations come to have none (encodec#25).
//
// Level dropout: in a share `level_dropout` of the steps only the first n levels count, n uniform on 1..L: in the sum,
// in the losses (means over those n) and in what update() averages. It is drawn from the step's random state, and all
// levels are always computed and give indices. Evaluation uses all.
#pragma once
#include "models/quantizers/vector_quantizer.h"

namespace sg {

class ResidualQuantizer final : public Quantizer {
 public:
  // Error{usage} naming the field. Refused: the cosine metric, as residuals have lengths and its codes have none.
  ResidualQuantizer(Module& parent, std::string_view name, QuantizerConfig config);

  // Losses: those of the levels, each the mean over the levels that count; with level dropout "levels", n, of weight 0.
  // Estimators that need a codebook (gumbel, ibq) estimate level by level, and z_q is the sum; all others take z and
  // the sum of codes. z and q are the input's rows and the sum of codes.
  Quantized operator()(Operand z, const QuantizeContext& context = {}) const override;
  Value decode(Operand indices) const override;      // i32 S + [L] -> S + [D]
  Value requantize(Operand indices) const override;  // level by level
  std::int64_t dim() const override { return config_.dim; }
  std::int64_t books() const override { return config_.levels; }
  std::int64_t codes() const override { return config_.codes; }
  std::string describe() const override;

  // Each level's own; where books are shared, one update from the rows of all levels together.
  void update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) override;
  Value estimator_term(Value loss, const Quantized& quantized) const override;

  // Level by level, each from what the levels before it leave over; shared books from the rows themselves.
  bool wants_rows() const override { return books_[0]->wants_rows(); }
  void initialize(const Tensor& rows, Backend& backend) override;

  VectorQuantizer& level(std::int64_t i) const {
    return *books_[config_.shared_books ? 0 : static_cast<std::size_t>(i)];
  }

 private:
  bool level_by_level() const { return static_cast<bool>(config_.estimator.def.assign); }
  std::vector<Value> shares(Value count) const;  // 1 for each level below the count, else 0
  Value indices_of(Operand indices, std::int64_t level) const;
  QuantizerConfig config_;
  std::vector<std::unique_ptr<VectorQuantizer>> books_;  // one, or one per level
};

}  // namespace sg
