// Latent quantization (Hsu et al. 2305.18378): each dimension has a small codebook of numbers of its own, and becomes
// the nearest of them. The numbers learn.
#pragma once
#include "models/quantizers/quantizer.h"

namespace sg {

// Books: the dimensions. Levels of each: config.grid, or config.codes levels in each of config.dim dimensions.
// z_q = z + sg[q - z], Jacobian I. Losses: "codebook" mean (q - sg z)^2, weight beta, which alone trains the values;
// "commitment" mean (z - sg q)^2, weight gamma. Values start evenly spaced from -1/2 on, 0 among them: L odd up to 1/2,
// L even up to 1/2 - 1/L.
class LatentQuantizer final : public Quantizer {
 public:
  LatentQuantizer(Module& parent, std::string_view name, const QuantizerConfig& config);  // Error{usage}

  Quantized operator()(Operand z, const QuantizeContext& context = {}) const override;
  Value decode(Operand indices) const override;
  Value requantize(Operand indices) const override;
  std::int64_t dim() const override { return static_cast<std::int64_t>(levels_.size()); }
  std::int64_t books() const override { return dim(); }
  std::int64_t codes() const override;
  double bits_per_row() const override;
  std::string describe() const override;
  const std::vector<std::int64_t>& levels() const { return levels_; }
  Variable& values() const { return *values_; }  // (sum of the levels, 1): one dimension's after another's

 private:
  Value nearest(Value rows) const;                    // (N,D) -> i32 (N,D)
  Value look_up(Operand indices, DType dtype) const;  // i32 (N,D) -> (N,D); out of range: Error{attribute} at run time
  Value rows_of_indices(Operand indices) const;       // index_shape -> (N,D)
  std::vector<std::int64_t> levels_;
  double beta_, gamma_;
  Variable* values_;
};

}  // namespace sg
