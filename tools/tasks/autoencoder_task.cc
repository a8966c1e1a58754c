// Tasks of the models that are a VqVae with some quantizer.
#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "tools/evaluation.h"
#include "tools/images.h"
#include "tools/tasks/image_task.h"

namespace sg::tools {
namespace {

constexpr std::int64_t kPictures = 16;

// Whether an estimator made z_q, here or in a part: scalar grids have their own.
bool has_estimator(const Quantized& quantized) {
  return quantized.lookup.z || std::any_of(quantized.parts.begin(), quantized.parts.end(), has_estimator);
}

class AutoencoderTask : public ImageTask, private Tokenizer {
 public:
  // total_steps(): a cosine schedule and the estimators that change with progress go with the length of the run.
  explicit AutoencoderTask(const TaskSetup& setup)
      : ImageTask(setup),
        model_(model_config(config(), images(), setup.data == nullptr ? 0 : total_steps())),
        training_(model_) {}

  std::vector<Variable*> checkpoint() override { return training_.checkpoint(); }
  std::vector<Variable*> model() override { return model_.variables(); }
  std::vector<Variable*> parameters() override { return model_.parameters(); }
  std::vector<Variable*> state() override { return model_.state(); }
  Variable& step() override { return training_.step(); }

  TaskStep record(Tape& tape, IfUnreachable untrained) override {
    const TrainStep step = build_train_step(tape, training_, untrained);
    estimated_ = has_estimator(step.quantized);
    TaskStep out{step.learning_rate, step.metrics, step.terms, flow_contract(step, model_), {}};
    out.forward = {step.total, step.reconstruction};
    for (const LossTerm& term : step.quantized.losses) out.forward.push_back(term.value);
    return out;
  }

  std::vector<std::string> parts() const override {
    return coded() ? std::vector<std::string>{"evaluate", "encode", "decode"} : std::vector<std::string>{"evaluate"};
  }
  void record_part(Tape& tape, std::string_view part) override {
    if (part == "evaluate")
      build_evaluation(tape, model_, config().batch);
    else if (part == "encode")
      build_encode(tape, model_, config().batch);
    else
      build_decode(tape, model_, config().batch);
  }

  void start(Backend& backend) override {
    if (quantizer().wants_rows()) initialize_codebook(model_, batch_of(0), backend);
  }

  std::vector<std::string> heading() const override;
  std::vector<std::string> first_step(const Metrics& m) const override;
  std::string progress(const Metrics& m) const override {
    const std::string errors = fmt::format("loss {:.4f}  mse {:.4f}", metric(m, "loss"), metric(m, "reconstruction"));
    return !coded()
               ? errors
               : fmt::format("{}  codes {:.0f}/{}", errors,
                             std::round(metric(m, "usage_window") * static_cast<double>(all_codes())), all_codes());
  }
  std::vector<CurvePanel> curves() const override;

  std::vector<Figure> evaluate(Backend& backend) override;
  std::vector<std::string> write_files(const RunFolder& folder, Backend& backend) override;
  const Tokenizer* tokenizer() const override { return coded() ? this : nullptr; }

 private:
  const Quantizer& quantizer() const { return model_.quantizer(); }
  bool coded() const { return all_codes() > 0; }
  std::int64_t all_codes() const { return quantizer().all_codes(); }

  Encoding encode(Tape& tape, std::int64_t batch) const override { return build_encode(tape, model_, batch); }
  Decoding decode(Tape& tape, std::int64_t batch) const override { return build_decode(tape, model_, batch); }
  Shape token_shape(std::int64_t n) const override { return model_.token_shape(n); }
  std::int64_t codes() const override { return quantizer().codes(); }

