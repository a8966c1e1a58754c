// Quantizers that split the D numbers of a row into H groups of D/H: with one codebook for all of them, or with a
// quantizer for each. A row has the indices of its groups one after the other; z and q are the groups' rows
// (N*H, D/H), those of one input row together.
#pragma once
#include <functional>

#include "models/quantizers/vector_quantizer.h"

namespace sg {

// One codebook of D/H numbers for all heads (multi-head VQ with shared books): plain VQ of the rows' pieces.
class SharedHeadsQuantizer final : public Quantizer {
 public:
  SharedHeadsQuantizer(Module& parent, std::string_view name, QuantizerConfig config);

  Quantized operator()(Operand z, const QuantizeContext& context = {}) const override;  // losses: the codebook's
  Value decode(Operand indices) const override;                                         // i32 S + [H] -> S + [D]
  Value requantize(Operand indices) const override;
  std::int64_t dim() const override { return dim_; }
  std::int64_t books() const override { return heads_; }
  std::int64_t codes() const override { return book_.codes(); }
  std::string describe() const override { return fmt::format("{} heads of one book of {}", heads_, book_.describe()); }
  void update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) override;
  Value estimator_term(Value loss, const Quantized& quantized) const override;
  bool wants_rows() const override { return book_.wants_rows(); }
  void initialize(const Tensor& rows, Backend& backend) override;

 private:
  QuantizeContext pieces(const QuantizeContext& context) const;
  std::int64_t dim_, heads_;
  VectorQuantizer book_;
};

// A quantizer of its own for each group. (Product quantization; grouped residual: 2305.02765)
class GroupedQuantizer final : public Quantizer {
 public:
  using MakePart =
      std::function<std::unique_ptr<Quantizer>(Module& parent, std::string_view name, const QuantizerConfig& config)>;
  // Parts are made from the configuration with dim D/H. Error{usage}: H does not divide D.
  GroupedQuantizer(Module& parent, std::string_view name, const QuantizerConfig& config, const MakePart& make);

  // Losses: those of the parts, each the mean over the parts.
  Quantized operator()(Operand z, const QuantizeContext& context = {}) const override;
  Value decode(Operand indices) const override;
  Value requantize(Operand indices) const override;
  std::int64_t dim() const override { return dim_; }
  std::int64_t books() const override { return heads() * parts_[0]->books(); }
  std::int64_t codes() const override { return parts_[0]->codes(); }
  std::string describe() const override { return fmt::format("{} groups, each {}", heads(), parts_[0]->describe()); }
  void update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) override;
  Value estimator_term(Value loss, const Quantized& quantized) const override;
  bool wants_rows() const override { return parts_[0]->wants_rows(); }
  void initialize(const Tensor& rows, Backend& backend) override;

  Quantizer& part(std::int64_t i) const { return *parts_[static_cast<std::size_t>(i)]; }

 private:
  std::int64_t heads() const { return static_cast<std::int64_t>(parts_.size()); }
  Value slice_of(Operand x, std::int64_t part) const;  // of the last extent, cut into as many as there are parts
  Value indices_of(Operand indices, std::int64_t part) const;  // as the part has them
  std::int64_t dim_;
  std::vector<std::unique_ptr<Quantizer>> parts_;
};

// The rows of the table. multi-head: shared books or a codebook for each head; product: always the latter;
// grouped-residual: `heads` groups, each with a residual quantizer of `levels`.
std::unique_ptr<Quantizer> make_multi_head(Module& parent, std::string_view name, const QuantizerConfig& config);
std::unique_ptr<Quantizer> make_product(Module& parent, std::string_view name, const QuantizerConfig& config);
std::unique_ptr<Quantizer> make_grouped_residual(Module& parent, std::string_view name, const QuantizerConfig& config);

}  // namespace sg
