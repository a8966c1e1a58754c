#include "tools/config.h"

#include <fmt/ranges.h>
#include <toml++/toml.h>

#include <algorithm>
#include <cmath>

#include "core/backend.h"
#include "core/error.h"
#include "models/vqvae_training.h"
#include "ops/estimator_table.h"
#include "tools/files.h"

namespace sg::tools {
namespace {

constexpr double kBig = 1e9;

std::vector<std::string> backends() {
  std::vector<std::string> names;
  for (const std::string_view name : backend_names()) names.emplace_back(name);
  return names;
}

std::vector<ConfigField> make_fields() {
  using C = TrainConfig;
  constexpr bool kResume = true;
  return {
      {"model", &C::model, "Model", "architecture", {"vqvae"}},
      {"preset", &C::preset, "Model", "sizes of network, code and batch in one word; other flags come after it",
       vqvae_presets()},
      {"hidden", &C::hidden, "Model", "channels inside encoder and decoder", {}, 2, 8192},
      {"residual_hidden", &C::residual_hidden, "Model", "channels inside each residual block", {}, 1, 8192},
      {"residual_blocks", &C::residual_blocks, "Model", "residual blocks in encoder and in decoder", {}, 0, 64},

      {"data",
       &C::data,
       "Data",
       "fashion-mnist, mnist, cifar10, synthetic, or a folder of PNG/JPEG, IDX or CIFAR-10 files",
       {}},
      {"data_dir",
       &C::data_dir,
       "Data",
       "folder that holds the files of a named data set; empty: $STOPGRAD_DATA, then the usual places",
       {}},
      {"image_size",
       &C::image_size,
       "Data",
       "side to which folder images are resized and synthetic ones drawn; 0: 32 and 28",
       {},
       0,
       1024},
      {"channels",
       &C::channels,
       "Data",
       "1 grey or 3 colour for folders and synthetic images; 0: as the files are",
       {},
       0,
       3},
      {"limit", &C::limit, "Data", "use only the first so many training and test images; 0: all", {}, 0, kBig},

      {"estimator", &C::estimator, "Quantizer", "gradient through the quantizer", estimator_names()},
      {"codes", &C::codes, "Quantizer", "number of codes K", {}, 1, 1 << 24},
      {"code_dim", &C::code_dim, "Quantizer", "length D of a code", {}, 1, 1 << 16},
      {"codebook",
       &C::codebook,
       "Quantizer",
       "how codes learn, by the codebook loss or as moving averages (EMA)",
       {"loss", "ema"}},
      {"init",
       &C::init,
       "Quantizer",
       "first codes; uniform is within +-1/K, kmeans is of the first encoder outputs",
       {"uniform", "normal", "kmeans"}},
      {"normal_deviation", &C::normal_deviation, "Quantizer", "standard deviation of --init normal", {}, 1e-9, kBig},
      {"metric", &C::metric, "Quantizer", "nearest code by", {"euclidean", "cosine"}},
      {"ema_decay", &C::ema_decay, "Quantizer", "decay of the moving averages with --codebook ema", {}, 0, 1},
      {"beta", &C::beta, "Quantizer", "weight of the codebook loss |q - sg z|^2", {}, 0, kBig},
      {"gamma", &C::gamma, "Quantizer", "weight of the commitment loss |z - sg q|^2", {}, 0, kBig},
      {"revive",
       &C::revive,
       "Quantizer",
       "codes whose average count a step falls below this become encoder outputs; 0: never",
       {},
       0,
       kBig},
      {"window", &C::window, "Quantizer", "steps over which window usage and perplexity are counted", {}, 1, 1 << 16},

      {"optimizer", &C::optimizer, "Training", "update rule of the parameters", optimizer_names()},
      {"lr", &C::lr, "Training", "learning rate", {}, 0, 1e3},
      {"schedule",
       &C::schedule,
       "Training",
       "learning rate after the warm-up; cosine goes down to 0 at the last step",
       {"constant", "cosine"}},
      {"warmup", &C::warmup, "Training", "steps of linear warm-up", {}, 0, kBig},
      {"weight_decay", &C::weight_decay, "Training", "of adamw", {}, 0, 1e3},
      {"clip", &C::clip, "Training", "global norm to which gradients are clipped; 0: not clipped", {}, 0, kBig},
      {"batch", &C::batch, "Training", "images a step", {}, 1, 1 << 20},
      {"steps", &C::steps, "Training", "training steps in all", {}, 1, kBig, kResume},
      {"epochs",
       &C::epochs,
       "Training",
       "passes over the training set, instead of --steps; 0: use steps",
       {},
       0,
       1e6,
       kResume},
      {"seed", &C::seed, "Training", "of initial weights, data order and random ops", {}, 0, 2147483647},

      {"backend", &C::backend, "Run", "where to compute", backends(), 0, 0, kResume},
      {"threads", &C::threads, "Run", "CPU threads; 0: all cores", {}, 0, 1024, kResume},
      {"check_finite",
       &C::check_finite,
       "Run",
       "stop at the first NaN or infinity and name the op that made it",
       {},
       0,
       0,
       kResume},
      {"checkpoint_every",
       &C::checkpoint_every,
       "Run",
       "steps between checkpoints; 0: only at the end",
       {},
       0,
       kBig,
       kResume},
      {"log_every",
       &C::log_every,
       "Run",
       "steps between lines of progress where the output is no terminal",
       {},
       1,
       kBig,
       kResume},
  };
}

template <class... F>
struct Overload : F... {
  using F::operator()...;
};
template <class... F>
Overload(F...) -> Overload<F...>;

std::string toml_string(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      out += '\\', out += c;
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    else
      out += c;
  }
  return out + '"';
}

const ConfigField* find_field(std::string_view key) {
  for (const ConfigField& field : config_fields())
    if (field.key == key) return &field;
  return nullptr;
}

void check_field(const TrainConfig& config, const ConfigField& field) {
  const auto out_of_range = [&](const auto& value) {
    fail(ErrorKind::usage, "{} is {}; it must be from {} to {}", flag_of(field), value, field.least, field.most);
  };
  std::visit(Overload{[&](std::string TrainConfig::*m) {
                        const std::string& value = config.*m;
                        if (field.choices.empty() ||
                            std::find(field.choices.begin(), field.choices.end(), value) != field.choices.end())
                          return;
                        fail(ErrorKind::usage, "{} '{}' is unknown; choose one of: {}", flag_of(field), value,
                             fmt::join(field.choices, ", "));
                      },
                      [&](std::int64_t TrainConfig::*m) {
                        const auto value = static_cast<double>(config.*m);
                        if (value < field.least || value > field.most) out_of_range(config.*m);
                      },
                      [&](double TrainConfig::*m) {
                        if (!(config.*m >= field.least && config.*m <= field.most)) out_of_range(config.*m);
                      },
                      [](bool TrainConfig::*) {}},
             field.member);
}

void set_from_toml(TrainConfig& config, const ConfigField& field, const toml::node& node, const std::string& file) {
  const auto wrong_type = [&](std::string_view wanted) {
    fail(ErrorKind::usage, "{}:{}: '{}' must be {}", file, node.source().begin.line, field.key, wanted);
  };
  std::visit(Overload{[&](std::string TrainConfig::*m) {
                        if (const auto v = node.value_exact<std::string>())
                          config.*m = *v;
                        else
                          wrong_type("text in quotes");
                      },
                      [&](std::int64_t TrainConfig::*m) {
                        if (const auto v = node.value_exact<std::int64_t>())
                          config.*m = *v;
                        else
                          wrong_type("a whole number");
                      },
                      [&](double TrainConfig::*m) {
                        if (const auto v = node.value_exact<double>())
                          config.*m = *v;
                        else if (const auto i = node.value_exact<std::int64_t>())
                          config.*m = static_cast<double>(*i);
                        else
                          wrong_type("a number");
                      },
                      [&](bool TrainConfig::*m) {
                        if (const auto v = node.value_exact<bool>())
                          config.*m = *v;
                        else
                          wrong_type("true or false");
                      }},
             field.member);
}

}  // namespace

