#include "models/gpt.h"

#include <cmath>
#include <numbers>
#include <numeric>

#include "core/autodiff.h"
#include "models/dropout.h"
#include "models/init.h"
#include "ops/elementwise.h"
#include "ops/index.h"
#include "ops/norm.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr double kInitialDeviation = 0.02;  // of all weights and embeddings, as GPT-2 and VQ-GAN's prior have it

const GptConfig& checked(const GptConfig& config) {
  validate(config);
  return config;
}

Value row_numbers(Tape& tape, std::int64_t n) {
  Tensor rows({DType::i32, {n}});
  for (std::int64_t i = 0; i < n; ++i) rows.set(i, static_cast<double>(i));
  return tape.constant(rows);
}

// Each token with the given chance another one, drawn evenly.
Value corrupted(Value tokens, const GptConfig& c, Value random) {
  if (c.corruption == 0 || !random) return tokens;
  const Value drawn = cast(uniform(random, tokens.shape()) * static_cast<double>(c.vocabulary), DType::i32);
  return where(less(uniform(random, tokens.shape()), c.corruption), drawn, tokens);
}

}  // namespace

void validate(const GptConfig& c) {
  const auto positive = [](const char* what, std::int64_t n) {
    if (n < 1) fail(ErrorKind::usage, "Gpt: {} is {}, at least 1 is needed", what, n);
  };
  positive("vocabulary", c.vocabulary);
  positive("length", c.length);
  positive("dim", c.dim);
  positive("layers", c.layers);
  positive("heads", c.heads);
  positive("batch", c.batch);
  if (c.dim % c.heads != 0) fail(ErrorKind::usage, "Gpt: dim {} does not split evenly into {} heads", c.dim, c.heads);
  if (c.classes < 0) fail(ErrorKind::usage, "Gpt: {} classes; 0 is a prior without classes", c.classes);
  if (!(c.dropout >= 0 && c.dropout < 1)) fail(ErrorKind::usage, "Gpt: dropout is {}, it is in [0, 1)", c.dropout);
  if (!(c.corruption >= 0 && c.corruption < 1))
    fail(ErrorKind::usage, "Gpt: corruption is {}, it is in [0, 1)", c.corruption);
}

GptBlock::GptBlock(Module& parent, std::string_view name, const GptConfig& c)
    : Module(parent, name),
      dropout_(c.dropout),
      norm1_(*this, "norm1", c.dim),
      attention_(*this, "attention", c.dim, c.heads),
      norm2_(*this, "norm2", c.dim),
      in_(*this, "in", c.dim, 4 * c.dim),
      out_(*this, "out", 4 * c.dim, c.dim) {}

Value GptBlock::feed_forward(Value x, Value random) const {
  return x + dropout(out_(gelu(in_(norm2_(x)))), dropout_, random);
}

Value GptBlock::operator()(Value x, Value bias, Value random) const {
  const Scope scope(*x.tape, name());
  return feed_forward(x + dropout(attention_(norm1_(x), bias), dropout_, random), random);
}

GptBlock::Cached GptBlock::next(Value x, Value keys, Value values, Value position) const {
  const Scope scope(*x.tape, name());
  const std::int64_t length = keys.shape()[2];
  const Value rows = row_numbers(*x.tape, length);
  const Value here = equal(reshape(rows, {length, 1}), position);
  const MultiHeadAttention::Heads heads = attention_.project(norm1_(x));
  Cached result;
  result.keys = where(here, heads.k, keys);
  result.values = where(here, heads.v, values);
  const Value bias = where(less_equal(rows, position), 0.0, x.tape->constant(kMaskedScore, {DType::f32, {}}));
  const Value seen = attention(heads.q, result.keys, result.values, bias);
  result.out = feed_forward(x + attention_.merge(seen), {});
  return result;
}

