// Exact figures of a model over a whole set of images. docs/metrics.md defines each.
#pragma once
#include <functional>
#include <limits>
#include <optional>
#include <span>

#include "core/backend.h"
#include "models/vqvae_training.h"
#include "tools/data/dataset.h"
#include "tools/judge.h"
#include "tools/metrics.h"
#include "tools/task.h"

namespace sg::tools {

// Two sets of images as a judge sees them: the originals, and what a model makes of them.
struct Judgement {
  double frechet = 0;              // FID's formula on the judge's features
  InceptionScore originals, made;  // IS's formula on its logits
  std::optional<double> accuracy_originals,
      accuracy_made;  // fraction of right answers, where judge and set have labels
};

struct EvaluationResult {
  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  std::int64_t images = 0, codes = 0;  // codes: of all books; 0: no quantizer, and the figures of one are kNone
  double mse = 0;                      // mean over images and pixels of (x - x^)^2, x in [0,1]
  double l1 = 0;                       // the same of |x - x^|
  double psnr = 0;                     // 10 log10(1 / mse), dB
  double ssim = kNone;                 // mean over images; kNone: images of fewer than 11 pixels a side
  double usage = kNone;                // CodeUsage::over_set
  double usage_256_images = kNone;     // CodeUsage::per_256_images
  double usage_65536_tokens = kNone;   // CodeUsage::per_65536_tokens
  double perplexity = kNone;           // of the code counts over all images
  double relative_error = kNone;       // mean over rows of |z - q|^2 / |z|^2
  double quantization_mse = kNone;     // mean over rows and dimensions of (z - q)^2
  std::vector<Judgement> judgements;   // of each judge
  double seconds = 0;
};

// What a model makes of images (N,H,W,C). Null where it has no such thing.
struct Made {
  Value images;  // (N,H,W,C), not clamped
  Value z, q;    // rows (N P, D) of each image after the other, before and after quantization
  Value tokens;  // i32, those of each image after the other; with several books, these innermost
};
struct ImageModel {
  std::function<Made(Value images)> make;
  std::int64_t codes = 0, books = 1;  // tokens are below codes
};
// For people and programs, in the order of docs/metrics.md; what does not exist is left out. judges: those of the
// result.
std::vector<Figure> figures_of(const EvaluationResult& result, std::span<const ImageJudge> judges = {});

ImageModel image_model(const VqVae& model);

// Errors and SSIM are those of the model's output as it is; judges see it as an 8-bit file would hold it (as_stored).
// Error{usage}: a judge cannot see such images.
EvaluationResult evaluate_images(const ImageModel& model, const ImageSet& images, std::int64_t batch, Backend& backend,
                                 std::span<const ImageJudge> judges = {});
EvaluationResult evaluate_model(const VqVae& model, const ImageSet& images, std::int64_t batch, Backend& backend,
                                std::span<const ImageJudge> judges = {});

// Features and logits of a judge for all images.
struct Answers {
  Tensor features, logits;  // f32 (count, features), (count, classes)
};
Answers answers_of(const ImageJudge& judge, const ImageSet& images, std::int64_t batch, Backend& backend);
// Fraction of rows whose greatest logit is at the label. labels: as many as rows.
double accuracy(const Tensor& logits, std::span<const std::int32_t> labels);
// Mean of -log softmax(logits)[label], nats.
double cross_entropy(const Tensor& logits, std::span<const std::int32_t> labels);

// Reconstructions of the given images (N,H,W,C).
struct Pictures {
  Tensor originals, reconstructions;
};
Pictures reconstruct(const ImageModel& model, const ImageSet& images, std::int64_t count, Backend& backend);
Pictures reconstruct(const VqVae& model, const ImageSet& images, std::int64_t count, Backend& backend);

}  // namespace sg::tools
