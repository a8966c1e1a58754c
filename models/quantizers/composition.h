// What quantizers that are made of other quantizers share: their parts' losses as one list, padding, the estimator over
// a sum of codes.
#pragma once
#include <functional>
#include <span>

#include "models/quantizers/quantizer.h"

namespace sg {

// The parts' losses by name, each the mean over the parts, with the weight that the parts give it: a weight means the
// same for one book and for eight. With shares (f32 scalars, one per part, 0 or 1), the mean over the parts of share 1.
// A part that lacks a name counts as 0.
std::vector<LossTerm> mean_losses(std::span<const Quantized> parts, std::span<const Value> shares = {});

// z_q of rows (N,D) in the shape of z, 0 where `mask` (N, or null) says padding.
Value shaped_like(Operand z, Value rows, Value mask);

// The estimator over what several codes make up: lookup has z and q (N,D), no codes and no indices. z_q is the
// estimator's in training, q in evaluation. check_sum_estimator: Error{usage} where the estimator cannot do without a
// codebook.
Lookup sum_lookup(const BoundEstimator& estimator, Value z, Value q, Value mask, const QuantizeContext& context);
Value estimate_sum(const BoundEstimator& estimator, const Lookup& lookup, const QuantizeContext& context);
void check_sum_estimator(std::string_view who, const BoundEstimator& estimator);

// part.update(), kept only where the scalar `active` is 1; always where it is null.
void update_where(Value active, Quantizer& part, const Quantized& quantized, const QuantizeContext& context,
                  StepUpdates& updates);

// book.update() once for all that it quantized in a step, as if their rows had been one batch. shares: f32 scalars, one
// per part, 0 where its rows do not count; none: all do.
void update_from_all(Quantizer& book, std::span<const Quantized> parts, std::span<const Value> shares,
                     const QuantizeContext& context, StepUpdates& updates);

// f(rows), on the backend.
Tensor evaluate_rows(const Tensor& rows, Backend& backend, const std::function<Value(Value)>& f);

}  // namespace sg