Gpt::Gpt(const GptConfig& config)
    : Module(config.seed),
      config_(checked(config)),
      tokens_(*this, "tokens", config.vocabulary + std::max<std::int64_t>(config.classes, 1), config.dim),
      positions_(*this, "positions", config.length, config.dim),
      norm_(*this, "norm", config.dim),
      head_(*this, "head", config.dim, config.vocabulary, false) {
  for (std::int64_t i = 0; i < config.layers; ++i) blocks_.emplace_back(*this, fmt::format("block{}", i), config_);
  for (Variable* p : parameters()) {
    if (p->name().ends_with("bias")) p->set(Tensor(p->type()));
    if (p->type().shape.rank() == 2) p->set(normal_init(p->type().shape, 0, kInitialDeviation, seed(), p->name()));
  }
}

Value Gpt::embed(Value inputs, Value positions, Value random) const {
  return dropout(tokens_(inputs) + positions_(positions), config_.dropout, random);
}

Value Gpt::head(Value x) const { return head_(norm_(x)); }

Value Gpt::start(Value classes) const { return classes + static_cast<std::int32_t>(config_.vocabulary); }

Value Gpt::logits(Value tokens, Value classes, Value random) const {
  Tape& tape = *tokens.tape;
  const Shape& shape = tokens.shape();
  if (shape.rank() != 2 || shape[1] < 1 || shape[1] > config_.length)
    fail(ErrorKind::shape, "Gpt: tokens are {}, expected (sequences, at most {})", to_string(tokens.type()),
         config_.length);
  if (static_cast<bool>(classes) != (config_.classes > 0))
    fail(ErrorKind::usage, "Gpt: the prior has {} classes, and {} given", config_.classes,
         classes ? "some are" : "none are");
  const std::int64_t n = shape[0], t = shape[1];
  const Value first = start(classes ? classes : tape.constant(0.0, {DType::i32, {n}}));
  Value inputs = reshape(first, {n, 1});
  if (t > 1) inputs = concat({inputs, corrupted(slice_axis(tokens, 1, 0, t - 1), config_, random)}, 1);
  Value x = embed(inputs, row_numbers(tape, t), random);
  const Value bias = causal_bias(tape, t);
  for (const GptBlock& block : blocks_) x = block(x, bias, random);
  return head(x);
}

Gpt::Cache::Cache(const Gpt& model, std::int64_t sequences) : position("cache.position", Tensor({DType::i32, {}})) {
  const GptConfig& c = model.config();
  const TensorType type{DType::f32, {sequences, c.heads, c.length, c.dim / c.heads}};
  for (std::int64_t i = 0; i < c.layers; ++i) {
    keys.emplace_back(fmt::format("cache.block{}.keys", i), Tensor(type));
    values.emplace_back(fmt::format("cache.block{}.values", i), Tensor(type));
  }
}

// Old keys and values may stay: what lies at or after the position is never seen.
void Gpt::Cache::clear() { position.set(Tensor(position.type())); }

Value Gpt::next(Value inputs, Cache& cache) const {
  Tape& tape = *inputs.tape;
  const std::int64_t n = inputs.shape()[0];
  const Value position = tape.read(cache.position);
  Value x = embed(reshape(inputs, {n, 1}), position, {});
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const GptBlock::Cached step = blocks_[i].next(x, tape.read(cache.keys[i]), tape.read(cache.values[i]), position);
    tape.assign(cache.keys[i], step.keys);
    tape.assign(cache.values[i], step.values);
    x = step.out;
  }
  tape.assign(cache.position, position + 1);
  return reshape(head(x), {n, config_.vocabulary});
}

GptGenerator::GptGenerator(const Gpt& model, std::int64_t sequences, Backend& backend)
    : model_(model),
      sequences_(sequences),
      cache_(model, sequences),
      inputs_(tape_.input("inputs", {DType::i32, {sequences}})),
      logits_(model.next(inputs_, cache_)),
      program_(compile(tape_, {logits_}, backend)),
      start_(inputs_.type()),
      input_(inputs_.type()),
      out_(logits_.type()) {}

