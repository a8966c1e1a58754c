#include "tools/tasks/classifier_task.h"

#include <cmath>

#include "core/error.h"
#include "tools/evaluation.h"
#include "tools/tasks/image_task.h"

namespace sg::tools {
namespace {

constexpr std::int64_t kClassesWithoutData = 10;  // where only sizes matter

ClassifierConfig classifier_config(const TrainConfig& config, const ImageSize& images, std::int64_t classes) {
  ClassifierConfig c;
  c.height = images.height, c.width = images.width, c.channels = images.channels;
  c.classes = classes;
  c.hidden = config.hidden;
  c.batch = config.batch;
  c.optimizer = config.optimizer;
  c.lr = config.lr, c.weight_decay = config.weight_decay, c.clip = config.clip;
  c.seed = static_cast<std::uint32_t>(config.seed);
  return c;
}

class ClassifierTask : public ImageTask {
 public:
  explicit ClassifierTask(const TaskSetup& setup)
      : ImageTask(setup),
        model_(classifier_config(config(), images(), setup.data == nullptr ? kClassesWithoutData : labelled_classes())),
        training_(model_),
        labels_({DType::i32, {config().batch}}) {}

  std::vector<Variable*> checkpoint() override { return training_.checkpoint(); }
  std::vector<Variable*> model() override { return model_.variables(); }
  std::vector<Variable*> parameters() override { return model_.parameters(); }
  Variable& step() override { return training_.step(); }

  TaskStep record(Tape& tape, IfUnreachable untrained) override {
    const ClassifierStep step = build_classifier_step(tape, training_, untrained);
    return {step.learning_rate, step.metrics, step.terms, flow_contract(step, model_), {step.loss}};
  }
  std::vector<std::string> parts() const override { return {"classify"}; }
  void record_part(Tape& tape, std::string_view) override { build_classification(tape, model_, config().batch); }

  void feed(Program& program, std::int64_t step) override {
    ImageTask::feed(program, step);
    if (order_ == nullptr) order_ = std::make_unique<BatchOrder>(data().train.count, config().batch, seed());
    std::int64_t i = 0;
    for (const std::int32_t image : order_->indices(step))
      labels_.span<std::int32_t>()[static_cast<std::size_t>(i++)] =
          data().train.labels[static_cast<std::size_t>(image)];
    program.feed("labels", labels_);
  }

  std::vector<std::string> heading() const override {
    return {fmt::format("{} of {} classes on {}", config().model, model_.config().classes, described_data())};
  }
  std::string progress(const Metrics& m) const override {
    return fmt::format("loss {:.4f}  accuracy {:.3f}", metric(m, "loss"), metric(m, "accuracy"));
  }
  std::vector<CurvePanel> curves() const override {
    return {{"cross entropy, nats", true, false, {{"loss", "training batch"}}},
            {"accuracy", false, true, {{"accuracy", "training batch"}}},
            {"size of the gradient", true, false, {{"grad_norm", "all parameters"}}}};
  }

  std::vector<Figure> evaluate(Backend& backend) override {
    const ImageSet& test = data().test;
    // It judges and outlives the judge: no owner.
    const std::shared_ptr<const Classifier> self(std::shared_ptr<const Classifier>(), &model_);
    const Answers answers = answers_of(classifier_judge(self, ""), test, config().batch, backend);
    const double right = accuracy(answers.logits, test.labels), entropy = cross_entropy(answers.logits, test.labels);
    return {{"images", static_cast<double>(test.count), "", ""},
            {"classes", static_cast<double>(model_.config().classes), "", ""},
            {"accuracy", right, "accuracy", fmt::format("{:.2f} %", 100 * right)},
            {"cross_entropy", entropy, "cross entropy", fmt::format("{:.4f} nats", entropy)}};
  }

 private:
  std::int64_t labelled_classes() const {
    require_labels(data());
    return data().classes;
  }

  Classifier model_;
  ClassifierTraining training_;
  std::unique_ptr<BatchOrder> order_;
  Tensor labels_;
};

}  // namespace

std::unique_ptr<Classifier> load_classifier(const std::filesystem::path& run) {
  const RunFolder folder = RunFolder::open(run);
  const TrainConfig config = read_config(folder.config(), {});
  if (config.model != "classifier")
    fail(ErrorKind::io, "{} is a run of {}; a run of classifier is needed (stopgrad train classifier)", run.string(),
         config.model);
  const Checkpoint checkpoint = read_checkpoint(folder.checkpoint());
  ImageSize images;
  const Tensor* bias = checkpoint.file.find("head.bias");
  if (!parse_image_size(checkpoint.data_shape, images) || bias == nullptr || bias->shape().rank() != 1)
    fail(ErrorKind::io, "{}: not the checkpoint of a classifier", checkpoint.path.string());
  auto model = std::make_unique<Classifier>(classifier_config(config, images, bias->shape()[0]));
  restore(model->variables(), checkpoint, false);
  return model;
}

TaskDef classifier_task() {
  return {"classifier",
          "small convolutional classifier of labelled images; its features judge other models",
          "images",
          [](const TaskSetup& setup) { return std::make_unique<ClassifierTask>(setup); },
          {{"small", [](TrainConfig& config) {
              const ClassifierConfig c;
              config.hidden = c.hidden, config.batch = c.batch;
              config.optimizer = c.optimizer, config.lr = c.lr, config.weight_decay = c.weight_decay;
              config.schedule = "cosine", config.warmup = 50, config.steps = 4000;
            }}}};
}

}  // namespace sg::tools
