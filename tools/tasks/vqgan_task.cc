// VQ-GAN as a model of the program.
#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "models/vqgan_training.h"
#include "tools/evaluation.h"
#include "tools/images.h"
#include "tools/tasks/classifier_task.h"
#include "tools/tasks/image_task.h"

namespace sg::tools {
namespace {

constexpr std::int64_t kPictures = 16;

VqGanConfig vqgan_config(const TrainConfig& config, const ImageSize& images, std::int64_t steps) {
  VqGanConfig c;
  c.height = images.height, c.width = images.width, c.channels = images.channels;
  c.ch = config.ch, c.ch_mult = config.ch_mult, c.res_blocks = config.res_blocks, c.groups = config.groups;
  c.attention = config.low_attention, c.latent = config.latent;
  c.quantizer = quantizer_config(config);
  c.discriminator = {.ndf = config.ndf, .layers = config.disc_layers};
  c.perceptual_weight = config.perceptual_weight;
  c.disc_weight = config.disc_weight, c.disc_factor = config.disc_factor;
  c.disc_start = config.disc_start, c.disc_warmup = config.disc_warmup;
  c.batch = config.batch, c.lr = config.lr, c.warmup = config.warmup;
  c.cosine_decay = config.schedule == "cosine";
  c.steps = steps > 0 ? steps : config.steps;
  c.window = config.window;
  c.seed = static_cast<std::uint32_t>(config.seed);
  sg::validate(c);
  return c;
}

// "none", the run folder of a classifier, or a file of VGG16's weights.
PerceptualDistance perceptual_distance(const TrainConfig& config) {
  if (config.perceptual == "none") return {};
  if (std::filesystem::is_directory(config.perceptual))
    return classifier_distance(load_classifier(config.perceptual), config.perceptual);
  return vgg16_distance(config.perceptual, config.lpips_weights);
}

class VqGanTask : public ImageTask, private Tokenizer {
 public:
  explicit VqGanTask(const TaskSetup& setup)
      : ImageTask(setup),
        model_(vqgan_config(config(), images(), setup.data == nullptr ? 0 : total_steps())),
        training_(model_, perceptual_distance(config())) {}

  std::vector<Variable*> checkpoint() override { return training_.checkpoint(); }
  std::vector<Variable*> model() override { return model_.variables(); }
  std::vector<Variable*> parameters() override { return training_.parameters(); }
  std::vector<Variable*> state() override { return training_.state(); }
  Variable& step() override { return training_.step(); }

  TaskStep record(Tape& tape, IfUnreachable untrained) override {
    const VqGanStep step = build_train_step(tape, training_, untrained);
    TaskStep out{step.learning_rate, step.metrics, step.terms, flow_contract(step, training_), {}};
    out.forward = {step.total, step.discriminator_loss};
    return out;
  }

  std::vector<std::string> parts() const override { return {"evaluate", "encode", "decode"}; }
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
  std::vector<std::string> first_step(const Metrics& m) const override {
    return {fmt::format("|q|/|z| {:.3g}, {:.0f} of {} codes used, lambda {:.3g} once the discriminator counts",
                        metric(m, "norm_ratio"), std::round(metric(m, "usage") * static_cast<double>(all_codes())),
                        all_codes(), metric(m, "lambda"))};
  }
  std::string progress(const Metrics& m) const override {
    return fmt::format("l1 {:.4f}  d {:.3f}  logits {:+.2f}/{:+.2f}  lambda {:.3g}  codes {:.0f}/{}",
                       metric(m, "reconstruction"), metric(m, "discriminator"), metric(m, "logits_real"),
                       metric(m, "logits_fake"), metric(m, "lambda") * metric(m, "disc_factor"),
                       std::round(metric(m, "usage_window") * static_cast<double>(all_codes())), all_codes());
  }
  std::vector<CurvePanel> curves() const override;

  std::vector<Figure> evaluate(Backend& backend) override {
    return figures_of(evaluate_images(image_model(), data().test, config().batch, backend, judges()), judges());
  }
  std::vector<std::string> write_files(const RunFolder& folder, Backend& backend) override {
    const Pictures pictures = reconstruct(image_model(), data().test, kPictures, backend);
    save_png(folder.reconstructions(), reconstruction_grid(pictures.originals, pictures.reconstructions, 8));
    return {fmt::format("{}  (originals, below each its reconstruction)", folder.reconstructions().string())};
  }
  const Tokenizer* tokenizer() const override { return this; }

 private:
  const Quantizer& quantizer() const { return model_.quantizer(); }
  std::int64_t all_codes() const { return quantizer().all_codes(); }
  ImageModel image_model() const {
    return {[this](Value images) {
              const VqGan::Output out = model_(images);
              return Made{out.images, out.quantized.z, out.quantized.q, out.quantized.indices};
            },
            quantizer().codes(), quantizer().books()};
  }

