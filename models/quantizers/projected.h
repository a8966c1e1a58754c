// Quantizers that compare rows in fewer dimensions than the model has: one learns the projections, one draws them.
#pragma once
#include "models/layers.h"
#include "models/quantizers/vector_quantizer.h"

namespace sg {

// z_q = W_out vq(W_in z + b_in) + b_out with VQ in code_dim dimensions, by Euclidean distance or (metric cosine, as in
// ViT-VQGAN 2110.04627) by angle. Losses, z and q are those of the projected rows.
class FactorisedQuantizer final : public Quantizer {
 public:
  FactorisedQuantizer(Module& parent, std::string_view name, QuantizerConfig config);

  Quantized operator()(Operand z, const QuantizeContext& context = {}) const override;
  Value decode(Operand indices) const override;
  Value requantize(Operand indices) const override;
  std::int64_t dim() const override { return dim_; }
  std::int64_t codes() const override { return book_.codes(); }
  std::string describe() const override { return book_.describe() + ", projected"; }
  void update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) override;
  Value estimator_term(Value loss, const Quantized& quantized) const override;
  bool wants_rows() const override { return book_.wants_rows(); }
  void initialize(const Tensor& rows, Backend& backend) override;

 private:
  std::int64_t dim_;
  Linear in_;
  VectorQuantizer book_;
  Linear out_;
};

// The index of a row is that of the nearest of K random unit codes to A^T z / |A^T z|, A (D, code_dim) drawn once
// (Xavier uniform) and neither ever trained. (BEST-RQ 2202.01855)
//
// There the indices are targets of a prediction and nothing else. So that it also quantizes, z_q here is the code taken
// back to D dimensions by the pseudo-inverse of A^T: the shortest row that is projected onto the code, whose index is
// therefore the same again. The estimator and the loss "commitment" are between z and that row.
class RandomProjectionQuantizer final : public Quantizer {
 public:
  RandomProjectionQuantizer(Module& parent, std::string_view name, QuantizerConfig config);

  Quantized operator()(Operand z, const QuantizeContext& context = {}) const override;
  Value decode(Operand indices) const override;
  Value requantize(Operand indices) const override;
  std::int64_t dim() const override { return config_.dim; }
  std::int64_t codes() const override { return config_.codes; }
  std::string describe() const override { return book_.describe() + ", projected at random"; }
  Value estimator_term(Value loss, const Quantized& quantized) const override;

 private:
  Value back(Value codes) const;  // [..., code_dim] -> [..., D]
  QuantizerConfig config_;
  Variable* projection_;       // (D, code_dim): A
  Variable* back_projection_;  // (code_dim, D): (A^T A)^-1 A^T
  VectorQuantizer book_;
};

}  // namespace sg
