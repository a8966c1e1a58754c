// The quantizer of an autoencoder without one: z_q = z, no codes, no indices, no losses. It is no row of the table of
// quantizers, whose rows all have codes; make_quantizer() knows it as "none".
#pragma once
#include "models/quantizers/quantizer.h"

namespace sg {

class NoQuantizer : public Quantizer {
 public:
  NoQuantizer(Module& parent, std::string_view name, const QuantizerConfig& config)
      : Quantizer(parent, name), dim_(config.dim) {}

  // z_q alone: indices, z and q are null.
  Quantized operator()(Operand z, const QuantizeContext& context = {}) const override;
  Value decode(Operand indices) const override;      // Error{usage}: there are no codes
  Value requantize(Operand indices) const override;  // Error{usage}
  std::int64_t dim() const override { return dim_; }
  std::int64_t codes() const override { return 0; }
  double bits_per_row() const override { return 32.0 * static_cast<double>(dim_); }
  std::string describe() const override { return "no quantizer"; }

 private:
  std::int64_t dim_;
};

}  // namespace sg
