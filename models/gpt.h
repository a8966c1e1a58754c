// A GPT (Radford et al. 2019) as prior over the tokens of an image, as VQ-GAN's second stage has it (2012.09841,
// section 3.2): learned positions, pre-normalised blocks
//   x <- x + attention(norm x),  x <- x + W2 gelu(W1 norm x)
// and logits of token t from the tokens before it. The first position sees a start token, one per class, so that
// sampling for a class is starting with another token.
#pragma once
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "core/audit.h"
#include "core/program.h"
#include "models/attention.h"
#include "models/optim.h"
#include "models/sampling.h"
#include "models/statistics.h"

namespace sg {

struct GptConfig {
  std::int64_t vocabulary = 512;  // tokens are in [0, vocabulary)
  std::int64_t length = 49;       // tokens of a sequence
  std::int64_t classes = 0;       // of sequences; 0: they have none
  std::int64_t dim = 128, layers = 4, heads = 4;
  double dropout = 0.1;     // of the embeddings and of each residual branch
  double corruption = 0.0;  // chance that an input token of training is replaced by a random one ("pkeep" is 1 - this)
  std::int64_t batch = 64;
  std::string optimizer = "adamw";  // see optimizer_names()
  double weight_decay = 0.01, clip = 1.0;
  std::uint32_t seed = 1;
  bool operator==(const GptConfig&) const = default;
};
// Error{usage} naming the first field that makes no sense, with what it may be.
void validate(const GptConfig& config);

class GptBlock : public Module {
 public:
  GptBlock(Module& parent, std::string_view name, const GptConfig& config);
  Value operator()(Value x, Value bias, Value random) const;  // (N,T,dim); bias (T,T); random: null in evaluation

  // One position: x (N,1,dim). keys, values (N,heads,T,dim/heads): those of the positions before it, with its own
  // written at row `position` (i32 scalar) on return.
  struct Cached {
    Value out, keys, values;
  };
  Cached next(Value x, Value keys, Value values, Value position) const;

 private:
  Value feed_forward(Value x, Value random) const;

  double dropout_;
  LayerNorm norm1_;
  MultiHeadAttention attention_;
  LayerNorm norm2_;
  Linear in_, out_;
};

class Gpt : public Module {
 public:
  explicit Gpt(const GptConfig& config);  // Error{usage}: validate()

  // tokens i32 (N,T), T <= length, classes i32 (N) or null -> (N,T,vocabulary): row t is log p(token t | tokens < t,
  // class) but for a constant. random: the step's random state, for dropout and corruption; null: evaluation.
  Value logits(Value tokens, Value classes = {}, Value random = {}) const;

  // i32 (N) for classes i32 (N), or for N sequences without one: what next() starts with.
  Value start(Value classes) const;
  const GptConfig& config() const { return config_; }

  // Keys and values of the sequence so far, and how long it is. Constant in size.
  struct Cache {
    Cache(const Gpt& model, std::int64_t sequences);
    void clear();                       // an empty sequence
    std::deque<Variable> keys, values;  // one per layer, f32 (N,heads,length,dim/heads)
    Variable position;                  // i32 []
  };
  // inputs i32 (N): the start token first, then the token before. Records one step of generation: logits (N,vocabulary)
  // of the next token, as logits() gives them; the cache is assigned.
  Value next(Value inputs, Cache& cache) const;

 private:
  Value embed(Value inputs, Value positions, Value random) const;
  Value head(Value x) const;

  GptConfig config_;
  Embedding tokens_;  // vocabulary rows, then one per class: the start tokens
  Embedding positions_;
  std::deque<GptBlock> blocks_;
  LayerNorm norm_;
  Linear head_;
};

// Generation with cached keys and values: one compiled step, run once a token.
class GptGenerator final : public TokenGenerator {
 public:
  GptGenerator(const Gpt& model, std::int64_t sequences, Backend& backend);  // model outlives it

  std::int64_t sequences() const override { return sequences_; }
  std::int64_t vocabulary() const override { return model_.config().vocabulary; }
  std::int64_t longest() const override { return model_.config().length; }
  std::int64_t classes() const override { return model_.config().classes; }
  void begin(std::span<const std::int32_t> classes) override;
  const Tensor& next(std::span<const std::int32_t> previous) override;

 private:
  const Gpt& model_;
  std::int64_t sequences_, made_ = 0;
  Gpt::Cache cache_;
  Tape tape_;
  Value inputs_, logits_;
  Program program_;
  Tensor start_, input_, out_;
};

// State of a training run besides the model's.
class GptTraining {
 public:
  explicit GptTraining(Gpt& model);  // model outlives it
  GptTraining(const GptTraining&) = delete;
  GptTraining& operator=(const GptTraining&) = delete;

  Gpt& model() const { return model_; }
  Optimizer& optimizer() const { return *optimizer_; }
  Variable& random() { return random_; }  // "training.random" i32 [2] {seed, step}
  Variable& step() { return step_; }      // "training.step" i32: steps done
  std::vector<Variable*> checkpoint();    // everything that an exact resume needs

 private:
  Gpt& model_;
  std::unique_ptr<Optimizer> optimizer_;
  Variable random_, step_;
};

struct GptTrainStep {
  Value tokens, classes, learning_rate;  // inputs: i32 (batch,length), i32 (batch) (null without classes), f32 []
  Value loss;                            // mean negative log-likelihood of a token, nats
  std::vector<AuditTerm> terms;          // "likelihood"
  std::vector<NamedValue> metrics;       // loss, bits_per_token, accuracy, grad_norm (before clipping)
};
GptTrainStep build_train_step(Tape& tape, GptTraining& training, IfUnreachable untrained = IfUnreachable::error);

// Sums over the sequences of a batch, each weighted: fill a last, partial batch with any sequences of weight 0.
struct GptEvaluation {
  Value tokens, classes, weights;  // inputs: i32 (N,length), i32 (N) (null without classes), f32 (N)
  Value nats;                      // sum w sum_t -log p(token t | tokens before it, class)
};
GptEvaluation build_evaluation(Tape& tape, const Gpt& model, std::int64_t batch);

}  // namespace sg
