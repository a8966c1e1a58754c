// Exact figures of a model over a whole set of images.
#pragma once
#include "core/backend.h"
#include "models/vqvae_training.h"
#include "tools/data/dataset.h"

namespace sg::tools {

struct EvaluationResult {
  std::int64_t images = 0, codes = 0;
  double mse = 0;               // mean over images and pixels of (x - x^)^2, x in [0,1]
  double psnr = 0;              // 10 log10(1 / mse), dB
  double usage = 0;             // fraction of codes chosen at least once over all images
  double perplexity = 0;        // of the code counts over all images
  double relative_error = 0;    // mean over rows of |z - q|^2 / |z|^2
  double quantization_mse = 0;  // mean over rows and dimensions of (z - q)^2
  double seconds = 0;
};

EvaluationResult evaluate_model(const VqVae& model, const ImageSet& images, std::int64_t batch, Backend& backend);

// Reconstructions of the given images (N,H,W,C).
struct Pictures {
  Tensor originals, reconstructions;
};
Pictures reconstruct(const VqVae& model, const ImageSet& images, std::int64_t count, Backend& backend);

}  // namespace sg::tools