  VqVae model_;
  VqVaeTraining training_;
  bool estimated_ = false;  // whether an estimator made z_q in the recorded step
};

std::vector<std::string> AutoencoderTask::heading() const {
  const VqVaeConfig& c = model_.config();
  std::vector<std::string> lines{fmt::format("{} on {}", config().model, described_data())};
  if (!coded()) {
    lines.push_back(fmt::format("each image becomes {}x{} rows of {} numbers, which are not quantized",
                                c.latent_height(), c.latent_width(), quantizer().dim()));
    return lines;
  }
  const double rows = static_cast<double>(c.latent_height() * c.latent_width());
  lines.push_back(fmt::format("each image becomes {}x{} rows of {:.1f} bits ({:.0f} bits, of {} as stored)",
                              c.latent_height(), c.latent_width(), quantizer().bits_per_row(),
                              rows * quantizer().bits_per_row(), data().train.image_bytes() * 8));
  lines.push_back(fmt::format("{}: {}", config().quantizer, quantizer().describe()));
  if (!estimated_ && config().estimator != TrainConfig{}.estimator)
    lines.push_back(fmt::format("note: {} has a gradient of its own; --estimator {} is not used", config().quantizer,
                                config().estimator));
  return lines;
}

// What the rotation trick and others are most often brought down by shows before anything is trained: codes that are
// much shorter than what they stand for, few codes in use, one loss term that outweighs the other at z.
std::vector<std::string> AutoencoderTask::first_step(const Metrics& m) const {
  if (!coded()) return {};
  const double ratio = metric(m, "norm_ratio"), reconstruction = metric(m, "grad_reconstruction"),
               commitment = metric(m, "grad_commitment");
  std::vector<std::string> lines{fmt::format("|q|/|z| {:.3g}, {:.0f} of {} codes used", ratio,
                                             std::round(metric(m, "usage") * static_cast<double>(all_codes())),
                                             all_codes())};
  if (!std::isnan(commitment))
    lines.back() += fmt::format(", gradient at z: {:.1f} % reconstruction, {:.1f} % commitment",
                                100 * reconstruction / (reconstruction + commitment),
                                100 * commitment / (reconstruction + commitment));
  const bool scaled = BoundEstimator(config().estimator).def.jacobian.find("|q|/|z|") != std::string::npos;
  if (estimated_ && scaled && ratio < 0.1)
    lines.push_back(
        fmt::format("note: the codes are much shorter than the encoder's outputs, and {} scales the gradient by "
                    "|q|/|z|; --init kmeans starts them at the outputs' own length",
                    config().estimator));
  return lines;
}

std::vector<CurvePanel> AutoencoderTask::curves() const {
  return {
      {"loss",
       true,
       false,
       {{"loss", "total"},
        {"reconstruction", "reconstruction"},
        {"codebook", "codebook"},
        {"commitment", "commitment", true}}},  // equal to the codebook loss: both lines are seen
      {"codes used, fraction of the codebook",
       false,
       true,
       {{"usage_window", "window of steps"}, {"usage", "one batch"}}},
      {"|q| / |z| of the rows",
       true,
       false,
       {{"norm_ratio", "mean"}, {"norm_ratio_p5", "5 %", true}, {"norm_ratio_p95", "95 %", true}}},
      {"perplexity of the codes", false, true, {{"perplexity_window", "window of steps"}, {"perplexity", "one batch"}}},
      {"relative quantization error |z-q|^2 / |z|^2", true, false, {{"relative_error", "mean"}}},
      {"size of the gradient at z",
       true,
       false,
       {{"grad_reconstruction", "reconstruction"}, {"grad_commitment", "commitment"}}}};
}

std::vector<Figure> AutoencoderTask::evaluate(Backend& backend) {
  return figures_of(evaluate_model(model_, data().test, config().batch, backend, judges()), judges());
}

std::vector<std::string> AutoencoderTask::write_files(const RunFolder& folder, Backend& backend) {
  const Pictures pictures = reconstruct(model_, data().test, kPictures, backend);
  save_png(folder.reconstructions(), reconstruction_grid(pictures.originals, pictures.reconstructions, 8));
  return {fmt::format("{}  (originals, below each its reconstruction)", folder.reconstructions().string())};
}

std::function<void(TrainConfig&)> sizes(std::string_view preset) {
  return [preset](TrainConfig& config) {
    const VqVaeConfig c = vqvae_preset(preset);
    config.hidden = c.hidden, config.residual_hidden = c.residual, config.residual_blocks = c.residual_blocks;
    config.code_dim = c.quantizer.dim, config.codes = c.quantizer.codes, config.batch = c.batch;
    // Data sets have a size of their own; this is for images that are resized or drawn.
    const bool usual = c.height == 28 && c.channels == 1;
    config.image_size = usual ? 0 : c.height, config.channels = usual ? 0 : c.channels;
  };
}

void check_vqvae(const TrainConfig& config) {
  if (config.ema_decay >= 1) fail(ErrorKind::usage, "--ema-decay is {}; it must be below 1", config.ema_decay);
  if (config.revive < 0 && config.revive != -1)
    fail(ErrorKind::usage, "--revive is {}; it must be -1 (by the codebook's rule) or at least 0", config.revive);
  if (config.codes * config.code_dim > std::int64_t{1} << 30)
    fail(ErrorKind::usage, "--codes {} times --code-dim {} is a codebook of {:.1f} GB; at most 4 GB is supported",
         config.codes, config.code_dim,
         4e-9 * static_cast<double>(config.codes) * static_cast<double>(config.code_dim));
}

// A model that has one kind of quantizer, whatever the settings say.
std::function<std::unique_ptr<Task>(const TaskSetup&)> with_quantizer(std::string name) {
  return [name](TaskSetup setup) {
    setup.config.quantizer = name;
    return std::make_unique<AutoencoderTask>(setup);
  };
}

}  // namespace

TaskDef vqvae_task() {
  return {"vqvae",
          "VQ-VAE with any quantizer and estimator, on images",
          "images network quantizer estimator codes rows codebook kinds grid",
          [](const TaskSetup& setup) { return std::make_unique<AutoencoderTask>(setup); },
          {{"fashion", sizes("fashion")}, {"large", sizes("large")}},
          check_vqvae};
}

TaskDef ae_task() {
  return {"ae",
          "the same network without a quantizer: what the codes cost",
          "images network rows",
          with_quantizer("none"),
          {{"fashion", sizes("fashion")}, {"large", sizes("large")}}};
}

TaskDef fsq_ae_task() {
  // A number of codes that the paper has a grid for.
  const auto with_codes = [](std::string_view preset) {
    return [apply = sizes(preset)](TrainConfig& config) {
      apply(config);
      config.codes = 1024;
    };
  };
  return {"fsq-ae",
          "the same network with finite scalar quantization (2309.15505)",
          "images network codes grid",
          with_quantizer("fsq"),
          {{"fashion", with_codes("fashion")}, {"large", with_codes("large")}}};
}

}  // namespace sg::tools