std::span<const ConfigField> config_fields() {
  static const std::vector<ConfigField> fields = make_fields();
  return fields;
}

std::string flag_of(const ConfigField& field) {
  if (field.key == "model") return "model";
  std::string flag = "--" + std::string(field.key);
  std::replace(flag.begin() + 2, flag.end(), '_', '-');
  return flag;
}

std::string text_of(const TrainConfig& config, const ConfigField& field) {
  return std::visit(Overload{[&](std::string TrainConfig::*m) { return toml_string(config.*m); },
                             [&](std::int64_t TrainConfig::*m) { return std::to_string(config.*m); },
                             [&](double TrainConfig::*m) {
                               // The shortest text that reads back as the same number; TOML wants a point or an
                               // exponent.
                               std::string text = fmt::format("{}", config.*m);
                               if (text.find_first_of(".en") == std::string::npos) text += ".0";
                               return text;
                             },
                             [&](bool TrainConfig::*m) { return std::string(config.*m ? "true" : "false"); }},
                    field.member);
}

void apply_preset(TrainConfig& config, std::string_view name) {
  const VqVaeConfig sizes = vqvae_preset(name);
  config.hidden = sizes.hidden, config.residual_hidden = sizes.residual, config.residual_blocks = sizes.residual_blocks;
  config.code_dim = sizes.quantizer.dim, config.codes = sizes.quantizer.codes, config.batch = sizes.batch;
  // Data sets have a size of their own; this is for images that are resized or drawn.
  const bool usual = sizes.height == 28 && sizes.channels == 1;
  config.image_size = usual ? 0 : sizes.height, config.channels = usual ? 0 : sizes.channels;
  config.preset = name;
}

