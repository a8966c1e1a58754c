// Quantizer: rows z in, rows z_q out that a finite set of indices stands for, with the losses that train it. One
// interface for codebooks (VQ, cosine, factorised, grouped, residual), scalar grids (FSQ, LFQ, BSQ, latent) and the
// rest; a model takes any of them by name (make_quantizer).
//
// Maps: z is [..., D], with any number of leading extents (rows, sequences (B,T,D), images (B,H,W,D), volumes); rows
// are counted over all of them. Books: a quantizer with L > 1 codebooks gives each row L indices, as a last extent.
// Evaluation (no random state) is deterministic, z_q is the code itself, and is what training computes forward wherever
// the estimator is exact.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/backend.h"
#include "models/module.h"
#include "models/quantizers/config.h"
#include "models/step_updates.h"

namespace sg {

// How a step uses a quantizer.
struct QuantizeContext {
  Value random;    // i32 [2], the step's random state; null: evaluation
  Value progress;  // f32 scalar in [0,1], share of the run done; null: 1
  Value mask;      // f32, z's shape without its last extent; 1: a row, 0: padding, which counts in no loss, average or
                   // statistic and whose z_q is 0. Null: all are rows
  bool training() const { return random.tape != nullptr; }
};

// A scalar that the training loss adds `weight` times.
struct LossTerm {
  std::string name;
  Value value;
  double weight = 1;
};

struct Quantized {
  Value z_q;                     // [..., D]: what the decoder gets
  Value indices;                 // i32, Quantizer::index_shape(z's shape)
  std::vector<LossTerm> losses;  // names unique: "codebook", "commitment", "entropy", ...
  Value z, q;  // (N,D') the rows that were compared and what replaced them; for residual books the input and the
               // sum of codes
  std::vector<Quantized> parts;  // of each book, where books are quantizers of their own
  Lookup lookup;                 // as the estimator saw it; empty where there is none

  Value total_loss() const;                           // sum of weight * value; null where there is none of weight != 0
  const LossTerm* find(std::string_view name) const;  // null where there is none
  Value loss(std::string_view name) const;            // find()->value; Error{usage} listing what there is
};

class Quantizer : public Module {
 public:
  using Module::Module;
  virtual ~Quantizer() = default;

  virtual Quantized operator()(Operand z, const QuantizeContext& context = {}) const = 0;
  // What indices of index_shape() stand for, [..., D]: z_q of evaluation, bit for bit. An index out of range is
  // Error{attribute} at run time.
  virtual Value decode(Operand indices) const = 0;
  // Indices found again from the codes that they stand for, book by book and before any output projection: equal to
  // `indices` unless two codes coincide.
  virtual Value requantize(Operand indices) const = 0;
  Value encode(Operand z) const { return (*this)(z).indices; }

  virtual std::int64_t dim() const = 0;             // D of z and z_q
  virtual std::int64_t books() const { return 1; }  // L
  virtual std::int64_t codes() const = 0;           // of each book (the largest, where they differ)
  std::int64_t all_codes() const { return books() * codes(); }
  virtual Shape index_shape(const Shape& z) const;  // z's leading extents, then L where L > 1
  virtual double bits_per_row() const;              // L log2 K, where every book has K codes
  // What it is in a line, for people: "4 books of 512 codes", "grid 8x5x5", "512 codes by ema, estimator ste".
  virtual std::string describe() const;

  // What a training step does besides its gradients, from start-of-step values. `quantized` is this step's output.
  virtual void update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) {
    (void)quantized, (void)context, (void)updates;
  }
  // A scalar of forward value 0 to add to the loss that z_q led to, for estimators that need the loss; null as a rule.
  virtual Value estimator_term(Value loss, const Quantized& quantized) const {
    (void)loss, (void)quantized;
    return {};
  }
  // Before the first step, from rows (N,D) of encoder output: k-means, running means. Host side; records nothing.
  virtual bool wants_rows() const { return false; }
  virtual void initialize(const Tensor& rows, Backend& backend) { (void)rows, (void)backend; }
};

struct QuantizerDef {
  std::string name, summary;
  std::function<std::unique_ptr<Quantizer>(Module& parent, std::string_view name, const QuantizerConfig&)> make;
};
const std::vector<QuantizerDef>& quantizer_table();
std::vector<std::string> quantizer_names();
// Adds a row; Error{usage} where the name is empty or taken. Call it at the start of main().
void register_quantizer(QuantizerDef def);
// Of the row `config.quantizer`; "none", which is no row, passes rows on as they are and has 0 codes. Error{usage}
// listing the rows, or naming the setting that makes no sense.
std::unique_ptr<Quantizer> make_quantizer(Module& parent, std::string_view name_in_parent,
                                          const QuantizerConfig& config);

// Helpers for quantizers.
Value flatten_mask(const QuantizeContext& context, Operand z);  // (N), one number per row of flatten_rows(z), or null;
                                                                // Error{shape} where the mask is not one of z
Value flatten_rows(Operand z);                                  // [..., D] -> (N,D)
void check_dim(const Quantizer& q, std::string_view what,
               Operand z);  // Error{shape} where z's last extent is not q.dim()

}  // namespace sg
