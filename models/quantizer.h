// VectorQuantizer: a codebook of K rows of D numbers; each row of its input is replaced by the nearest code, and a
// chosen gradient estimator decides what the encoder receives. The codebook is trained by a loss or follows the batch
// by an exponential moving average (EMA).
//
// Cosine metric: input rows and codes are divided by their lengths (x / sqrt(|x|^2 + 1e-12), differentiable) before the
// lookup, and so is z_q after the estimator, as in the code of Fifty et al. 2410.06424; z, q and both losses are those
// of the normalised rows. The stored codes may have any length.
#pragma once
#include <string_view>

#include "core/backend.h"
#include "models/module.h"
#include "ops/estimator_table.h"
#include "ops/index.h"

namespace sg {

enum class CodebookUpdate : std::uint8_t { loss, ema };
enum class CodebookInit : std::uint8_t { uniform, normal, kmeans };
std::string_view to_string(CodebookUpdate);
std::string_view to_string(CodebookInit);
std::string_view to_string(Metric);
// By name, for flags and files. Error{usage} listing what there is.
CodebookUpdate codebook_update_by_name(std::string_view name);  // "loss", "ema"
CodebookInit codebook_init_by_name(std::string_view name);      // "uniform", "normal", "kmeans"
Metric metric_by_name(std::string_view name);                   // "euclidean", "cosine"

struct VectorQuantizerConfig {
  std::int64_t codes = 512, dim = 64;
  Metric metric = Metric::euclidean;
  BoundEstimator estimator = straight_through;
  CodebookUpdate codebook = CodebookUpdate::loss;
  double ema_decay = 0.99, ema_eps = 1e-5;
  CodebookInit init = CodebookInit::uniform;  // uniform: U(-1/K, 1/K); normal: N(0, normal_deviation^2); kmeans: normal
                                              // until initialize()
  double normal_deviation = 1.0;
  double revival = 0;  // codes whose averaged count falls below this are replaced; 0: none
};

struct Quantized {
  Value z;                // (N,D) the rows that were compared: the input, or its normalised rows
  Value q;                // (N,D) their codes; depends on the codebook unless that is EMA state
  Value z_q;              // (N,D) forward q, gradient by the estimator
  Value indices;          // i32 (N)
  Value codebook_loss;    // scalar: mean (q - sg z)^2; of no use to a gradient where the codebook is EMA state
  Value commitment_loss;  // scalar: mean (z - sg q)^2
};

class VectorQuantizer : public Module {
 public:
  VectorQuantizer(Module& parent, std::string_view name,
                  VectorQuantizerConfig config);  // Error{usage} naming the field

  Quantized operator()(Operand z) const;  // z (N,D)
  Value lookup(Operand indices) const;    // i32 S -> S + [D]: the codes as operator() uses them
  Value nearest(Operand z) const;         // (N,D) -> i32 (N)

  // Records what a training step does to the codebook besides its gradient, from start-of-step values (n: counts of
  // this batch, s: sums of its rows by code):
  //   EMA:      N <- g N + (1-g) n,  m <- g m + (1-g) s,  code <- m / N~,  N~ = (N + eps) / (sum N + K eps) sum N
  //   revival:  codes with N < threshold become rows of this batch, drawn with replacement; N <- threshold and
  //             m <- row threshold with them. With a codebook trained by loss, N alone is averaged, and the optimizer's
  //             moments of a replaced code are left as they are: they decay within a few steps.
  // random_state: i32 [2], used by revival only. Returns the codebook's new value given `trained`, the optimizer's new
  // value of it (null where it is EMA state); nothing else may assign the codebook.
  Value update(const Quantized& quantized, Value trained, Value random_state, Loc loc = Loc::current());

  // Sets the codebook from rows (N,D) of encoder output by k-means, EMA state along with it. For init = kmeans, before
  // the first step. Error{shape} where D differs. Host side; nothing is recorded.
  void initialize(const Tensor& rows, Backend& backend, int iterations = 10);
  // Sets the codebook (K,D) and restarts its averages there.
  void set_codebook(const Tensor& codes);

  Variable& codebook() const { return *codebook_; }
  bool trained_by_loss() const { return config_.codebook == CodebookUpdate::loss; }
  bool averages() const { return count_ != nullptr; }  // whether update() has anything to record
  const VectorQuantizerConfig& config() const { return config_; }

 private:
  Value codes(Tape& tape, Loc loc) const;  // (K,D) as compared: normalised under the cosine metric
  VectorQuantizerConfig config_;
  Variable* codebook_;
  Variable* count_ = nullptr;  // (K): N, with EMA or revival; starts at 1
  Variable* sum_ = nullptr;    // (K,D): m, with EMA; starts as the codes
};

}  // namespace sg
