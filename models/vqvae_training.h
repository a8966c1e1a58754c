// Tapes of a VQ-VAE: one whole training step, an evaluation, encoding to tokens and decoding from them. Each function
// records on a fresh tape; compile it with the values that are wanted, feed, run.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/audit.h"
#include "core/autodiff.h"
#include "core/backend.h"
#include "models/optim.h"
#include "models/statistics.h"
#include "models/vqvae.h"

namespace sg {

// State of a run besides the model's: optimizer, random numbers, ring of histograms, step count.
class VqVaeTraining {
 public:
  explicit VqVaeTraining(VqVae& model);  // model outlives it
  VqVaeTraining(const VqVaeTraining&) = delete;
  VqVaeTraining& operator=(const VqVaeTraining&) = delete;

  VqVae& model() const { return model_; }
  Optimizer& optimizer() const { return *optimizer_; }
  Variable& random() { return random_; }  // "training.random" i32 [2] {seed, step}
  Variable& ring() { return ring_; }      // "training.ring" f32 (window, L K)
  Variable& slot() { return slot_; }      // "training.slot" i32: row of the ring that the next step writes
  Variable& step() { return step_; }      // "training.step" i32: steps done

  // Everything that a checkpoint must hold for an exact resume: parameters, model state, optimizer state, this state.
  std::vector<Variable*> checkpoint();

 private:
  VqVae& model_;
  std::unique_ptr<Optimizer> optimizer_;
  Variable random_, ring_, slot_, step_;
};

struct TrainStep {
  Value images, learning_rate;                // inputs: f32 (batch,H,W,C), f32 []
  Value reconstructions;                      // (batch,H,W,C), of the parameters before this step's update
  Value total, reconstruction;                // losses
  Quantized quantized;                        // with the quantizer's losses, unweighted
  std::vector<AuditTerm> terms;               // what total is the sum of: "reconstruction", then each loss that counts
  std::vector<NamedValue> metrics;            // everything to log, scalars, in a fixed order: see build_train_step
  std::vector<Value> fetches() const;         // the metrics' values
  Value metric(std::string_view name) const;  // Error{usage} where there is none
};

// Records one step on the batch "images" with rate "learning_rate": losses, gradients, optimizer, codebook update,
// counters. total = reconstruction + the quantizer's weighted losses (beta codebook + gamma commitment, ...). Metrics,
// in this order:
//   loss, reconstruction, then each loss of the quantizer by its name (codebook, commitment, ...), unweighted
//   usage, perplexity                             over this batch
//   usage_window, perplexity_window               over the last config.window steps, this one included
//   relative_error                                mean |z-q|^2 / |z|^2
//   norm_ratio, norm_ratio_p5, norm_ratio_p95     |q| / |z|
//   angle, angle_p5, angle_p95                    degrees between z and q
//   grad_reconstruction, grad_commitment          Euclidean norm of d term / d encoder output: of the reconstruction,
//                                                 and of the quantizer's losses together, weighted, where it has any
//   gamma                                         weight of the commitment loss, where it is balanced
//   grad_norm                                     of all parameters' gradients together, before clipping
// Those from usage to angle_p95 only where the quantizer has codes. untrained: what becomes of a parameter that no loss reaches. An error, or a gradient of zero, which audit_step()
// names.
TrainStep build_train_step(Tape& tape, VqVaeTraining& training, IfUnreachable untrained = IfUnreachable::error);

// Each term of a recorded step against each parameter, and against the model's state.
Audit audit_step(const Tape& tape, const TrainStep& step, const VqVaeTraining& training);
// Which term of it trains what: the reconstruction the decoder and, through the estimator, the encoder; the codebook
// loss the codebooks that are parameters and not the encoder; the commitment loss the encoder and no codebook; none of
// the quantizer's losses the decoder. The reconstruction trains a codebook only where the estimator says so.
std::vector<FlowExpectation> flow_contract(const TrainStep& step, const VqVae& model);

// Sums over the images of a batch, each image weighted: fill a last, partial batch with any images of weight 0. Divide
// by the totals of the weights (and by elements of an image, or rows of an image) to get exact means over a data set.
// Without codes (quantizer none) only the squared error and the reconstructions are there; the others are null.
struct Evaluation {
  Value images, weights;             // inputs: f32 (N,H,W,C), f32 (N)
  Value reconstructions;             // (N,H,W,C)
  Value squared_error;               // sum w |x - xh|^2, scalar
  Value quantization_error;          // sum over rows w |z - q|^2
  Value relative_error;              // sum over rows w |z - q|^2 / |z|^2
  Value counts;                      // f32 (L K): sum of w over rows with that code, book after book
  std::int64_t rows = 0, width = 0;  // compared rows of an image, and their length
  std::vector<Value> fetches() const;
};
Evaluation build_evaluation(Tape& tape, const VqVae& model, std::int64_t batch);
// The sums for whatever autoencoder made `reconstructions` of `images` (N,H,W,C), with `weights` (N).
Evaluation evaluate_reconstructions(Value images, Value weights, Value reconstructions, const Quantized& quantized,
                                    const Quantizer& quantizer);

struct Encoding {
  Value images;   // input f32 (N,H,W,C)
  Value latents;  // (N,H/4,W/4,D) encoder outputs
  Value tokens;   // i32 VqVae::token_shape(N)
};
Encoding build_encode(Tape& tape, const VqVae& model, std::int64_t batch);

struct Decoding {
  Value tokens;        // input i32 VqVae::token_shape(N); an index out of range is Error{attribute} at run time
  Value images;        // (N,H,W,C), not clamped
  Value tokens_again;  // of the same shape: Quantizer::requantize; equal unless two codes coincide
};
Decoding build_decode(Tape& tape, const VqVae& model, std::int64_t batch);

// Where the quantizer starts from rows (init kmeans): initializes it with the encoder's outputs for `images` (N,H,W,C).
// Otherwise nothing.
void initialize_codebook(VqVae& model, const Tensor& images, Backend& backend);
// The same where `encoding` is what another autoencoder records.
void initialize_codebook(Quantizer& quantizer, const Encoding& encoding, const Tensor& images, Backend& backend);

// For models with a quantizer in them: i32 (L K), how often each code of each book was chosen, book after book; and how
// far a run of `steps` steps is, in [0,1], at the start of its step number `step` (i32 []); 1 where steps is 0.
Value book_histogram(const Quantizer& quantizer, Value indices);
Value run_progress(Value step, std::int64_t steps);

}  // namespace sg
