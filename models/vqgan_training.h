// Tapes of a VQ-GAN (2012.09841): one training step of both players, evaluation, encoding to tokens and decoding.
//
// Two players, one tape. The generator (encoder, quantizer, decoder) minimises
//   mean |x - xh| + w_p perceptual(x, xh) + f_g lambda (-mean D'(xh)) + the quantizer's losses
// and the discriminator
//   f_d (mean relu(1 - D(sg x)) + mean relu(1 + D(sg xh))) / 2
// with D' = D with stopped parameters: no flag decides who is trained, the stops do, and flow_contract() states it.
//   lambda = disc_weight sg[clamp(|d nll/dW| / (|d g/dW| + 1e-4), 0, 1e4)]
// with nll the first two terms, g = -mean D'(xh) and W the decoder's last weight. f_g is 0 before step disc_start, then
// disc_factor; f_d the same from disc_warmup steps earlier. Both are computed from the step counter on the tape.
//
// Both players' updates are those of one point: they read start-of-step values. (The released code runs the autoencoder
// a second time after the generator's update; here the discriminator sees the same xh as the generator's loss.)
//
// Batch norms of D see each batch alone, as in the released code's three passes: xh for the generator's loss, x, xh for
// the discriminator's. Their running statistics follow these three passes in that order, from step 0 on. The third
// pass computes what the first did, and the compiler shares it.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "models/perceptual.h"
#include "models/vqgan.h"
#include "models/vqvae_training.h"

namespace sg {

// State of a run besides the model's: the discriminator, two optimizers, random numbers, histograms, step count.
class VqGanTraining {
 public:
  explicit VqGanTraining(VqGan& model, PerceptualDistance perceptual = {});  // model outlives it
  VqGanTraining(const VqGanTraining&) = delete;
  VqGanTraining& operator=(const VqGanTraining&) = delete;

  VqGan& model() const { return model_; }
  const PatchDiscriminator& discriminator() const { return discriminator_; }
  const PerceptualDistance& perceptual() const { return perceptual_; }
  Optimizer& generator_optimizer() { return generator_; }           // "optimizer..."
  Optimizer& discriminator_optimizer() { return discriminating_; }  // "discriminator_optimizer..."
  Variable& random() { return random_; }                            // "training.random" i32 [2] {seed, step}
  Variable& ring() { return ring_; }                                // "training.ring" f32 (window, L K)
  Variable& slot() { return slot_; }                                // "training.slot" i32
  Variable& step() { return step_; }                                // "training.step" i32: steps done

  std::vector<Variable*> parameters();  // of both players
  std::vector<Variable*> state();       // of the model and the discriminator's running statistics
  // Everything that a checkpoint must hold for an exact resume. The perceptual network, which no step changes, is not
  // among it.
  std::vector<Variable*> checkpoint();

 private:
  VqGan& model_;
  PerceptualDistance perceptual_;
  Module root_;
  PatchDiscriminator discriminator_;
  Adam generator_, discriminating_;
  Variable random_, ring_, slot_, step_;
};

// sg[clamp(|nll_gradient| / (|adversarial_gradient| + 1e-4), 0, 1e4)], Euclidean norms of all elements. -> scalar
Value adaptive_weight(Operand nll_gradient, Operand adversarial_gradient);

struct VqGanStep {
  Value images, learning_rate;                // inputs: f32 (batch,H,W,C) in [0,1], f32 [] of both players
  Value reconstructions;                      // (batch,H,W,C) in [0,1], of the parameters before this step's updates
  Value total, discriminator_loss;            // what the players minimise, weighted
  Value lambda;                               // adaptive weight, disc_weight included
  Quantized quantized;                        // with the quantizer's losses, unweighted
  std::vector<AuditTerm> terms;               // "reconstruction", "perceptual", "adversarial", the quantizer's losses;
                                              // "discriminator"
  std::vector<NamedValue> metrics;            // everything to log, scalars, in a fixed order: see build_train_step
  std::vector<Value> fetches() const;         // the metrics' values
  Value metric(std::string_view name) const;  // Error{usage} where there is none
};

// Records one step of both players. Metrics, in this order:
//   loss                          the generator's
//   reconstruction                mean |x - xh|, of images in [-1,1]
//   perceptual                    mean distance, unweighted; where there is one
//   nll                           reconstruction + w_p perceptual
//   adversarial                   -mean D'(xh), unweighted
//   discriminator                 its hinge loss, unweighted
//   logits_real, logits_fake      means
//   lambda                        with disc_weight
//   disc_factor, disc_training    f_g and f_d
//   then the quantizer's losses, usage, perplexity, their windows and row statistics as in a VQ-VAE's step
//   grad_reconstruction           Euclidean norm of d (nll + f_g lambda g) / d encoder output
//   grad_commitment               the same of the quantizer's losses, weighted
//   grad_nll_last, grad_adversarial_last   |d nll/dW| and |d g/dW|
//   grad_norm, grad_discriminator          of all parameters of a player
VqGanStep build_train_step(Tape& tape, VqGanTraining& training, IfUnreachable untrained = IfUnreachable::error);

// Each term of a recorded step against the parameters of both players and the state.
Audit audit_step(const Tape& tape, const VqGanStep& step, VqGanTraining& training);
// Which term trains what: reconstruction, perceptual and adversarial term the decoder and the encoder; the quantizer's
// losses what they train in a VQ-VAE; the discriminator's loss the discriminator; and no term the other player.
std::vector<FlowExpectation> flow_contract(const VqGanStep& step, VqGanTraining& training);

Evaluation build_evaluation(Tape& tape, const VqGan& model, std::int64_t batch);
Encoding build_encode(Tape& tape, const VqGan& model, std::int64_t batch);
Decoding build_decode(Tape& tape, const VqGan& model, std::int64_t batch);
// As for a VQ-VAE: where the quantizer starts from rows.
void initialize_codebook(VqGan& model, const Tensor& images, Backend& backend);

}  // namespace sg
