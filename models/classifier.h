// A small convolutional classifier: it says what is on a picture, and its inner values measure how alike two pictures
// (features) or two sets of pictures (pooled) look to it.
//   stage 1:     conv 3x3 p1 (C -> hidden), relu
//   stage s > 1: conv 3x3 s2 p1 (-> 2^(s-1) hidden), relu, conv 3x3 p1, group norm (8 channels a group), relu
//   pooled:      last map averaged to at most 8 x 8 places, linear (-> 2^(stages-1) hidden), relu
//   logits:      linear (-> classes)
// Images are f32 (N,H,W,C) in [0,1]; the network sees 2 x - 1.
#pragma once
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "core/audit.h"
#include "core/autodiff.h"
#include "models/layers.h"
#include "models/optim.h"
#include "models/statistics.h"

namespace sg {

// Everything that decides a training run of the classifier, except the data and where it runs.
struct ClassifierConfig {
  std::int64_t height = 28, width = 28, channels = 1;  // of an image
  std::int64_t classes = 10;
  std::int64_t hidden = 32, stages = 3;  // channels of the first stage, a multiple of 4; each later stage has twice
                                         // the channels and half the side of the one before
  std::int64_t batch = 64;
  std::string optimizer = "adamw";  // see optimizer_names()
  double lr = 2e-3, weight_decay = 1e-2;
  double clip = 0;  // bound of the gradients' global norm; 0: none
  std::uint32_t seed = 1;

  std::int64_t features() const { return hidden << (stages - 1); }  // width of pooled()
  bool operator==(const ClassifierConfig&) const = default;
};

// Error{usage} naming the first field that makes no sense, with what it may be.
void validate(const ClassifierConfig& config);

class Classifier : public Module {
 public:
  explicit Classifier(const ClassifierConfig& config);  // Error{usage}: validate()

  // The map after each stage, from the finest to the coarsest: (N,H/2^s,W/2^s,2^s hidden) for s = 0, 1, ...; halves are
  // rounded up.
  std::vector<Value> features(Value images) const;
  Value pooled(Value images) const;  // (N,H,W,C) -> (N, config.features())
  Value logits(Value images) const;  // (N,H,W,C) -> (N, classes)
  // The same from what was recorded already, so that the network is run once.
  Value pooled_of(Value last_feature_map) const;
  Value logits_of(Value pooled) const;

  const ClassifierConfig& config() const { return config_; }

 private:
  struct Stage : Module {
    Stage(Module& parent, std::string_view name, std::int64_t in, std::int64_t out, bool first);
    Value operator()(Value x) const;
    Conv2d conv1;
    std::unique_ptr<Conv2d> conv2;  // with norm: null in the first stage
    std::unique_ptr<GroupNorm> norm;
  };
  ClassifierConfig config_;
  std::deque<Stage> stages_;
  std::int64_t window_h_ = 1, window_w_ = 1;  // over which the last map is averaged
  Linear embed_, head_;
};

// State of a run besides the model's.
class ClassifierTraining {
 public:
  explicit ClassifierTraining(Classifier& model);  // model outlives it
  ClassifierTraining(const ClassifierTraining&) = delete;
  ClassifierTraining& operator=(const ClassifierTraining&) = delete;

  Classifier& model() const { return model_; }
  Optimizer& optimizer() const { return *optimizer_; }
  Variable& step() { return step_; }  // "training.step" i32: steps done

  // Everything that a checkpoint must hold for an exact resume: parameters, optimizer state, this state.
  std::vector<Variable*> checkpoint();

 private:
  Classifier& model_;
  std::unique_ptr<Optimizer> optimizer_;
  Variable step_;
};

struct ClassifierStep {
  Value images, labels, learning_rate;  // inputs: f32 (batch,H,W,C), i32 (batch), f32 []
  Value logits;                         // (batch, classes), of the parameters before this step's update
  Value loss;                           // mean cross entropy, nats
  std::vector<AuditTerm> terms;         // "cross_entropy"
  std::vector<NamedValue> metrics;      // loss, accuracy (of this batch), grad_norm (before clipping)
  std::vector<Value> fetches() const;   // the metrics' values
};
// Records one step: cross entropy, gradients, optimizer, step count.
ClassifierStep build_classifier_step(Tape& tape, ClassifierTraining& training,
                                     IfUnreachable untrained = IfUnreachable::error);

// Each term of a recorded step against each parameter; its contract: the loss trains all of them.
Audit audit_step(const Tape& tape, const ClassifierStep& step, const ClassifierTraining& training);
std::vector<FlowExpectation> flow_contract(const ClassifierStep& step, const Classifier& model);

struct Classification {
  Value images;  // input f32 (N,H,W,C)
  Value pooled;  // (N, features)
  Value logits;  // (N, classes)
};
Classification build_classification(Tape& tape, const Classifier& model, std::int64_t batch);

}  // namespace sg
