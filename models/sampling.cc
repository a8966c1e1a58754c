#include "models/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/error.h"

namespace sg {

void validate(const SamplingOptions& o) {
  if (!(o.temperature >= 0 && std::isfinite(o.temperature)))
    fail(ErrorKind::usage, "sampling: temperature is {}, it is at least 0 (0: the likeliest token)", o.temperature);
  if (o.top_k < 0) fail(ErrorKind::usage, "sampling: top-k is {}, it is at least 0 (0: all tokens)", o.top_k);
  if (!(o.top_p > 0 && o.top_p <= 1)) fail(ErrorKind::usage, "sampling: top-p is {}, it is in (0, 1]", o.top_p);
}

std::int32_t sample_token(std::span<const float> logits, const SamplingOptions& o, HostRandom& random) {
  validate(o);
  if (std::any_of(logits.begin(), logits.end(), [](float x) { return std::isnan(x); }))
    fail(ErrorKind::non_finite, "sampling: a logit is NaN");
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  if (order.empty() || !std::isfinite(logits[static_cast<std::size_t>(order[0])]))
    fail(ErrorKind::non_finite, "sampling: no finite logit among {}", logits.size());
  if (o.temperature == 0) return order[0];

  const double greatest = logits[static_cast<std::size_t>(order[0])];
  std::size_t kept = o.top_k > 0 ? std::min(order.size(), static_cast<std::size_t>(o.top_k)) : order.size();
  std::vector<double> weights(kept);
  for (std::size_t i = 0; i < kept; ++i)
    weights[i] = std::exp((static_cast<double>(logits[static_cast<std::size_t>(order[i])]) - greatest) / o.temperature);
  double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  if (o.top_p < 1) {
    const double wanted = o.top_p * total;
    double mass = 0;
    std::size_t n = 0;
    while (n < kept && mass < wanted) mass += weights[n++];
    kept = std::max<std::size_t>(n, 1);
    total = std::accumulate(weights.begin(), weights.begin() + static_cast<std::ptrdiff_t>(kept), 0.0);
  }
  double left = random.uniform() * total;
  for (std::size_t i = 0; i + 1 < kept; ++i)
    if ((left -= weights[i]) < 0) return order[i];
  return order[kept - 1];
}

Tensor generate(TokenGenerator& model, std::int64_t length, const SamplingOptions& options, std::uint32_t seed,
                std::span<const std::int32_t> classes) {
  validate(options);
  if (length < 1 || (model.longest() > 0 && length > model.longest()))
    fail(ErrorKind::usage, "generate: {} tokens; this model makes 1 to {}", length, model.longest());
  const std::int64_t n = model.sequences(), vocabulary = model.vocabulary();
  Tensor tokens({DType::i32, {n, length}});
  std::vector<HostRandom> random;  // one per sequence: what it draws does not depend on how many others there are
  for (std::int64_t i = 0; i < n; ++i) random.emplace_back(seed, "generate." + std::to_string(i));
  model.begin(classes);
  std::vector<std::int32_t> previous;
  for (std::int64_t t = 0; t < length; ++t) {
    const std::span<const float> logits = model.next(previous).span<float>();
    previous.resize(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<std::size_t>(i);
      previous[at] =
          sample_token(logits.subspan(at * static_cast<std::size_t>(vocabulary), static_cast<std::size_t>(vocabulary)),
                       options, random[at]);
      tokens.set(i * length + t, previous[at]);
    }
  }
  return tokens;
}

}  // namespace sg
