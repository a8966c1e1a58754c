// TrainConfig: every setting of a training run. One table (config_fields) lists the settings once; the flags of
// `train`, the keys of config.toml, the help texts and the checks all come from it. A model has a part of them.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace sg::tools {

// The defaults of the quantizer are those that keep all codes in use from the first step on (docs/getting_started.md).
struct TrainConfig {
  std::string model = "vqvae";
  std::string preset = "fashion";

  std::string data = "fashion-mnist", data_dir;
  std::int64_t image_size = 0, channels = 0, limit = 0;

  std::int64_t hidden = 128, residual_hidden = 32, residual_blocks = 2;
  std::int64_t ch = 32, res_blocks = 1, groups = 8, latent = 64, ndf = 32, disc_layers = 2;
  std::vector<std::int64_t> ch_mult{1, 2, 2};
  bool low_attention = true;
  std::string perceptual = "none", lpips_weights;
  double perceptual_weight = 1.0, disc_weight = 0.8, disc_factor = 1.0;
  std::int64_t disc_start = 1000, disc_warmup = 500;
  std::string quantizer = "vq", estimator = "ste", metric = "euclidean";
  std::int64_t codes = 512, code_dim = 64, window = 100;
  double gamma = 0.25, origin_decay = 0.99;
  bool balance_commitment = false;
  std::string codebook = "ema", init = "kmeans", assignment = "nearest", revival_policy = "threshold";
  double normal_deviation = 1.0, ema_decay = 0.99, ema_eps = 1e-5, beta = 1.0, inner_rate = 1.0, revive = -1.0;
  double orthogonal = 0, entropy = 0, diversity = 0, entropy_temperature = 0.01;
  std::int64_t heads = 4, levels = 4, code_width = 8;
  bool shared_books = false;
  double level_dropout = 0, dither = 0, phi = 0.5;
  std::vector<std::int64_t> grid, scales;

  std::string tokens;
  bool conditional = false;
  std::int64_t dim = 128, layers = 4, attention_heads = 4;
  double dropout = 0.1, corruption = 0;
  std::string attention = "vq", head_type = "shga";
  std::int64_t key_width = 64, block = 64, update = 256, sequence = 1024;
  double commitment = 1e-4;

  std::string optimizer = "adam", schedule = "constant";
  double lr = 3e-4, weight_decay = 0.0, clip = 0.0;
  std::int64_t warmup = 0, batch = 128, steps = 2000, epochs = 0;

  std::string backend = "cpu", dtype = "f32";
  bool emulate_bf16 = false, tf32 = false;
  std::int64_t threads = 0, seed = 1;
  std::string recompute = "none", isa = "auto", winograd = "auto", tune = "off";
  bool check_finite = false;
  std::int64_t checkpoint_every = 500, log_every = 50;
};

struct ConfigField {
  using Member = std::variant<std::string TrainConfig::*, std::int64_t TrainConfig::*, double TrainConfig::*,
                              bool TrainConfig::*, std::vector<std::int64_t> TrainConfig::*>;
  std::string_view key;  // in config.toml; the flag is --key with '-' for '_'
  Member member;
  std::string_view group;  // heading in --help and config.toml
  // Which models have it: a model whose name or one of whose words (TaskDef::has) is among these words. Empty: all.
  std::string_view has;
  std::string_view help;
  std::vector<std::string> (*choices)() = nullptr;  // of text, as tables have them now; null: any
  double least = 0, most = 0;                       // of numbers, and of each number of a list; inclusive
  bool resume_may_change = false;                   // whether `train --resume` may give it another value
  void (*check)(const std::string&) = nullptr;      // of text, in the place of `choices`: throws Error{usage}

  std::string full_help() const;  // help, then the choices
};

// In the order in which they are written. `model` is first; it is the positional argument of `train`.
std::span<const ConfigField> config_fields();
std::string flag_of(const ConfigField& field);
const ConfigField* find_field(std::string_view key);                       // null where there is none
std::string text_of(const TrainConfig& config, const ConfigField& field);  // as TOML writes it
// Sets the field from text as a flag gives it: words bare, lists as 8,5,5 or 8x5x5. Error{usage} naming the flag.
void set_from_text(TrainConfig& config, const ConfigField& field, const std::string& text);

// Whether the model has the setting. Error{usage}: no such model.
bool has_field(std::string_view model, const ConfigField& field);
// Error{usage} where the model has not the setting, saying which have it.
void require_field(std::string_view model, const ConfigField& field);
std::vector<std::string> models_with(const ConfigField& field);

// What the model starts from: TrainConfig{} with the model's first preset. Error{usage}: no such model.
TrainConfig default_config(std::string_view model);
// The defaults of another model with those settings of `config` that both models have and that differ from the defaults
// of its own.
TrainConfig with_model(const TrainConfig& config, std::string_view model);
// Sizes of network, batch and data in one word; those of vqvae are "fashion" (28x28x1 images, the network that the
// documentation measures) and "large" (32x32x3). Error{usage} listing the presets of config.model.
void apply_preset(TrainConfig& config, std::string_view name);

// Checks each field that the model has against its choices and bounds, and the fields against each other. Error{usage}
// naming the flag.
void validate(const TrainConfig& config);

// Error{io}: cannot read. Error{usage}: not TOML, a key that is unknown, of the wrong type or not of the model, naming
// file and line. Keys that are absent keep their value in `base` or, where the file is of another model than it, that
// of default_config(); a `preset` key is applied before the others.
TrainConfig read_config(const std::filesystem::path& path, const TrainConfig& base);

// What `compare` runs (compare.toml): every combination of the values of the axes, over the base, with every seed.
struct ComparisonSettings {
  TrainConfig base;               // its seed is the first
  std::vector<std::string> vary;  // axes: "estimator=ste,rotation"; see tools/comparison.h
  std::int64_t seeds = 3;
  bool pictures = false;  // of each run
};
// As read_config, with the table [compare] of vary, seeds, pictures.
ComparisonSettings read_comparison(const std::filesystem::path& path);
std::string to_toml(const ComparisonSettings& settings);

// Every field that the model has, with its help as a comment; read_config gives the same config back.
std::string to_toml(const TrainConfig& config);

}  // namespace sg::tools
