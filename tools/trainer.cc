#include "tools/trainer.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>

#include "backends/backends.h"
#include "core/program.h"
#include "models/schedule.h"
#include "tools/curves.h"
#include "tools/data/loader.h"
#include "tools/evaluation.h"
#include "tools/files.h"
#include "tools/flow_report.h"
#include "tools/program.h"
#include "tools/progress.h"
#include "tools/session.h"

namespace sg::tools {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kPictures = 16;

// Whether an estimator made z_q, here or in a part: scalar grids have their own.
bool has_estimator(const Quantized& quantized) {
  return quantized.lookup.z || std::any_of(quantized.parts.begin(), quantized.parts.end(), has_estimator);
}

// Error{usage}: a batch larger than the data set.
std::int64_t steps_of(const TrainConfig& config, const Dataset& data) {
  const BatchOrder order(data.train.count, config.batch, static_cast<std::uint32_t>(config.seed));
  return config.epochs > 0 ? config.epochs * order.steps_per_epoch() : config.steps;
}

// Everything of a run that lives as long as its training steps.
class Trainer {
 public:
  explicit Trainer(const TrainRequest& request);
  TrainResult run();

 private:
  void open_folder();
  void print_heading() const;
  void print_first_step(const Metrics& m) const;
  Metrics step();
  Metrics checked_step();
  std::string last_checkpoint() const;
  void save();
  void draw_pictures();
  TrainResult finish();
  void print_end(const TrainResult& result) const;
  Schedule schedule() const;