void GptGenerator::begin(std::span<const std::int32_t> classes) {
  const std::int64_t known = model_.config().classes;
  const auto n = static_cast<std::int64_t>(classes.size());
  if (n != (known > 0 ? sequences_ : 0))
    fail(ErrorKind::usage, "Gpt: {} classes given for {} sequences of a model of {} classes", n, sequences_, known);
  for (std::int64_t i = 0; i < sequences_; ++i) {
    const std::int32_t c = known > 0 ? classes[static_cast<std::size_t>(i)] : 0;
    if (known > 0 && (c < 0 || c >= known))
      fail(ErrorKind::usage, "Gpt: class {} of a sequence; there are 0 to {}", c, known - 1);
    start_.set(i, static_cast<double>(model_.config().vocabulary + c));
  }
  cache_.clear();
  made_ = 0;
}

const Tensor& GptGenerator::next(std::span<const std::int32_t> previous) {
  if (made_ >= longest()) fail(ErrorKind::usage, "Gpt: a sequence has {} tokens at most", longest());
  if (static_cast<std::int64_t>(previous.size()) != (made_ == 0 ? 0 : sequences_))
    fail(ErrorKind::usage, "Gpt: {} previous tokens for {} sequences at position {}", previous.size(), sequences_,
         made_);
  for (std::size_t i = 0; i < previous.size(); ++i) input_.set(static_cast<std::int64_t>(i), previous[i]);
  program_.feed(inputs_, made_ == 0 ? start_ : input_);
  program_.run();
  program_.fetch_into(logits_, out_);
  ++made_;
  return out_;
}

GptTraining::GptTraining(Gpt& model)
    : model_(model),
      optimizer_(optimizer_by_name(model.config().optimizer, model.parameters(), model.config().weight_decay)),
      random_("training.random", Tensor::of<std::int32_t>({2}, {static_cast<std::int32_t>(model.config().seed), 0})),
      step_("training.step", Tensor({DType::i32, {}})) {}

std::vector<Variable*> GptTraining::checkpoint() {
  std::vector<Variable*> all = model_.variables();
  for (Variable* v : optimizer_->state()) all.push_back(v);
  all.insert(all.end(), {&random_, &step_});
  return all;
}

GptTrainStep build_train_step(Tape& tape, GptTraining& training, IfUnreachable untrained) {
  const Gpt& model = training.model();
  const GptConfig& c = model.config();
  GptTrainStep step;
  step.tokens = tape.input("tokens", {DType::i32, {c.batch, c.length}});
  if (c.classes > 0) step.classes = tape.input("classes", {DType::i32, {c.batch}});
  step.learning_rate = tape.input("learning_rate", {DType::f32, {}});
  const Value logits = model.logits(step.tokens, step.classes, tape.read(training.random()));
  step.loss = mean(cross_entropy(logits, step.tokens));
  step.terms = {{"likelihood", step.loss}};

  std::vector<Value> wrt;
  for (Variable* p : training.optimizer().parameters()) wrt.push_back(tape.read(*p));
  const ClippedGradients clipped = clip_by_global_norm(gradients(step.loss, wrt, untrained), c.clip);
  training.optimizer().apply(tape, clipped.grads, step.learning_rate);
  tape.assign(training.step(), tape.read(training.step()) + 1);
  advance_random_state(tape, training.random());
  step.metrics = {{"loss", step.loss},
                  {"bits_per_token", step.loss / std::numbers::ln2},
                  {"accuracy", mean(cast(equal(argmax(logits), step.tokens), DType::f32))},
                  {"grad_norm", clipped.norm}};
  return step;
}

GptEvaluation build_evaluation(Tape& tape, const Gpt& model, std::int64_t batch) {
  const GptConfig& c = model.config();
  GptEvaluation e;
  e.tokens = tape.input("tokens", {DType::i32, {batch, c.length}});
  if (c.classes > 0) e.classes = tape.input("classes", {DType::i32, {batch}});
  e.weights = tape.input("weights", {DType::f32, {batch}});
  e.nats = sum(e.weights * sum(cross_entropy(model.logits(e.tokens, e.classes), e.tokens), {1}));
  return e;
}

}  // namespace sg
