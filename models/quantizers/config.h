// Settings of all quantizers, as flags and files give them. Fields are used by those rows of the quantizer table that
// their comment names.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ops/estimator_table.h"
#include "ops/index.h"

namespace sg {

// How a codebook learns.
enum class CodebookUpdate : std::uint8_t {
  loss,         // beta |q - sg z|^2, by the optimizer (1711.00937)
  ema,          // moving averages, as state (1711.00937, appendix)
  ema_loss,     // the same averages as the gradient of a loss, stepped with rate 1 (Transformer-VQ, 2309.16354)
  simvq,        // codes sg[E] W: E frozen, W (D,D) trained by the codebook loss (2411.02038)
  affine,       // codes s c + b with c, s and b trained by the codebook loss (2305.08842)
  alternating,  // an inner step on the codebook loss before the codes are used; nothing else moves them (2305.08842)
  frozen,       // never
};
// Whether a single code can be set anew (by revival): not where it is made of parameters that all codes share.
inline bool sets_single_codes(CodebookUpdate rule) {
  return rule != CodebookUpdate::simvq && rule != CodebookUpdate::frozen;
}
enum class CodebookInit : std::uint8_t {
  uniform,      // U(-1/K, 1/K)
  normal,       // N(0, normal_deviation^2)
  kmeans,       // k-means++ and Lloyd's iterations on rows of encoder output
  kmeans_rows,  // the same from rows drawn uniformly
};
enum class Assignment : std::uint8_t {
  nearest,   // argmin |z - c|^2, or the estimator's own
  sinkhorn,  // argmax of a balanced transport plan of the batch (OptVQ, 2412.15195); nearest in evaluation
};
enum class Revival : std::uint8_t {
  threshold,  // codes whose averaged count is below the threshold become rows of the batch
  lru,        // codes unused for `threshold` steps become rows of the batch
  split,      // codes whose averaged count is below the threshold become copies, slightly moved, of codes in use: the
              // more rows of the batch a code has, the more copies
};
std::string_view to_string(CodebookUpdate);
std::string_view to_string(CodebookInit);
std::string_view to_string(Assignment);
std::string_view to_string(Revival);
std::string_view to_string(Metric);
// By name, for flags and files. Error{usage} listing what there is. Names are those of the enumerators, '-' for '_'.
CodebookUpdate codebook_update_by_name(std::string_view name);
CodebookInit codebook_init_by_name(std::string_view name);
Assignment assignment_by_name(std::string_view name);
Revival revival_by_name(std::string_view name);
Metric metric_by_name(std::string_view name);
std::vector<std::string> codebook_update_names();
std::vector<std::string> codebook_init_names();
std::vector<std::string> assignment_names();
std::vector<std::string> revival_names();

struct QuantizerConfig {
  std::string quantizer = "vq";
  std::int64_t codes = 512;  // K of each book; fsq, lfq, bsq: of the implicit codebook
  std::int64_t dim = 64;     // D of the model's latents; scalar grids take their own (Quantizer::dim)

  // codebooks: vq, cosine, factorised, multi-head, product, residual, grouped-residual, multi-scale
  BoundEstimator estimator = "ste";  // a name, with arguments, or a function of z and q
  Metric metric = Metric::euclidean;
  CodebookUpdate codebook = CodebookUpdate::loss;
  CodebookInit init = CodebookInit::uniform;
  double normal_deviation = 1.0;  // of init normal
  double ema_decay = 0.99, ema_eps = 1e-5;
  double inner_rate = 1.0;  // of the alternating rule's inner step: share of the way to the mean of a code's rows
  Assignment assignment = Assignment::nearest;
  Revival revival_policy = Revival::threshold;
  double revival = 0;                 // threshold: averaged rows per step, lru: steps; 0: no revival
  double beta = 1.0;                  // weight of the codebook loss
  double gamma = 0.25;                // weight of the commitment loss (all quantizers that have one)
  double orthogonal = 0;              // weight of |Cn Cn^T|_F^2 / K^2 - 1/K (2112.00384)
  double entropy = 0;                 // weight of E[H(p)] - H(E[p]) (lfq, bsq: of their own entropy losses)
  double diversity = 0;               // weight of -H(E[p])
  double entropy_temperature = 0.01;  // of p = softmax(-distance / temperature)
  double origin_decay = 0.99;         // of the running mean that centred estimators turn about

  std::int64_t heads = 4;          // multi-head, product, grouped-residual: pieces of a row
  std::int64_t levels = 4;         // residual, each piece of grouped-residual: books
  std::int64_t code_dim = 8;       // factorised, random-projection: width that codes are compared in
  bool shared_books = false;       // residual: one codebook for all levels, multi-head: for all heads
  double level_dropout = 0;        // residual: share of the steps that train on a random number of first levels
  std::vector<std::int64_t> grid;  // fsq, fsq-symmetric, latent: levels of each dimension; empty: the paper's for
                                   // `codes`; for latent `codes` in each of `dim`
  double dither = 0;  // fsq-symmetric: share of the elements that get noise instead of rounding
  std::vector<std::int64_t>
      scales;  // multi-scale: sides of the token maps, the last one the latents' own; empty: 1, 2, 4, ..., side
  std::int64_t side = 0;  // multi-scale: side of the latent map
  double phi = 0.5;       // multi-scale: share of the learned convolution in phi(h) = (1-phi) h + phi conv3x3(h)

  bool operator==(const QuantizerConfig&) const = default;
};

}  // namespace sg
