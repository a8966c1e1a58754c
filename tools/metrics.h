// Metrics of whole data sets, from arrays: how codes are used, how two sets of features differ, how sure and how varied
// a classifier's answers are. All in double precision. docs/metrics.md says what each may be compared with.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"

namespace sg::tools {

// "Usage" has three meanings in the literature; each is a fraction of the codebook. With several books, the mean of
// theirs.
struct CodeUsage {
  double per_256_images = 0;    // codes seen in 256 images, mean over consecutive groups of 256 (a last, smaller group
                                // does not count unless it is the only one): ViT-VQGAN, rotation trick
  double over_set = 0;          // codes seen at least once in all images
  double per_65536_tokens = 0;  // codes seen in a window of 65536 consecutive tokens, mean over all of its places (all
                                // tokens where there are fewer): LlamaGen
  double perplexity = 0;        // exp(-sum p log p) of the frequencies over all images: between 1 and codes
};
inline constexpr std::int64_t kUsageImages = 256, kUsageWindow = 65536;
// tokens: i32 (images, ...), each in 0..codes-1; with several books the last axis is books wide, or a multiple.
// Error{usage}: no token, or one out of range.
CodeUsage code_usage(const Tensor& tokens, std::int64_t codes, std::int64_t books = 1,
                     std::int64_t group = kUsageImages, std::int64_t window = kUsageWindow);
// exp of the entropy of counts / their sum, in nats; 1 where the sum is 0.
double perplexity(std::span<const double> counts);

// Fréchet distance of two Gaussians with the means and covariances (divided by N - 1) of the rows of a (N,D) and
// b (M,D): |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2). (1706.08500; FID where the rows are Inception-v3's
// pool3 features.) The last trace is the sum of the square roots of the eigenvalues of S_a S_b, taken from the
// symmetric S_a^(1/2) S_b S_a^(1/2), which has the same ones and no imaginary rounding error. Rank-deficient
// covariances (N <= D) are no error, but biased upwards.
// Error{usage}: not two real matrices of one width, fewer than 2 rows, or a NaN or infinity.
double frechet_distance(const Tensor& a, const Tensor& b);

// exp(mean over rows of KL(p(y|x) || p(y))) with p(y|x) = softmax of a row of logits (N,C) and p(y) its mean: of each
// of `splits` parts of the rows after a shuffle, then mean and standard deviation (divided by splits) of these.
// (1606.03498) Error{usage}: not a real matrix, fewer rows than splits, or a NaN or infinity.
struct InceptionScore {
  double mean = 0, deviation = 0;
};
inline constexpr std::int64_t kScoreSplits = 10;
InceptionScore inception_score(const Tensor& logits, std::int64_t splits = kScoreSplits, std::uint32_t seed = 2020);
// With the rows in this order instead of a shuffled one.
InceptionScore inception_score(const Tensor& logits, std::int64_t splits, std::span<const std::int64_t> order);

}  // namespace sg::tools
