// Tapes of a Transformer-VQ: one whole training step, an evaluation, and one step of generation. Each function records
// on a fresh tape; compile it with the values that are wanted, feed, run.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/audit.h"
#include "core/autodiff.h"
#include "core/backend.h"
#include "models/optim.h"
#include "models/statistics.h"
#include "models/transformer_vq.h"

namespace sg {

// State of a run besides the model's: optimizer, what each lane remembers, random numbers, step count.
class TransformerVqTraining {
 public:
  explicit TransformerVqTraining(TransformerVq& model);  // model outlives it
  TransformerVqTraining(const TransformerVqTraining&) = delete;
  TransformerVqTraining& operator=(const TransformerVqTraining&) = delete;

  TransformerVq& model() const { return model_; }
  Optimizer& optimizer() const { return *optimizer_; }
  TransformerVqMemory* memory() const { return memory_.get(); }  // null for dense attention
  Variable& random() { return random_; }                         // "training.random" i32 [2] {seed, step}
  Variable& step() { return step_; }                             // "training.step" i32: steps done

  // Everything that a checkpoint must hold for an exact resume.
  std::vector<Variable*> checkpoint();

 private:
  TransformerVq& model_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<TransformerVqMemory> memory_;
  Variable random_, step_;
};

struct TransformerVqStep {
  Value tokens, learning_rate;  // inputs: i32 (batch, update + 1), f32 []. Each token but the first is predicted
  TransformerVq::Output out;
  Value total, likelihood;          // losses; likelihood: mean of -log p, nats for each token
  std::vector<AuditTerm> terms;     // what total is the sum of
  std::vector<NamedValue> metrics;  // everything to log, scalars: see build_train_step
  std::vector<Value> fetches() const;
  Value metric(std::string_view name) const;  // Error{usage} where there is none
};

// Records one update: losses, gradients, optimizer, codebooks, memories, counters. total = likelihood + commitment
// weight * commitment + what else the estimator or the quantizer asks for. Metrics, in this order:
//   loss, likelihood (nats), bits_per_token
//   commitment                             unweighted
//   usage_min, usage_mean, perplexity      of this update's codes, least and mean over codebooks
//   relative_error                         mean |k-c|^2 / |k|^2, mean over codebooks
//   grad_norm                              of all parameters' gradients together, before clipping
// For dense attention without those of codes.
TransformerVqStep build_train_step(Tape& tape, TransformerVqTraining& training,
                                   IfUnreachable untrained = IfUnreachable::error);
Audit audit_step(const Tape& tape, const TransformerVqStep& step, const TransformerVqTraining& training);
// The likelihood trains every parameter, the commitment what makes keys and neither head nor values; codebooks are
// state under the paper's rule.
std::vector<FlowExpectation> flow_contract(const TransformerVqStep& step, const TransformerVq& model);

// Sums over tokens, each weighted: for exact means over a text of any length.
struct TransformerVqEvaluation {
  Value tokens, weights;      // inputs: i32 (B,T+1), f32 (B,T)
  Value nats;                 // sum w (-log p), scalar
  std::vector<Value> counts;  // f32 (S) of each codebook, of all tokens
};
// memory: carried on from run to run, restart() begins anew; null (always for dense attention): each run is a sequence
// of its own.
TransformerVqEvaluation build_evaluation(Tape& tape, const TransformerVq& model, const TransformerVqMemory* memory,
                                         std::int64_t batch, std::int64_t tokens);

// One step of reading or writing: `tokens` more of each lane go in, the logits of what follows come out. The memory
// holds all that matters of earlier ones, so a step costs the same however many they are. With 1 token a step it is a
// generator; a prompt may be read in larger steps first: the memory is the same.
struct TransformerVqReading {
  Value tokens;  // input i32 (B,T)
  Value logits;  // (B,vocabulary), after the last of them
};
TransformerVqReading build_reading(Tape& tape, const TransformerVq& model, const TransformerVqMemory& memory,
                                   std::int64_t tokens);

// Where codes start from rows (init kmeans): sets every codebook from the keys of `tokens` i32 (B,T), layer after
// layer. Otherwise nothing.
void initialize_codebooks(const TransformerVq& model, const Tensor& tokens, Backend& backend);

}  // namespace sg
