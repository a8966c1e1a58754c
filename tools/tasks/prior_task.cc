// The prior: a GPT over the tokens of images (models/gpt.h), trained on what `tokenize` wrote.
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "models/gpt.h"
#include "tools/data/loader.h"
#include "tools/data/tokens.h"
#include "tools/session.h"
#include "tools/task.h"

namespace sg::tools {
namespace {

// What sequences there are: "49 tokens of 512, 10 classes" in a checkpoint.
struct Sequences {
  std::int64_t length = 49, vocabulary = 512, classes = 0;
};

std::string to_string(const Sequences& s) {
  return fmt::format("{} tokens of {}, {} classes", s.length, s.vocabulary, s.classes);
}

Sequences parse(const std::string& text) {
  Sequences s;
  long long length = 0, vocabulary = 0, classes = 0;
  int end = 0;
  if (std::sscanf(text.c_str(), "%lld tokens of %lld, %lld classes%n", &length, &vocabulary, &classes, &end) != 3 ||
      static_cast<std::size_t>(end) != text.size() || length < 1 || vocabulary < 1 || classes < 0)
    fail(ErrorKind::io, "the checkpoint is for data of {}; a prior is for token sequences", text);
  return {length, vocabulary, classes};
}

GptConfig gpt_config(const TrainConfig& config, const Sequences& sequences) {
  GptConfig c;
  c.vocabulary = sequences.vocabulary;
  c.length = sequences.length;
  c.classes = sequences.classes;
  c.dim = config.dim;
  c.layers = config.layers;
  c.heads = config.attention_heads;
  c.dropout = config.dropout;
  c.corruption = config.corruption;
  c.batch = config.batch;
  c.optimizer = config.optimizer;
  c.weight_decay = config.weight_decay;
  c.clip = config.clip;
  c.seed = static_cast<std::uint32_t>(config.seed);
  return c;
}

class PriorTask : public Task {
 public:
  explicit PriorTask(const TaskSetup& setup)
      : Task(setup.config),
        data_(setup.data == nullptr ? TokenData{} : read(setup.config)),
        sequences_(sizes(setup, data_)),
        model_(gpt_config(config(), sequences_)),
        training_(model_) {}

  std::vector<Variable*> checkpoint() override { return training_.checkpoint(); }
  std::vector<Variable*> model() override { return model_.variables(); }
  std::vector<Variable*> parameters() override { return model_.parameters(); }
  Variable& step() override { return training_.step(); }
  std::string data_shape() const override { return to_string(sequences_); }
  std::int64_t steps_per_epoch() const override { return order().steps_per_epoch(); }
  std::string unit() const override { return "sequences"; }

  TaskStep record(Tape& tape, IfUnreachable untrained) override {
    const GptTrainStep step = build_train_step(tape, training_, untrained);
    return {step.learning_rate, step.metrics, step.terms, {}, {step.loss}};
  }
  std::vector<std::string> parts() const override { return {"evaluate", "generate"}; }
  void record_part(Tape& tape, std::string_view part) override {
    if (part == "evaluate") {
      build_evaluation(tape, model_, config().batch);
      return;
    }
    cache_ = std::make_unique<Gpt::Cache>(model_, config().batch);
    model_.next(tape.input("inputs", {DType::i32, {config().batch}}), *cache_);
  }
  void feed(Program& program, std::int64_t step) override;

  std::vector<std::string> heading() const override {
    return {fmt::format("{} on {} training and {} held-out sequences of {} ({})", config().model, data_.train.count(),
                        data_.test.count(), data_shape(), data_.origin),
            fmt::format("tokens drawn by their frequencies alone would cost {:.3f} bits each", unigram_bits())};
  }
  std::vector<std::string> first_step(const Metrics&) const override { return {}; }
  std::string progress(const Metrics& m) const override {
    return fmt::format("loss {:.4f}  bits/token {:.3f}", metric(m, "loss"), metric(m, "bits_per_token"));
  }
  std::vector<CurvePanel> curves() const override {
    return {{"bits per token", false, false, {{"bits_per_token", "training"}}},
            {"tokens that were the likeliest, fraction", false, true, {{"accuracy", "training"}}}};
  }
  std::vector<Figure> evaluate(Backend& backend) override;
  std::string evaluated_on() const override {
    return fmt::format("{} held-out sequences of {}", data_.test.count(), data_.origin);
  }
  std::unique_ptr<TokenGenerator> generator(std::int64_t sequences, Backend& backend) override {
    return std::make_unique<GptGenerator>(model_, sequences, backend);
  }