  const TrainRequest& request_;
  TrainConfig config_;
  Backend& backend_;
  std::optional<Dataset> loaded_;
  const Dataset& data_;
  ImageSize images_;
  std::int64_t steps_;
  VqVaeConfig model_config_;
  VqVae model_;
  VqVaeTraining training_;
  std::int64_t first_step_ = 0, step_ = 0, saved_step_ = 0;  // saved_step_ 0: no checkpoint
  std::optional<RunFolder> folder_;
  std::vector<Metrics> history_;
  std::unique_ptr<MetricsLog> log_;
  std::unique_ptr<Loader> loader_;
  Tape tape_;
  TrainStep recorded_;
  FlowReport flow_;
  std::optional<Program> program_;
  Tensor rate_{TensorType{DType::f32, {}}};
  double train_seconds_ = 0;
};

Trainer::Trainer(const TrainRequest& request)
    : request_(request),
      config_(request.config),
      backend_(start_backend(config_)),
      data_(request.data != nullptr ? *request.data : loaded_.emplace(load_dataset(data_options(config_)))),
      images_(size_of(data_.train)),
      steps_(steps_of(config_, data_)),
      model_config_(model_config(config_, images_, steps_)),
      model_(model_config_),
      training_(model_) {
  if (config_.warmup >= steps_)
    fail(ErrorKind::usage, "--warmup is {} steps of {} in all; it must be shorter", config_.warmup, steps_);
  if (request.resume) {
    const Checkpoint checkpoint = read_checkpoint(RunFolder::open(request.out).checkpoint());
    if (checkpoint.images != images_)
      fail(ErrorKind::io, "{} is for images of {}, the data are {}", checkpoint.path.string(),
           to_string(checkpoint.images), to_string(images_));
    restore(training_.checkpoint(), checkpoint, true);
    first_step_ = step_ = saved_step_ = static_cast<std::int64_t>(training_.step().value().item());
    if (step_ >= steps_)
      fail(ErrorKind::usage, "{} has done all of its {} steps; give a larger --steps to train on", request.out.string(),
           step_);
  }
  recorded_ = build_train_step(tape_, training_, IfUnreachable::zero);
  flow_ = report_flow(tape_, recorded_, training_);
  if (!flow_.problems.empty() && !request.allow_untrained)
    fail(ErrorKind::contract,
         "this model would not be trained as a whole:\n{}\n`{} audit` with the same flags shows which term trains "
         "what; --allow-untrained trains it all the same",
         fmt::join(flow_.problems, "\n"), program_name());
  program_.emplace(compile(tape_, recorded_.fetches(), backend_, {.check_finite = config_.check_finite}));
}

Schedule Trainer::schedule() const {
  return {.peak = config_.lr, .warmup = config_.warmup, .total = model_config_.cosine_decay ? steps_ : 0, .floor = 0};
}

void Trainer::open_folder() {
  folder_ = request_.resume ? RunFolder::open(request_.out) : RunFolder::create(request_.out);
  write_text_atomically(folder_->config(), to_toml(config_));
  log_ = std::make_unique<MetricsLog>(folder_->metrics(), step_, history_);
}

void Trainer::print_heading() const {
  if (request_.quiet) return;
  std::int64_t weights = 0;
  for (const Variable* v : training_.optimizer().parameters()) weights += v->value().elements();
  const Quantizer& quantizer = model_.quantizer();
  const std::int64_t rows = model_config_.latent_height() * model_config_.latent_width();
  fmt::print("{} on {}: {} training and {} test images of {} ({})\n", config_.model, data_.name, data_.train.count,
             data_.test.count, to_string(images_), data_.origin);
  fmt::print("  each image becomes {}x{} rows of {:.1f} bits ({:.0f} bits, of {} as stored); {:.2f} million weights\n",
             model_config_.latent_height(), model_config_.latent_width(), quantizer.bits_per_row(),
             static_cast<double>(rows) * quantizer.bits_per_row(), data_.train.image_bytes() * 8,
             static_cast<double>(weights) / 1e6);
  fmt::print("  {}: {}\n", config_.quantizer, quantizer.describe());
  if (!has_estimator(recorded_.quantized) && config_.estimator != TrainConfig{}.estimator)
    fmt::print("  note: {} has a gradient of its own; --estimator {} is not used\n", config_.quantizer,
               config_.estimator);
  fmt::print("{}", short_text(flow_));
  for (const auto* messages : {&flow_.problems, &flow_.violations})
    for (const std::string& message : *messages) fmt::print("  warning: {}\n", message);
  fmt::print("  {} {:g}, batch {}, backend {} with {} thread{}\n", config_.optimizer, config_.lr, config_.batch,
             config_.backend, threads(), threads() == 1 ? "" : "s");
  fmt::print("  {} {} to {} ({:.2f} epochs in all), written to {}\n", request_.resume ? "resuming: steps" : "steps",
             step_ + 1, steps_, static_cast<double>(steps_) / static_cast<double>(data_.train.count / config_.batch),
             folder_->path().string());
  fmt::print("  Ctrl-C saves and stops; `{} train --resume {}` goes on\n", program_name(), folder_->path().string());
  std::fflush(stdout);
}

// What the rotation trick and others are most often brought down by shows before anything is trained: codes that are
// much shorter than what they stand for, few codes in use, one loss term that outweighs the other at z.
void Trainer::print_first_step(const Metrics& m) const {
  if (request_.quiet) return;
  const std::int64_t codes = model_.quantizer().all_codes();
  const double ratio = metric(m, "norm_ratio"), reconstruction = metric(m, "grad_reconstruction"),
               commitment = metric(m, "grad_commitment");
  fmt::print(
      "  at step {}: |q|/|z| {:.3g}, {:.0f} of {} codes used, gradient at z: {:.1f} % reconstruction, {:.1f} % "
      "commitment\n",
      step_, ratio, std::round(metric(m, "usage") * static_cast<double>(codes)), codes,
      100 * reconstruction / (reconstruction + commitment), 100 * commitment / (reconstruction + commitment));
  const bool scaled = BoundEstimator(config_.estimator).def.jacobian.find("|q|/|z|") != std::string::npos;
  if (has_estimator(recorded_.quantized) && scaled && ratio < 0.1)
    fmt::print(
        "  note: the codes are much shorter than the encoder's outputs, and {} scales the gradient by |q|/|z|; --init "
        "kmeans starts them at the outputs' own length\n",
        config_.estimator);
  fmt::print("  first training step done {:.2f} s after the program was started\n", seconds_since_start());
  std::fflush(stdout);
}

Metrics Trainer::step() {
  const auto start = Clock::now();
  const double rate = learning_rate(schedule(), step_);
  rate_.set(0, rate);
  program_->feed(recorded_.images, loader_->next());
  program_->feed(recorded_.learning_rate, rate_);
  program_->run();
  ++step_;
  Metrics m{{"step", static_cast<double>(step_)}};
  for (const NamedValue& named : recorded_.metrics) m.emplace_back(named.name, program_->fetch_scalar(named.value));
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  m.emplace_back("lr", rate);
  m.emplace_back("images_per_second", static_cast<double>(config_.batch) / seconds);
  train_seconds_ += seconds;
  return m;
}

std::string Trainer::last_checkpoint() const {
  return saved_step_ > 0 ? fmt::format("The checkpoint in {} is of step {}", folder_->path().string(), saved_step_)
                         : "No checkpoint was saved yet";
}

// step(), saying which one it was where --check-finite stops it.
Metrics Trainer::checked_step() {
  try {
    return step();
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::non_finite) throw;
    fail(ErrorKind::non_finite, "step {}: {}\n  {}", step_ + 1, e.message(), last_checkpoint());
  }
}

