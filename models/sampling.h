// Drawing a token from a model's logits, on the host: temperature, then the k likeliest (Fan et al. 1805.04833), then
// the nucleus of mass p (Holtzman et al. 1904.09751), then one number of a generator.
#pragma once
#include <cstdint>
#include <span>

#include "models/init.h"

namespace sg {

struct SamplingOptions {
  double temperature = 1;  // logits are divided by it; 0: always the likeliest token
  std::int64_t top_k = 0;  // only the k likeliest; 0: all
  double top_p = 1;        // only the fewest likeliest whose probabilities sum to at least p
};
// Error{usage}: temperature below 0, top_k below 0, top_p outside (0, 1].
void validate(const SamplingOptions& options);

// logits of tokens 0, 1, ...: a draw of softmax(logits / temperature) over what the options leave, renormalised. Takes
// one number of `random` unless temperature is 0. Ties go to the lower token. Error{non_finite} on a NaN or where no
// logit is finite.
std::int32_t sample_token(std::span<const float> logits, const SamplingOptions& options, HostRandom& random);

}  // namespace sg