void validate(const TrainConfig& config) {
  for (const ConfigField& field : config_fields()) check_field(config, field);
  if (config.lr <= 0) fail(ErrorKind::usage, "--lr is {}; it must be above 0", config.lr);
  if (config.ema_decay >= 1) fail(ErrorKind::usage, "--ema-decay is {}; it must be below 1", config.ema_decay);
  if (config.channels == 2) fail(ErrorKind::usage, "--channels is 2; it must be 0, 1 or 3");
  if (config.codes * config.code_dim > std::int64_t{1} << 30)
    fail(ErrorKind::usage, "--codes {} times --code-dim {} is a codebook of {:.1f} GB; at most 4 GB is supported",
         config.codes, config.code_dim,
         4e-9 * static_cast<double>(config.codes) * static_cast<double>(config.code_dim));
}

TrainConfig read_config(const std::filesystem::path& path, const TrainConfig& base, std::vector<std::string>* seen) {
  const std::vector<std::byte> bytes = read_file(path);
  const std::string file = path.string();
  toml::table table;
  try {
    table = toml::parse(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()), file);
  } catch (const toml::parse_error& e) {
    fail(ErrorKind::usage, "{}:{}: not valid TOML: {}", file, e.source().begin.line, e.description());
  }
  TrainConfig config = base;
  if (const toml::node* preset = table.get("preset")) {
    set_from_toml(config, *find_field("preset"), *preset, file);
    apply_preset(config, std::string(config.preset));
  }
  for (const auto& [key, node] : table) {
    const ConfigField* field = find_field(key.str());
    if (field == nullptr)
      fail(ErrorKind::usage, "{}:{}: unknown setting '{}' (`stopgrad train --help` lists them, '-' written as '_')",
           file, key.source().begin.line, key.str());
    set_from_toml(config, *field, node, file);
    if (seen != nullptr) seen->emplace_back(key.str());
  }
  return config;
}

std::string to_toml(const TrainConfig& config) {
  std::string out = "# Settings of one training run. `stopgrad train --config FILE` runs it again.\n";
  std::string_view group;
  for (const ConfigField& field : config_fields()) {
    if (field.group != group) out += fmt::format("\n# {}\n", group = field.group);
    const std::string setting = fmt::format("{} = {}", field.key, text_of(config, field));
    out += fmt::format("{:<32} # {}", setting, field.help);
    if (!field.choices.empty()) out += fmt::format(": {}", fmt::join(field.choices, ", "));
    out += '\n';
  }
  return out;
}

}  // namespace sg::tools