void Trainer::save() {
  log_->flush();
  const std::vector<Variable*> variables = training_.checkpoint();
  save_checkpoint(folder_->checkpoint(), variables, images_, step_);
  saved_step_ = step_;
}

void Trainer::draw_pictures() {
  const Pictures pictures = reconstruct(model_, data_.test, kPictures, backend_);
  save_png(folder_->reconstructions(), reconstruction_grid(pictures.originals, pictures.reconstructions, 8));
  save_png(folder_->curves(), draw_curves(history_));
}

TrainResult Trainer::run() {
  open_folder();
  print_heading();
  loader_ = std::make_unique<Loader>(data_.train, config_.batch, model_config_.seed, step_);
  if (!request_.resume && model_.quantizer().wants_rows()) {
    Tensor first({DType::f32, {config_.batch, images_.height, images_.width, images_.channels}});
    BatchOrder order(data_.train.count, config_.batch, model_config_.seed);
    copy_images(data_.train, order.indices(0), first);
    initialize_codebook(model_, first, backend_);
  }

  const InterruptGuard guard;
  const std::int64_t last = request_.stop_after > 0 ? std::min(request_.stop_after, steps_) : steps_;
  {
    const std::int64_t codes = model_.quantizer().all_codes();
    Progress progress(step_, steps_, config_.log_every);
    double pace = 0;
    while (step_ < last && !InterruptGuard::interrupted()) {
      Metrics m = checked_step();
      const double loss = metric(m, "loss");
      log_->append(m);
      if (!std::isfinite(loss))
        fail(ErrorKind::non_finite,
             "the loss is {} at step {}. {}; --check-finite names the op that made the first such "
             "number, a lower --lr or --clip 1 may avoid it",
             loss, step_, last_checkpoint());
      // Averaged as time, not as speed: one slow step among fast ones counts for what it took.
      const double seconds = static_cast<double>(config_.batch) / metric(m, "images_per_second");
      pace = step_ < first_step_ + 5 ? seconds : 0.95 * pace + 0.05 * seconds;
      if (step_ == first_step_ + 1) print_first_step(m);
      if (!request_.quiet && progress.wants_text(step_)) {
        progress.update(step_,
                        fmt::format("loss {:.4f}  mse {:.4f}  codes {:.0f}/{}", loss, metric(m, "reconstruction"),
                                    std::round(metric(m, "usage_window") * static_cast<double>(codes)), codes),
                        static_cast<double>(config_.batch) / pace);
        log_->flush();
      }
      history_.push_back(std::move(m));
      if (config_.checkpoint_every > 0 && step_ % config_.checkpoint_every == 0 && step_ < last) save();
    }
  }
  return finish();
}

TrainResult Trainer::finish() {
  loader_.reset();
  save();
  program_.reset();
  if (request_.pictures) draw_pictures();
  TrainResult result{.step = step_, .finished = step_ == steps_, .interrupted = false, .test = {}};
  if (result.finished) result.test = evaluate_model(model_, data_.test, config_.batch, backend_);
  if (!request_.quiet) print_end(result);
  result.interrupted = InterruptGuard::interrupted();
  return result;
}

void Trainer::print_end(const TrainResult& result) const {
  const std::string run = folder_->path().string();
  fmt::print(
      "{} at step {} after {} of training ({:.0f} images/s, peak memory {:.0f} MB)\n",
      result.finished ? "done" : "stopped", step_, duration_text(train_seconds_),
      static_cast<double>(config_.batch) * static_cast<double>(step_ - first_step_) / std::max(train_seconds_, 1e-9),
      peak_memory_mb());
  if (!result.finished) {
    fmt::print("  saved; go on with: {} train --resume {}\n", program_name(), run);
    return;
  }
  const EvaluationResult& r = result.test;
  fmt::print(
      "  test set of {} images: MSE {:.6f} (PSNR {:.2f} dB), {:.0f} of {} codes used, perplexity {:.1f}, relative "
      "error {:.4f}\n",
      r.images, r.mse, r.psnr, std::round(r.usage * static_cast<double>(r.codes)), r.codes, r.perplexity,
      r.relative_error);
  if (!request_.pictures) return;
  fmt::print(
      "Look at:\n  {}  (originals, below each its reconstruction)\n  {}  (loss, usage, norm ratio over the steps)\n",
      folder_->reconstructions().string(), folder_->curves().string());
}

}  // namespace

TrainResult train(const TrainRequest& request) { return Trainer(request).run(); }

}  // namespace sg::tools