  Encoding encode(Tape& tape, std::int64_t batch) const override { return build_encode(tape, model_, batch); }
  Decoding decode(Tape& tape, std::int64_t batch) const override { return build_decode(tape, model_, batch); }
  Shape token_shape(std::int64_t n) const override { return model_.token_shape(n); }
  std::int64_t codes() const override { return quantizer().codes(); }

  VqGan model_;
  VqGanTraining training_;
};

std::vector<std::string> VqGanTask::heading() const {
  const VqGanConfig& c = model_.config();
  const double rows = static_cast<double>(c.latent_height() * c.latent_width());
  const auto map = patch_map_size(c.discriminator, c.height, c.width);
  return {fmt::format("{} on {}", config().model, described_data()),
          fmt::format("each image becomes {}x{} rows of {:.1f} bits ({:.0f} bits, of {} as stored)", c.latent_height(),
                      c.latent_width(), quantizer().bits_per_row(), rows * quantizer().bits_per_row(),
                      data().train.image_bytes() * 8),
          fmt::format("{}: {}", config().quantizer, quantizer().describe()),
          fmt::format("perceptual distance: {}", c.perceptual_weight > 0 ? training_.perceptual().description : "none"),
          fmt::format("discriminator: {}x{} patches; trained from step {}, seen by the generator from step {}", map[0],
                      map[1], c.disc_start - c.disc_warmup, c.disc_start)};
}

std::vector<CurvePanel> VqGanTask::curves() const {
  return {{"generator: terms of nll, and of the quantizer",
           true,
           false,
           {{"reconstruction", "mean |x - xh|"},
            {"perceptual", "perceptual"},
            {"codebook", "codebook"},
            {"commitment", "commitment", true}}},
          {"discriminator",
           false,
           false,
           {{"discriminator", "hinge loss"}, {"logits_real", "logits of x"}, {"logits_fake", "logits of xh"}}},
          {"adaptive weight lambda", true, false, {{"lambda", "lambda"}}},
          {"codes used, fraction of the codebook",
           false,
           true,
           {{"usage_window", "window of steps"}, {"usage", "one batch"}}},
          {"relative quantization error |z-q|^2 / |z|^2", true, false, {{"relative_error", "mean"}}},
          {"size of the gradients of the last weight",
           true,
           false,
           {{"grad_nll_last", "nll"}, {"grad_adversarial_last", "adversarial"}}}};
}

std::function<void(TrainConfig&)> sizes(std::string_view preset) {
  return [preset](TrainConfig& config) {
    const VqGanConfig c = vqgan_preset(preset);
    config.ch = c.ch, config.ch_mult = c.ch_mult, config.res_blocks = c.res_blocks, config.groups = c.groups;
    config.low_attention = c.attention, config.latent = c.latent;
    config.code_dim = c.quantizer.dim, config.codes = c.quantizer.codes;
    config.beta = c.quantizer.beta, config.gamma = c.quantizer.gamma;
    config.ndf = c.discriminator.ndf, config.disc_layers = c.discriminator.layers;
    config.disc_start = c.disc_start, config.disc_warmup = c.disc_warmup;
    config.batch = c.batch, config.lr = c.lr;
    if (preset != "f16") return;
    // As released: codes near 0, moved by their loss alone, none revived.
    config.codebook = "loss", config.init = "uniform", config.revive = 0;
    config.image_size = c.height, config.channels = c.channels;
  };
}

void check_vqgan(const TrainConfig& config) {
  if (config.ema_decay >= 1) fail(ErrorKind::usage, "--ema-decay is {}; it must be below 1", config.ema_decay);
  if (config.optimizer != "adam" || config.weight_decay != 0 || config.clip != 0)
    fail(ErrorKind::usage,
         "vqgan trains both players with Adam of betas .5 and .9 and nothing else: leave out --optimizer, "
         "--weight-decay and --clip");
  if (config.balance_commitment)
    fail(ErrorKind::usage, "vqgan has no --balance-commitment: its adaptive weight balances the adversary, not this");
  if (!config.lpips_weights.empty() &&
      (config.perceptual == "none" || std::filesystem::is_directory(config.perceptual)))
    fail(ErrorKind::usage, "--lpips-weights are of VGG16's layers; --perceptual '{}' names no file of VGG16's weights",
         config.perceptual);
}

}  // namespace

TaskDef vqgan_task() {
  return {"vqgan",
          "VQ-GAN: L1, perceptual distance and a patch discriminator, on images",
          "images quantizer estimator codes rows codebook kinds grid",
          [](const TaskSetup& setup) { return std::make_unique<VqGanTask>(setup); },
          {{"fashion", sizes("fashion")}, {"small", sizes("small")}, {"f16", sizes("f16")}},
          check_vqgan};
}

}  // namespace sg::tools
