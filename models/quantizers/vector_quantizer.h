// VectorQuantizer: a codebook of K rows of D numbers; each row of its input is replaced by the nearest code, and a
// chosen gradient estimator decides what the encoder receives. A rule decides how the codebook learns.
//
// Cosine metric: input rows and codes are divided by their lengths (x / sqrt(|x|^2 + 1e-12), differentiable) before the
// lookup, and so is z_q after the estimator, as in the code of Fifty et al. 2410.06424; z, q and both losses are those
// of the normalised rows. The stored codes may have any length.
#pragma once
#include "models/quantizers/quantizer.h"

namespace sg {

using VectorQuantizerConfig = QuantizerConfig;

class VectorQuantizer final : public Quantizer {
 public:
  VectorQuantizer(Module& parent, std::string_view name,
                  VectorQuantizerConfig config);  // Error{usage} naming the field

  // Losses: "codebook" mean (q - sg z)^2, weight beta where it trains the codes and 0 where they are state;
  // "commitment" mean (z - sg q)^2, weight gamma; the estimator's own.
  Quantized operator()(Operand z, const QuantizeContext& context = {}) const override;
  Value decode(Operand indices) const override;  // i32 S -> S + [D]
  Value requantize(Operand indices) const override;
  std::int64_t dim() const override { return config_.dim; }
  std::int64_t codes() const override { return config_.codes; }
  std::string describe() const override;

  // Records, from start-of-step values (n: counts of this batch, s: sums of its rows by code):
  //   EMA:      N <- g N + (1-g) n,  m <- g m + (1-g) s,  code <- m / N~,  N~ = (N + eps) / (sum N + K eps) sum N
  //   revival:  codes with N < threshold become rows of this batch, drawn with replacement; N <- threshold and
  //             m <- row threshold with them. With a codebook trained by loss, N alone is averaged, and the optimizer's
  //             moments of a replaced code are left as they are: they decay within a few steps.
  void update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) override;
  Value estimator_term(Value loss, const Quantized& quantized) const override;

  // k-means on rows (N,D), where init is kmeans; the codebook's averages restart there. Error{shape} where D differs.
  bool wants_rows() const override { return config_.init == CodebookInit::kmeans; }
  void initialize(const Tensor& rows, Backend& backend) override;
  // Sets the codebook (K,D) and restarts its averages there.
  void set_codebook(const Tensor& codes);

  Variable& codebook() const { return *codebook_; }
  bool trained_by_loss() const { return config_.codebook == CodebookUpdate::loss; }
  const VectorQuantizerConfig& config() const { return config_; }

 private:
  Value compared_codes(Tape& tape, Loc loc) const;  // (K,D): normalised under the cosine metric
  VectorQuantizerConfig config_;
  Variable* codebook_;
  Variable* count_ = nullptr;  // (K): N, with EMA or revival; starts at 1
  Variable* sum_ = nullptr;    // (K,D): m, with EMA; starts as the codes
};

}  // namespace sg
