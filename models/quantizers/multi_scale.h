// MultiScaleQuantizer: token maps of growing sides s of one latent map f (N,side,side,D), each of what the coarser ones
// left over, all with one codebook. (VAR 2404.02905, algorithm 1)
//
//   r = f;  for each side s:  k_s = nearest codes of down_s(r),  h_s = phi_s(up(C[k_s])),  r <- r - sg[h_s]
//   z_q = estimator(f, sum h_s)
//
// down_s: the mean over s x s windows, from floor(i side/s) to ceil((i+1) side/s) along each axis (PyTorch's adaptive
// average and "area" resizing). up: bilinear between pixel centres, as align_corners=False. phi_s(h) = (1-p) h + p
// conv3x3_s(h) with p = QuantizerConfig::phi; p = 0 is the identity without parameters.
//
// A map has sum s^2 indices, those of the coarsest first, row by row: indices are [N, sum s^2]. Rows of the latent map
// have no index of their own, so bits_per_row is an average.
//
// Padding: a window's mean is over the rows that are there; a token without any is padding itself.
#pragma once
#include <deque>

#include "models/layers.h"
#include "models/quantizers/vector_quantizer.h"

namespace sg {

class MultiScaleQuantizer final : public Quantizer {
 public:
  // Needs config.side. Error{usage}: scales that do not grow from 1 or more to side.
  MultiScaleQuantizer(Module& parent, std::string_view name, QuantizerConfig config);

  // Losses, each the mean over the scales, with f_s the sum of the first h: "codebook" mean (f_s - sg f)^2, which
  // trains phi too, and "commitment" mean (f - sg f_s)^2; others of the codebook. z and q: rows of the map and of sum
  // h.
  Quantized operator()(Operand z, const QuantizeContext& context = {}) const override;
  Value decode(Operand indices) const override;      // i32 [N, sum s^2] -> [N,side,side,D]
  Value requantize(Operand indices) const override;  // token by token
  std::int64_t dim() const override { return config_.dim; }
  std::int64_t codes() const override { return config_.codes; }
  Shape index_shape(const Shape& z) const override;
  double bits_per_row() const override;
  std::string describe() const override;

  void update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) override;
  Value estimator_term(Value loss, const Quantized& quantized) const override;
  bool wants_rows() const override { return book_.wants_rows(); }
  // Rows of whole maps. k-means runs on the windows of all scales as they would be if each window's mean were a code.
  void initialize(const Tensor& rows, Backend& backend) override;

  const std::vector<std::int64_t>& scales() const { return scales_; }
  std::int64_t tokens() const;  // of a map: sum s^2

 private:
  Value down(Value map, std::int64_t side) const;  // (N,side,side,C) -> (N,s,s,C): sums of windows over their sizes
  Value up(Value map) const;                       // (N,s,s,C) -> (N,side,side,C)
  Value phi(Value map, std::size_t scale) const;
  QuantizerConfig config_;
  std::vector<std::int64_t> scales_;
  VectorQuantizer book_;
  std::deque<Conv2d> phi_;  // one per scale, or none
};

}  // namespace sg
