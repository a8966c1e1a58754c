#include "models/quantizers/codebook_rules.h"

#include <cmath>

#include "core/autodiff.h"
#include "core/error.h"
#include "models/statistics.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/masks.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  fail(ErrorKind::usage, "VectorQuantizer: {}", fmt::format(text, std::forward<Args>(args)...));
}

void check_numbers(const QuantizerConfig& c) {
  if (c.codes < 1) refuse("{} codes: a codebook has at least one", c.codes);
  if (c.dim < 1) refuse("codes of {} dimensions: at least one", c.dim);
  if (!(c.ema_decay >= 0 && c.ema_decay < 1)) refuse("ema_decay {} is not in [0, 1)", c.ema_decay);
  if (!(c.origin_decay >= 0 && c.origin_decay < 1)) refuse("origin_decay {} is not in [0, 1)", c.origin_decay);
  if (!(c.inner_rate > 0) || !std::isfinite(c.inner_rate)) refuse("inner_rate {} is not positive", c.inner_rate);
  if (!(c.normal_deviation > 0)) refuse("normal_deviation {} is not positive", c.normal_deviation);
  if (!(c.entropy_temperature > 0)) refuse("entropy_temperature {} is not positive", c.entropy_temperature);
  const auto not_negative = [](const char* field, double value) {
    if (!(value >= 0) || !std::isfinite(value)) refuse("{} {} is negative or not finite", field, value);
  };
  not_negative("ema_eps", c.ema_eps);
  not_negative("revival threshold", c.revival);
  not_negative("beta", c.beta);
  not_negative("gamma", c.gamma);
  not_negative("orthogonal", c.orthogonal);
  not_negative("entropy", c.entropy);
  not_negative("diversity", c.diversity);
}

void check_together(const QuantizerConfig& c) {
  const std::string_view rule = to_string(c.codebook);
  if (!c.estimator.def.estimate) refuse("the estimator has no function");
  if (c.assignment != Assignment::nearest && c.estimator.def.assign)
    refuse("assignment {}: the estimator {} assigns codes itself", to_string(c.assignment), c.estimator.text());
  if (c.revival > 0 && !sets_single_codes(c.codebook))
    refuse("revival {}: under the codebook rule {} no code can be set by itself; revival 0 is needed", c.revival, rule);
  if (c.revival == 0 && c.revival_policy != Revival::threshold)
    refuse("revival policy {} with revival 0, which revives nothing: set revival", to_string(c.revival_policy));
  if (c.revival > 0 && c.revival_policy == Revival::lru && c.revival < 1)
    refuse("revival {}: under the policy lru it is a number of steps, at least 1", c.revival);
  if (c.orthogonal > 0 && !trained_by_loss(c.codebook))
    refuse("orthogonal {}: under the codebook rule {} codes are state, which no gradient moves; 0 is needed",
           c.orthogonal, rule);
  if (c.codebook == CodebookUpdate::simvq && c.init == CodebookInit::normal)
    refuse("init normal: the rule simvq draws its frozen codes with deviation dim^-1/2; leave init, or take kmeans");
}

Value st(Value x) { return x - stop_gradient(x); }

}  // namespace

bool trained_by_loss(CodebookUpdate rule) {
  return rule == CodebookUpdate::loss || rule == CodebookUpdate::simvq || rule == CodebookUpdate::affine;
}

bool averaged(CodebookUpdate rule) { return rule == CodebookUpdate::ema || rule == CodebookUpdate::ema_loss; }

void check_codebook_config(const QuantizerConfig& config) {
  check_numbers(config);
  check_together(config);
}

CodeSums sums_by_code(Operand rows, Operand indices, std::int64_t codes, Value mask) {
  return {code_counts(indices, codes, mask), scatter_add_rows(indices, Operand(zero_padding(rows, mask)), codes)};
}

CodeSums moved_averages(const CodeSums& averages, const CodeSums& batch, double decay) {
  return {decay * averages.count + (1 - decay) * batch.count, decay * averages.sum + (1 - decay) * batch.sum};
}

Value ema_loss(const CodeSums& averages, const CodeSums& batch, double decay, std::int64_t parts) {
  const double share = static_cast<double>(parts) * (1 - decay);
  const auto term = [&](Value average, Value of_batch) {
    return sum(stop_gradient(average - (decay * average + share * of_batch)) * st(average));
  };
  return term(averages.count, batch.count) + term(averages.sum, batch.sum);
}

CodeSums stepped_by_ema_loss(const CodeSums& averages, const CodeSums& batch, double decay) {
  const std::vector<Value> g = gradients(ema_loss(averages, batch, decay), {averages.count, averages.sum});
  return {averages.count - g[0], averages.sum - g[1]};
}

Value averaged_codes(const CodeSums& averages, double eps) {
  const std::int64_t k = averages.count.shape()[0];
  const Value all = sum(averages.count);
  const Value smoothed = (averages.count + eps) / (all + static_cast<double>(k) * eps) * all;
  return averages.sum / reshape(smoothed, {k, 1});
}

Value inner_step(Value codes, Value rows, Value indices, Value mask, double rate) {
  const std::int64_t k = codes.shape()[0], n = rows.shape()[0];
  const Value counts = maximum(code_counts(indices, k, mask), 1.0);
  const Value share = 1.0 / gather_rows(reshape(counts, {k, 1}), indices);  // (N,1)
  const Value error = zero_padding(square(gather_rows(codes, indices) - stop_gradient(rows)), mask);
  return codes - rate * gradient(0.5 * sum(reshape(share, {n, 1}) * error), codes);
}

}  // namespace sg
