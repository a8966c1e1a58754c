// Sequences from a model that gives logits of the next token. A token is drawn on the host: temperature, then the k
// likeliest (Fan et al. 1805.04833), then the nucleus of mass p (Holtzman et al. 1904.09751), then one number of a
// generator.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"
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

// A model that makes several sequences at once, token by token, in memory that does not grow.
class TokenGenerator {
 public:
  virtual ~TokenGenerator() = default;
  virtual std::int64_t sequences() const = 0;
  virtual std::int64_t vocabulary() const = 0;
  virtual std::int64_t longest() const = 0;  // tokens of a sequence at most; 0: any number
  virtual std::int64_t classes() const = 0;  // 0: sequences have none
  // Starts new sequences. classes: one per sequence, or none where the model has none; Error{usage} otherwise.
  virtual void begin(std::span<const std::int32_t> classes) = 0;
  // f32 (sequences, vocabulary): logits of the next token of each sequence. previous: the token before it, one per
  // sequence; empty right after begin(). Valid until the next call.
  virtual const Tensor& next(std::span<const std::int32_t> previous) = 0;
};

// i32 (sequences, length), each token drawn after the ones before it; the same for the same seed. Error{usage}: longer
// than the model can, classes that it has not.
Tensor generate(TokenGenerator& model, std::int64_t length, const SamplingOptions& options, std::uint32_t seed,
                std::span<const std::int32_t> classes = {});

}  // namespace sg