 private:
  static TokenData read(const TrainConfig& config) {
    if (config.tokens.empty())
      fail(ErrorKind::usage, "{}: --tokens FILE.npy is needed; `tokenize RUN --out FILE.npy` writes one", config.model);
    TokenData data = read_token_files(config.tokens);
    if (config.conditional && data.classes == 0)
      fail(ErrorKind::usage, "--conditional: {} has no classes; tokenize a data set with labels", config.tokens);
    if (!config.conditional) data.classes = 0;
    return data;
  }
  static Sequences sizes(const TaskSetup& setup, const TokenData& data) {
    if (setup.data != nullptr) return {data.train.length(), data.vocabulary, data.classes};
    if (!setup.data_shape.empty()) return parse(setup.data_shape);
    Sequences usual;
    usual.classes = setup.config.conditional ? 10 : 0;
    return usual;
  }
  BatchOrder order() const { return {data_.train.count(), config().batch, static_cast<std::uint32_t>(config().seed)}; }
  double unigram_bits() const;

  TokenData data_;
  Sequences sequences_;
  Gpt model_;
  GptTraining training_;
  std::unique_ptr<BatchOrder> order_;
  std::unique_ptr<Gpt::Cache> cache_;  // of a tape that record_part() recorded
};

void PriorTask::feed(Program& program, std::int64_t step) {
  if (order_ == nullptr) order_ = std::make_unique<BatchOrder>(order());
  Tensor tokens({DType::i32, {config().batch, sequences_.length}}), classes({DType::i32, {config().batch}});
  copy_tokens(data_.train, order_->indices(step), tokens, sequences_.classes > 0 ? &classes : nullptr);
  program.feed("tokens", tokens);
  if (sequences_.classes > 0) program.feed("classes", classes);
}

// Held-out tokens under the frequencies of the training tokens, each counted once more than it occurs.
double PriorTask::unigram_bits() const {
  std::vector<double> counts(static_cast<std::size_t>(sequences_.vocabulary), 1.0);
  double total = static_cast<double>(sequences_.vocabulary), bits = 0;
  for (const std::int32_t t : data_.train.tokens.span<std::int32_t>())
    counts[static_cast<std::size_t>(t)] += 1, ++total;
  const auto held = data_.test.tokens.span<std::int32_t>();
  for (const std::int32_t t : held) bits -= std::log2(counts[static_cast<std::size_t>(t)] / total);
  return bits / static_cast<double>(held.size());
}

std::vector<Figure> PriorTask::evaluate(Backend& backend) {
  const std::int64_t n = data_.test.count(), batch = std::min(config().batch, n);
  Tape tape;
  const GptEvaluation e = build_evaluation(tape, model_, batch);
  Program program = compile(tape, {e.nats}, backend);
  Tensor tokens(e.tokens.type()), weights(e.weights.type()), classes({DType::i32, {batch}});
  std::vector<std::int32_t> indices(static_cast<std::size_t>(batch));
  double nats = 0;
  for (std::int64_t first = 0; first < n; first += batch) {
    for (std::int64_t i = 0; i < batch; ++i) {
      indices[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(first + i < n ? first + i : first);
      weights.set(i, first + i < n ? 1 : 0);
    }
    copy_tokens(data_.test, indices, tokens, sequences_.classes > 0 ? &classes : nullptr);
    program.feed(e.tokens, tokens);
    program.feed(e.weights, weights);
    if (e.classes) program.feed(e.classes, classes);
    program.run();
    nats += program.fetch_scalar(e.nats);
  }
  const double per_token = nats / static_cast<double>(n * sequences_.length), bits = per_token / std::numbers::ln2,
               unigram = unigram_bits();
  return {{"sequences", static_cast<double>(n), "", ""},
          {"bits_per_token", bits, "held-out likelihood", fmt::format("{:.4f} bits per token", bits)},
          {"bits_per_sequence", bits * static_cast<double>(sequences_.length), "", ""},
          {"unigram_bits_per_token", unigram, "by frequencies alone", fmt::format("{:.4f} bits per token", unigram)},
          {"perplexity", std::exp(per_token), "perplexity", fmt::format("{:.2f}", std::exp(per_token))}};
}

}  // namespace

TaskDef prior_task() {
  return {"prior",
          "GPT over the tokens of a trained model, to sample new images from",
          "tokens transformer",
          [](const TaskSetup& setup) { return std::make_unique<PriorTask>(setup); },
          {{"small",
            [](TrainConfig& c) {
              c.dim = 128, c.layers = 4, c.attention_heads = 4, c.dropout = 0.1;
              c.optimizer = "adamw", c.weight_decay = 0.01, c.clip = 1, c.lr = 1e-3, c.schedule = "cosine";
              c.warmup = 100, c.batch = 64, c.steps = 3000;
            }},
           {"reference",  // of VQ-GAN's second stage
            [](TrainConfig& c) {
              c.dim = 1024, c.layers = 24, c.attention_heads = 16, c.dropout = 0;
              c.optimizer = "adamw", c.weight_decay = 0.01, c.clip = 1, c.lr = 1e-4, c.schedule = "cosine";
              c.warmup = 1000, c.batch = 64, c.steps = 100000;
            }}}};
}

}  // namespace sg::tools
