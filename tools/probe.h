// Probe: one forward of a model with vector quantization and, on the same batch, one backward for each of several
// gradient estimators. What an estimator sends to the encoder is compared with the straight-through estimator, with the
// gradient of the loss that decodes z itself, and with what a step along it does to the loss.
//
// All of it is instructions on one tape: the estimators share one forward, and those of exact forward value one
// backward of the decoder. Nothing is trained.
#pragma once
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "core/program.h"
#include "models/vqvae_training.h"

namespace sg::tools {

// One lookup of a recorded forward: what the estimator saw, and the rows that it gave.
struct ProbedLookup {
  Lookup lookup;
  Value z_q;
};

// The straight-through estimator, which also appends every lookup that it serves to `seen`: a quantizer that has it
// lays its lookups open. `seen` must live while the quantizer records. with_origin: asks for a running mean.
BoundEstimator recording_estimator(std::deque<ProbedLookup>& seen, bool with_origin = false);

// A recorded forward, ready to be probed. Its loss is the mean of (output - target)^2.
struct ProbeGraph {
  Value latents;                     // the encoder's output, which gradients are taken to
  Value output, target;              // of one shape; output depends on latents through z_q of the lookups only
  Value z_q;                         // what the decoder gets, of the latents' shape where there are several lookups
  std::deque<ProbedLookup> lookups;  // at least one
  std::vector<LossTerm> losses;      // of the quantizer
  bool balance_commitment = false;   // as VqVaeConfig has it
  std::vector<Value> parameters;     // of the encoder; may be empty
};
// Records the forward of `model`, whose estimator is a recording_estimator(seen). random: as QuantizeContext.
ProbeGraph record_forward(Tape& tape, const VqVae& model, std::deque<ProbedLookup>& seen, Value images, Value random,
                          Value progress);

struct ProbeOptions {
  std::vector<BoundEstimator> estimators;
  std::vector<double> steps = {0.01};  // of the finite differences: |step| / |z|, over the whole batch
  double shift = 0;                    // see ProbeRow; 0: none
};

// What is found of one estimator, or of the gradient of decoding z. G is its gradient of the loss in z. Named scalars:
//   loss                                 of the forward under this estimator
//   gradient                             |G|
//   cosine_ste, ratio_ste                cos(G, G of ste), |G| / |G of ste|
//   cosine_exact, ratio_exact            the same against the gradient of the loss that decodes z itself
//   cosine_parameters, ratio_parameters  against ste again, in the space of all the encoder's parameters
//   share                                |G| / (|G| + |gradient of the quantizer's weighted losses in z|)
//   for each step s, where z' = z - s |z| G / |G| and the predicted change of the loss is -s |z| |G|:
//     decode@s, decode_ratio@s           relative change of the loss that decodes z' itself; its change / predicted
//     quantized@s, quantized_ratio@s     the same with the quantizer in between, which chooses its codes anew
//     moved@s                            share of the rows whose code changed
//   shift_change, shift_cosine,          with a shift only: G' is the gradient where all of z, codes and origin are
//   shift_cosine_ste                     moved by one vector before the estimator and back after it: |G' - G| / |G|,
//                                        cos(G', G), cos(G', G of ste). The vector's length is `shift` times the mean
//                                        of |z|, its elements are equal. Estimators that draw, draw anew for G'.
struct ProbeRow {
  std::string name;
  std::vector<NamedValue> numbers;
};
struct ProbeRecord {
  // loss, decode_loss (of decoding z itself), relative_error, norm_ratio, norm_ratio_p5, norm_ratio_p95, angle,
  // angle_p5, angle_p95 (of the first lookup, as in training), losses (gradient of the quantizer's losses in z, its
  // norm as in training with ste)
  std::vector<NamedValue> common;
  std::vector<ProbeRow> rows;  // "decode(z)", "ste", then options.estimators in order, without a second ste
  std::vector<Value> fetches() const;
};
// Error{usage}: no lookup, or a step that is not positive.
ProbeRecord record_probe(const ProbeGraph& graph, const ProbeOptions& options);

// The numbers of one batch, or of several averaged.
using Numbers = std::vector<std::pair<std::string, double>>;
struct ProbeResult {
  Numbers common;
  std::vector<std::pair<std::string, Numbers>> rows;
};
ProbeResult mean_of(const std::vector<ProbeResult>& results);
double number(const Numbers& numbers, std::string_view name);  // Error{usage} where there is none

// A VQ-VAE that is probed: the model of `config` with its estimator replaced by a recording one. Variables have their
// initial values; restore or initialize them before run().
class Probe {
 public:
  // step: of the run, for schedules and for the random state under which estimators that draw do so.
  // Error{usage}: the quantizer has no lookup with an estimator.
  Probe(VqVaeConfig config, const ProbeOptions& options, Backend& backend, std::int64_t step = 0);

  VqVae& model() { return model_; }
  ProbeResult run(const Tensor& images);  // f32 (config.batch,H,W,C)

 private:
  ProbeRecord record(const ProbeOptions& options, std::int64_t step);

  std::deque<ProbedLookup> seen_;
  VqVae model_;
  Tape tape_;
  ProbeRecord record_;
  Program program_;
};

}  // namespace sg::tools
