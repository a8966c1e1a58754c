#include "models/classifier.h"

#include <fmt/ranges.h>

#include <cmath>

#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr std::int64_t kChannelsPerGroup = 8;
constexpr std::int64_t kPlaces = 8;  // a side, which the last map is averaged to at most: bounds the linear layer

const ClassifierConfig& validated(const ClassifierConfig& config) {
  validate(config);
  return config;
}

// Side of the last map, each later stage having half of the one before, rounded up.
std::int64_t last_side(std::int64_t side, const ClassifierConfig& c) {
  for (std::int64_t s = 1; s < c.stages; ++s) side = (side + 1) / 2;
  return side;
}
std::int64_t window(std::int64_t side, const ClassifierConfig& c) {
  return (last_side(side, c) + kPlaces - 1) / kPlaces;
}
std::int64_t flat_width(const ClassifierConfig& c) {
  return last_side(c.height, c) / window(c.height, c) * (last_side(c.width, c) / window(c.width, c)) * c.features();
}

TensorType images_type(const ClassifierConfig& c, std::int64_t n) {
  return {DType::f32, {n, c.height, c.width, c.channels}};
}

}  // namespace

void validate(const ClassifierConfig& c) {
  const auto at_least = [](const char* what, std::int64_t value, std::int64_t least) {
    if (value < least) fail(ErrorKind::usage, "classifier: {} is {}, at least {} is needed", what, value, least);
  };
  at_least("image channels", c.channels, 1);
  at_least("image height", c.height, 1);
  at_least("image width", c.width, 1);
  at_least("classes", c.classes, 2);
  at_least("hidden", c.hidden, 4);
  if (c.hidden % 4 != 0) fail(ErrorKind::usage, "classifier: hidden is {}, a multiple of 4 is needed", c.hidden);
  at_least("stages", c.stages, 1);
  constexpr std::int64_t kMostStages = 8;
  if (c.stages > kMostStages)
    fail(ErrorKind::usage, "classifier: stages is {}, at most {} make sense", c.stages, kMostStages);
  at_least("batch", c.batch, 1);
  for (const auto& [what, value] : {std::pair("lr", c.lr), {"weight_decay", c.weight_decay}, {"clip", c.clip}})
    if (!(value >= 0) || !std::isfinite(value))
      fail(ErrorKind::usage, "classifier: {} is {}, a finite number of at least 0 is needed", what, value);
}

Classifier::Stage::Stage(Module& parent, std::string_view name, std::int64_t in, std::int64_t out, bool first)
    : Module(parent, name), conv1(*this, "conv1", in, out, 3, first ? 1 : 2, 1) {
  if (first) return;
  conv2 = std::make_unique<Conv2d>(*this, "conv2", out, out, 3, 1, 1);
  norm = std::make_unique<GroupNorm>(*this, "norm", out / kChannelsPerGroup, out);
}

Value Classifier::Stage::operator()(Value x) const {
  const Scope scope(*x.tape, name());
  const Value y = relu(conv1(x));
  return conv2 ? relu((*norm)((*conv2)(y))) : y;
}

Classifier::Classifier(const ClassifierConfig& config)
    : Module(config.seed),
      config_(validated(config)),
      stages_([&] {
        std::deque<Stage> stages;
        for (std::int64_t s = 0, in = config.channels; s < config.stages; ++s) {
          const std::int64_t out = config.hidden << s;
          stages.emplace_back(*this, fmt::format("stage{}", s + 1), in, out, s == 0);
          in = out;
        }
        return stages;
      }()),
      window_h_(window(config.height, config)),
      window_w_(window(config.width, config)),
      embed_(*this, "embed", flat_width(config), config.features()),
      head_(*this, "head", config.features(), config.classes) {}

std::vector<Value> Classifier::features(Value images) const {
  std::vector<Value> maps;
  Value x = 2.0 * images - 1.0;
  for (const Stage& stage : stages_) maps.push_back(x = stage(x));
  return maps;
}

Value Classifier::pooled_of(Value last_feature_map) const {
  const bool large = window_h_ > 1 || window_w_ > 1;
  const Value places = large ? avg_pool(last_feature_map, {window_h_, window_w_}) : last_feature_map;
  return relu(embed_(reshape(places, {places.shape()[0], -1})));
}
Value Classifier::logits_of(Value pooled) const { return head_(pooled); }
Value Classifier::pooled(Value images) const { return pooled_of(features(images).back()); }
Value Classifier::logits(Value images) const { return logits_of(pooled(images)); }

ClassifierTraining::ClassifierTraining(Classifier& model)
    : model_(model),
      optimizer_(optimizer_by_name(model.config().optimizer, model.parameters(), model.config().weight_decay)),
      step_("training.step", Tensor({DType::i32, {}})) {}

std::vector<Variable*> ClassifierTraining::checkpoint() {
  std::vector<Variable*> all = model_.variables();
  for (Variable* v : optimizer_->state()) all.push_back(v);
  all.push_back(&step_);
  return all;
}

std::vector<Value> ClassifierStep::fetches() const {
  std::vector<Value> values;
  for (const NamedValue& m : metrics) values.push_back(m.value);
  return values;
}

ClassifierStep build_classifier_step(Tape& tape, ClassifierTraining& training, IfUnreachable untrained) {
  const ClassifierConfig& c = training.model().config();
  ClassifierStep step;
  step.images = tape.input("images", images_type(c, c.batch));
  step.labels = tape.input("labels", {DType::i32, {c.batch}});
  step.learning_rate = tape.input("learning_rate", {DType::f32, {}});
  step.logits = training.model().logits(step.images);
  step.loss = mean(cross_entropy(step.logits, step.labels));
  step.terms = {{"cross_entropy", step.loss}};

  std::vector<Value> wrt;
  for (Variable* p : training.optimizer().parameters()) wrt.push_back(tape.read(*p));
  const ClippedGradients clipped = clip_by_global_norm(gradients(step.loss, wrt, untrained), c.clip);
  training.optimizer().apply(tape, clipped.grads, step.learning_rate);
  tape.assign(training.step(), tape.read(training.step()) + 1);

  const Value hits = cast(equal(argmax(step.logits), step.labels), DType::f32);
  step.metrics = {{"loss", step.loss}, {"accuracy", mean(hits)}, {"grad_norm", clipped.norm}};
  return step;
}

Audit audit_step(const Tape& tape, const ClassifierStep& step, const ClassifierTraining& training) {
  return audit(tape, step.terms, training.optimizer().parameters(), training.model().state());
}

std::vector<FlowExpectation> flow_contract(const ClassifierStep&, const Classifier&) {
  return {{"cross_entropy", "*", FlowIs::live}};
}

Classification build_classification(Tape& tape, const Classifier& model, std::int64_t batch) {
  Classification c;
  c.images = tape.input("images", images_type(model.config(), batch));
  c.pooled = model.pooled(c.images);
  c.logits = model.logits_of(c.pooled);
  return c;
}

}  // namespace sg
