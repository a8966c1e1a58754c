// VectorQuantizer: a codebook of K rows of D numbers; each row of its input is replaced by the nearest code, and a
// chosen gradient estimator decides what the encoder receives. A rule (CodebookUpdate) decides how the codebook learns;
// docs/codebooks.md has each with its formula.
//
// Codes are made of variables, by rule:
//   loss                 C, a parameter "codebook"
//   simvq                sg[E] W: E the state "codebook", W (D,D) the parameter "transform", at first I
//   affine               s C + b: parameters "codebook", "scale" (D), at first 1, and "shift" (D), at first 0
//   ema, ema_loss        sg[C], C the state "codebook", with the averages "count" (K) and "sum" (K,D)
//   alternating          sg[C] and an inner step in training; C the state "codebook"
//   frozen               sg[C], C the state "codebook"
// Revival adds "count" (K), at first 1, or "idle" (K), at first 0; estimators that need an origin add "origin" (D) and
// "origin_known" ([], 0 until the first step or initialize()).
//
// Cosine metric: input rows and codes are divided by their lengths (unit_rows) before the lookup, and so is z_q after
// the estimator, as in the code of Fifty et al. 2410.06424; z, q and all losses are those of the normalised rows. The
// stored codes may have any length.
//
// Padding (QuantizeContext::mask) is 0 in z, q and z_q and counts in no loss, average or revival. Its indices are valid
// and mean nothing.
#pragma once
#include "models/quantizers/codebook_rules.h"
#include "models/quantizers/quantizer.h"

namespace sg {

using VectorQuantizerConfig = QuantizerConfig;

class VectorQuantizer final : public Quantizer {
 public:
  VectorQuantizer(Module& parent, std::string_view name,
                  VectorQuantizerConfig config);  // Error{usage} naming the field

  // Losses: "codebook" mean (q - sg z)^2, weight beta where it trains the codes and 0 where they are state;
  // "commitment" mean (z - sg q)^2, weight gamma; "orthogonal", "entropy" and "diversity" where their weight is not 0;
  // the estimator's own. In training z_q is evaluation's, bit for bit, wherever the estimator is exact, the assignment
  // is that of the nearest code and the rule is not alternating (there it is what decode() gives after the step).
  Quantized operator()(Operand z, const QuantizeContext& context = {}) const override;
  Value decode(Operand indices) const override;  // i32 S -> S + [D]
  Value requantize(Operand indices) const override;
  std::int64_t dim() const override { return config_.dim; }
  std::int64_t codes() const override { return config_.codes; }
  std::string describe() const override;

  // Records the codebook rule's step, revival, and the running mean, from start-of-step values; see codebook_rules.h
  // and revival.h for the formulas. Uses z, q and the lookup's indices and mask of
  // `quantized`. An optimizer's moments of a revived code
  // are left as they are: they decay within a few steps. Called again in one step (a book that several levels share),
  // it continues from what the first call left.
  void update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) override;
  Value estimator_term(Value loss, const Quantized& quantized) const override;

  // From rows (N,D): codes by k-means where init is kmeans or kmeans_rows, and the averages restart there; the running
  // mean where the estimator needs one (without this it starts at the mean of the first step's batch). Error{shape}
  // where D differs.
  bool wants_rows() const override {
    return config_.init == CodebookInit::kmeans || config_.init == CodebookInit::kmeans_rows;
  }
  void initialize(const Tensor& rows, Backend& backend) override;
  // Sets the codes (K,D) and restarts everything that is kept about them: averages, W, s and b.
  void set_codebook(const Tensor& codes);

  Variable& codebook() const { return *codebook_; }
  bool trained_by_loss() const { return sg::trained_by_loss(config_.codebook); }
  const VectorQuantizerConfig& config() const { return config_; }

 private:
  Value stored_codes(Tape& tape, Loc loc) const;      // (K,D), as their variables have them at the start of the step
  Value compared_codes(Value stored, Loc loc) const;  // normalised under the cosine metric
  // Of the alternating rule: stored codes after the inner step on rows z.
  Value stepped_codes(Value stored, Value z, const Lookup& lookup) const;
  Value assign(const Lookup& lookup) const;
  Value origin(const Lookup& lookup) const;  // what centred estimators turn about in this step
  void add_losses(Quantized& out, bool training) const;
  void update_origin(Value rows, Value mask, StepUpdates& updates) const;
  void revive_codes(const Quantized& quantized, Value random, Value counts, StepUpdates& updates) const;

  VectorQuantizerConfig config_;
  Variable* codebook_;
  Variable *transform_ = nullptr, *scale_ = nullptr, *shift_ = nullptr;
  Variable *count_ = nullptr, *sum_ = nullptr, *idle_ = nullptr;
  Variable *origin_ = nullptr, *origin_known_ = nullptr;
};

}  // namespace sg
