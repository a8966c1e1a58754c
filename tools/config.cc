#include "tools/config.h"

#include <fmt/ranges.h>
#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/backend.h"
#include "core/error.h"
#include "core/recompute.h"
#include "models/optim.h"
#include "models/quantizers/quantizer.h"
#include "models/transformer_vq.h"
#include "ops/estimator_table.h"
#include "tools/files.h"
#include "tools/task.h"

namespace sg::tools {
namespace {

constexpr double kBig = 1e9;
// Groups of the quantizer's settings: what all have, what codebooks have, what some kinds have.
constexpr std::string_view kCodebook = "Quantizer (codebook)", kKinds = "Quantizer (some kinds)";

template <std::size_t N>
struct Word {
  consteval Word(const char (&text)[N]) { std::copy_n(text, N, letters); }  // NOLINT(google-explicit-constructor)
  char letters[N];
};
template <Word... words>
std::vector<std::string> names() {
  return {words.letters...};
}

std::vector<std::string> backends() {
  std::vector<std::string> names;
  for (const std::string_view name : backend_names()) names.emplace_back(name);
  return names;
}

std::vector<ConfigField> make_fields() {
  using C = TrainConfig;
  constexpr bool kResume = true;
  return {
      {"model", &C::model, "Model", "", "architecture", task_names},
      {"preset",
       &C::preset,
       "Model",
       "",
       "sizes of network, code and batch in one word; other flags come after it",
       {}},
      {"hidden",
       &C::hidden,
       "Model",
       "network classifier",
       "channels inside encoder and decoder; of a classifier's first stage",
       {},
       2,
       8192},
      {"residual_hidden", &C::residual_hidden, "Model", "network", "channels inside each residual block", {}, 1, 8192},
      {"residual_blocks",
       &C::residual_blocks,
       "Model",
       "network",
       "residual blocks in encoder and in decoder",
       {},
       0,
       64},
      {"dim", &C::dim, "Model", "transformer", "width of the transformer", {}, 1, 1 << 16},
      {"layers", &C::layers, "Model", "transformer", "blocks of the transformer", {}, 1, 1024},
      {"attention_heads",
       &C::attention_heads,
       "Model",
       "prior transformer-vq",
       "attention heads of a block; they divide --dim",
       {},
       1,
       1024},
      {"attention", &C::attention, "Model", "transformer-vq",
       "keys: quantized with a window and a cache, with a window only, or with scores of all pairs; or plain",
       key_attention_names},
      {"head_type", &C::head_type, "Model", "transformer-vq",
       "one gated head, several query heads on one key head, or several heads (--attention-heads)", head_type_names},
      {"key_width", &C::key_width, "Model", "transformer-vq", "length of keys and queries", {}, 1, 1 << 16},
      {"block", &C::block, "Model", "transformer-vq", "tokens of a block, and of the window behind it", {}, 1, 1 << 20},
      {"update",
       &C::update,
       "Model",
       "transformer-vq",
       "tokens of a lane in a step, a multiple of --block",
       {},
       1,
       1 << 24},
      {"sequence",
       &C::sequence,
       "Model",
       "transformer-vq",
       "tokens until memories are dropped, a multiple of --update",
       {},
       1,
       kBig},
      {"commitment", &C::commitment, "Quantizer", "transformer-vq", "weight of |k - sg c|^2", {}, 0, kBig},

      {"ch", &C::ch, "Model", "vqgan", "channels of level 0", {}, 1, 4096},
      {"ch_mult",
       &C::ch_mult,
       "Model",
       "vqgan",
       "channels of each level, in ch; each is half the size of the one before",
       {},
       1,
       64},
      {"res_blocks", &C::res_blocks, "Model", "vqgan", "residual blocks a level; the decoder has one more", {}, 1, 64},
      {"groups",
       &C::groups,
       "Model",
       "vqgan",
       "groups of the group norms, at most: the largest divisor of the channels is taken",
       {},
       1,
       4096},
      {"low_attention", &C::low_attention, "Model", "vqgan", "attention at the lowest level and in the middle", {}},
      {"latent", &C::latent, "Model", "vqgan", "channels before quant_conv", {}, 1, 1 << 16},
      {"perceptual",
       &C::perceptual,
       "Model (adversary)",
       "vqgan",
       "perceptual distance: none, the run folder of a classifier, or a safetensors file of VGG16's weights",
       {}},
      {"lpips_weights",
       &C::lpips_weights,
       "Model (adversary)",
       "vqgan",
       "safetensors file of LPIPS' weights of VGG16's layers; empty: all 1",
       {}},
      {"perceptual_weight",
       &C::perceptual_weight,
       "Model (adversary)",
       "vqgan",
       "its weight beside mean |x - xh|",
       {},
       0,
       kBig},
      {"ndf", &C::ndf, "Model (adversary)", "vqgan", "channels of the discriminator's first layer", {}, 1, 4096},
      {"disc_layers", &C::disc_layers, "Model (adversary)", "vqgan", "its layers of stride 2", {}, 1, 16},
      {"disc_weight",
       &C::disc_weight,
       "Model (adversary)",
       "vqgan",
       "share of the adversarial gradient in the last weight to that of nll",
       {},
       1e-9,
       kBig},
      {"disc_factor",
       &C::disc_factor,
       "Model (adversary)",
       "vqgan",
       "weight of both players' adversarial losses",
       {},
       1e-9,
       kBig},
      {"disc_start",
       &C::disc_start,
       "Model (adversary)",
       "vqgan",
       "step from which the generator sees the discriminator",
       {},
       0,
       kBig},
      {"disc_warmup",
       &C::disc_warmup,
       "Model (adversary)",
       "vqgan",
       "steps before it in which the discriminator trains alone",
       {},
       0,
       kBig},

      {"data",
       &C::data,
       "Data",
       "images transformer-vq",
       "fashion-mnist, mnist, cifar10, synthetic, or a folder of PNG/JPEG, IDX or CIFAR-10 files; for transformer-vq "
       "also wordnet, any file of text, or tokens (.npy)",
       {}},
      {"data_dir",
       &C::data_dir,
       "Data",
       "images transformer-vq",
       "folder that holds the files of a named data set; empty: $STOPGRAD_DATA, then the usual places",
       {}},
      {"image_size",
       &C::image_size,
       "Data",
       "images",
       "side to which folder images are resized and synthetic ones drawn; 0: 32 and 28",
       {},
       0,
       1024},
      {"channels",
       &C::channels,
       "Data",
       "images",
       "1 grey or 3 colour for folders and synthetic images; 0: as the files are",
       {},
       0,
       3},
      {"limit",
       &C::limit,
       "Data",
       "images transformer-vq",
       "use only the first so many training and test images, or bytes of a text; 0: all",
       {},
       0,
       kBig},

      {"tokens", &C::tokens, "Data", "tokens", "token sequences, .npy, as `tokenize` writes them", {}},
      {"conditional", &C::conditional, "Data", "tokens", "learn what goes with each class, to sample by class", {}},
      {"dropout", &C::dropout, "Training", "transformer", "share of activations dropped in training", {}, 0, 0.99},
      {"corruption",
       &C::corruption,
       "Training",
       "prior",
       "share of the input tokens replaced by random ones in training",
       {},
       0,
       0.99},

      {"quantizer", &C::quantizer, "Quantizer", "quantizer", "kind of quantizer", quantizer_names},
      {"estimator", &C::estimator, "Quantizer", "estimator",
       "gradient through the quantizer, NAME or NAME:ARGUMENT (`stopgrad info --estimators` says what they are)",
       estimator_names, 0, 0, false, [](const std::string& text) { estimator_by_name(text); }},
      {"codes", &C::codes, "Quantizer", "codes", "number of codes K, of each book", {}, 1, 1 << 24},
      {"code_dim", &C::code_dim, "Quantizer", "rows", "length D of the encoder's rows, and of a code", {}, 1, 1 << 16},
      {"metric", &C::metric, "Quantizer", "quantizer", "nearest code by", names<"euclidean", "cosine">},
      {"gamma", &C::gamma, "Quantizer", "quantizer", "weight of the commitment loss |z - sg q|^2", {}, 0, kBig},
      {"balance_commitment",
       &C::balance_commitment,
       "Quantizer",
       "quantizer",
       "make gamma the ratio of the commitment's gradient at z to the reconstruction's",
       {}},
      {"origin_decay",
       &C::origin_decay,
       "Quantizer",
       "quantizer",
       "decay of the running mean that centred estimators turn about",
       {},
       0,
       1},
      {"window",
       &C::window,
       "Quantizer",
       "codes",
       "steps over which window usage and perplexity are counted",
       {},
       1,
       1 << 16},

      {"codebook", &C::codebook, kCodebook, "codebook", "how codes learn", codebook_update_names},
      {"init", &C::init, kCodebook, "codebook",
       "first codes; uniform is within +-1/K, kmeans is of the first encoder outputs", codebook_init_names},
      {"normal_deviation",
       &C::normal_deviation,
       kCodebook,
       "codebook",
       "standard deviation of --init normal",
       {},
       1e-9,
       kBig},
      {"ema_decay", &C::ema_decay, kCodebook, "codebook", "decay of the moving averages with --codebook ema", {}, 0, 1},
      {"ema_eps", &C::ema_eps, kCodebook, "codebook", "smoothing of their counts", {}, 0, 1},
      {"beta", &C::beta, kCodebook, "codebook", "weight of the codebook loss |q - sg z|^2", {}, 0, kBig},
      {"inner_rate",
       &C::inner_rate,
       kCodebook,
       "codebook",
       "rate of the inner step of --codebook alternating",
       {},
       0,
       kBig},
      {"assignment", &C::assignment, kCodebook, "codebook", "which code a row gets in training", assignment_names},
      {"revive",
       &C::revive,
       kCodebook,
       "codebook",
       "codes whose average count a step falls below this are replaced; 0: never; -1: 1, or 0 where the rule of --codebook "
       "sets no single code. With lru: after as many unused steps",
       {},
       -1,
       kBig},
      {"revival_policy", &C::revival_policy, kCodebook, "codebook",
       "what replaces them: encoder outputs, or moved copies of codes in proportion to their use (split)",
       revival_names},
      {"orthogonal",
       &C::orthogonal,
       kCodebook,
       "codebook",
       "weight of the loss that makes codes orthogonal",
       {},
       0,
       kBig},
      {"entropy",
       &C::entropy,
       kCodebook,
       "codebook",
       "weight of the entropy loss E[H(p)] - H(E[p]) of the soft assignment",
       {},
       0,
       kBig},
      {"diversity", &C::diversity, kCodebook, "codebook", "weight of -H(E[p])", {}, 0, kBig},
      {"entropy_temperature",
       &C::entropy_temperature,
       kCodebook,
       "codebook",
       "temperature of that soft assignment",
       {},
       1e-9,
       kBig},

      {"heads",
       &C::heads,
       kKinds,
       "kinds",
       "pieces that multi-head, product and grouped-residual cut a row into",
       {},
       1,
       4096},
      {"levels", &C::levels, kKinds, "kinds", "books of residual, and of each piece of grouped-residual", {}, 1, 4096},
      {"code_width",
       &C::code_width,
       kKinds,
       "kinds",
       "width in which factorised and random-projection compare",
       {},
       1,
       1 << 16},
      {"shared_books",
       &C::shared_books,
       kKinds,
       "kinds",
       "one codebook for all heads of multi-head or all levels of residual",
       {}},
      {"level_dropout",
       &C::level_dropout,
       kKinds,
       "kinds",
       "share of the steps that train only the first levels of residual",
       {},
       0,
       1},
      {"grid",
       &C::grid,
       kKinds,
       "grid",
       "levels of each dimension of fsq and latent, as 8,5,5; without it chosen for --codes",
       {},
       2,
       1 << 20},
      {"dither",
       &C::dither,
       kKinds,
       "kinds",
       "share of the elements of fsq-symmetric that get noise, not rounding",
       {},
       0,
       1},
      {"scales",
       &C::scales,
       kKinds,
       "kinds",
       "sides of the token maps of multi-scale, as 1,2,4,7, the last one the latents' own; without it powers of two",
       {},
       1,
       1 << 16},
      {"phi",
       &C::phi,
       kKinds,
       "kinds",
       "share of the 3x3 convolution in what multi-scale adds at each scale; 0: none",
       {},
       0,
       1},

      {"optimizer", &C::optimizer, "Training", "", "update rule of the parameters", optimizer_names},
      {"lr", &C::lr, "Training", "", "learning rate", {}, 0, 1e3},
      {"schedule", &C::schedule, "Training", "",
       "learning rate after the warm-up; cosine goes down to 0 at the last step", names<"constant", "cosine">},
      {"warmup", &C::warmup, "Training", "", "steps of linear warm-up", {}, 0, kBig},
      {"weight_decay", &C::weight_decay, "Training", "", "of adamw", {}, 0, 1e3},
      {"clip", &C::clip, "Training", "", "global norm to which gradients are clipped; 0: not clipped", {}, 0, kBig},
      {"batch", &C::batch, "Training", "", "images a step", {}, 1, 1 << 20},
      {"steps", &C::steps, "Training", "", "training steps in all", {}, 1, kBig, kResume},
      {"epochs",
       &C::epochs,
       "Training",
       "",
       "passes over the training set, instead of --steps; 0: use steps",
       {},
       0,
       1e6,
       kResume},
      {"seed", &C::seed, "Training", "", "of initial weights, data order and random ops", {}, 0, 2147483647},

      {"backend", &C::backend, "Run", "", "where to compute", backends, 0, 0, kResume},
      {"dtype", &C::dtype, "Run", "vqvae",
       "activations of encoder and decoder; bf16 needs a processor with avx512_bf16 on --backend cpu",
       names<"f32", "bf16">},
      {"emulate_bf16",
       &C::emulate_bf16,
       "Run",
       "vqvae",
       "let --dtype bf16 run without avx512_bf16: the same numbers, slower than f32",
       {},
       0,
       0,
       kResume},
      {"threads", &C::threads, "Run", "", "CPU threads; 0: all cores", {}, 0, 1024, kResume},
      {"recompute",
       &C::recompute,
       "Run",
       "",
       "trade time for memory: compute again what only gradients need; none, scopes, scopes:DEPTH or budget:MEGABYTES",
       {},
       0,
       0,
       kResume,
       [](const std::string& text) { recompute_by_name(text); }},
      {"isa", &C::isa, "Run", "", "instruction set of our own kernels on cpu; generic writes no machine code",
       names<"auto", "generic", "avx2", "avx512">, 0, 0, kResume},
      {"winograd", &C::winograd, "Run", "",
       "convolutions by Winograd's algorithm: where expected to be faster, wherever possible, never",
       names<"auto", "on", "off">, 0, 0, kResume},
      {"tune", &C::tune, "Run", "",
       "choose the algorithm of each convolution by a timed trial, kept in a file; cached: only by that file",
       names<"off", "cached", "on">, 0, 0, kResume},
      {"check_finite",
       &C::check_finite,
       "Run",
       "",
       "stop at the first NaN or infinity and name the op that made it",
       {},
       0,
       0,
       kResume},
      {"checkpoint_every",
       &C::checkpoint_every,
       "Run",
       "",
       "steps between checkpoints; 0: only at the end",
       {},
       0,
       kBig,
       kResume},
      {"log_every",
       &C::log_every,
       "Run",
       "",
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

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  while (!text.empty()) {
    const std::size_t space = text.find(' ');
    words.push_back(text.substr(0, space));
    text = space == std::string_view::npos ? std::string_view{} : text.substr(space + 1);
  }
  return words;
}

void check_field(const TrainConfig& config, const ConfigField& field) {
  const auto out_of_range = [&](const auto& value) {
    fail(ErrorKind::usage, "{} is {}; it must be from {} to {}", flag_of(field), value, field.least, field.most);
  };
  std::visit(Overload{[&](std::string TrainConfig::*m) {
                        const std::string& value = config.*m;
                        if (field.check != nullptr) {
                          try {
                            field.check(value);
                          } catch (const Error& e) {
                            fail(ErrorKind::usage, "{}: {}", flag_of(field), e.message());
                          }
                        } else if (field.choices != nullptr) {
                          const std::vector<std::string> known = field.choices();
                          if (std::find(known.begin(), known.end(), value) == known.end())
                            fail(ErrorKind::usage, "{} '{}' is unknown; choose one of: {}", flag_of(field), value,
                                 fmt::join(known, ", "));
                        }
                      },
                      [&](std::int64_t TrainConfig::*m) {
                        const auto value = static_cast<double>(config.*m);
                        if (value < field.least || value > field.most) out_of_range(config.*m);
                      },
                      [&](double TrainConfig::*m) {
                        if (!(config.*m >= field.least && config.*m <= field.most)) out_of_range(config.*m);
                      },
                      [&](std::vector<std::int64_t> TrainConfig::*m) {
                        for (const std::int64_t value : config.*m)
                          if (!(static_cast<double>(value) >= field.least && static_cast<double>(value) <= field.most))
                            out_of_range(value);
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
                      },
                      [&](std::vector<std::int64_t> TrainConfig::*m) {
                        const toml::array* array = node.as_array();
                        if (array == nullptr) wrong_type("a list of whole numbers, as [8, 5, 5]");
                        (config.*m).clear();
                        for (const toml::node& element : *array) {
                          const auto v = element.value_exact<std::int64_t>();
                          if (!v) wrong_type("a list of whole numbers, as [8, 5, 5]");
                          (config.*m).push_back(*v);
                        }
                      }},
             field.member);
}

toml::table parse(const std::filesystem::path& path) {
  const std::vector<std::byte> bytes = read_file(path);
  try {
    return toml::parse(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()), path.string());
  } catch (const toml::parse_error& e) {
    fail(ErrorKind::usage, "{}:{}: not valid TOML: {}", path.string(), e.source().begin.line, e.description());
  }
}

TrainConfig config_of(const toml::table& table, const std::string& file, const TrainConfig& base) {
  TrainConfig config = base;
  const auto set = [&](std::string_view key) {
    const toml::node* node = table.get(key);
    if (node != nullptr) set_from_toml(config, *find_field(key), *node, file);
    return node != nullptr;
  };
  if (set("model") && config.model != base.model) config = default_config(config.model);
  if (set("preset")) apply_preset(config, std::string(config.preset));
  for (const auto& [key, node] : table) {
    const ConfigField* field = find_field(key.str());
    if (field == nullptr)
      fail(ErrorKind::usage, "{}:{}: unknown setting '{}' (`stopgrad train --help` lists them, '-' written as '_')",
           file, key.source().begin.line, key.str());
    if (!has_field(config.model, *field))
      fail(ErrorKind::usage, "{}:{}: {} has no setting '{}', which is of {}", file, key.source().begin.line,
           config.model, key.str(), fmt::join(models_with(*field), ", "));
    set_from_toml(config, *field, node, file);
  }
  return config;
}

// The fields, group by group.
std::string fields_to_toml(const TrainConfig& config) {
  std::string out;
  std::string_view group;
  for (const ConfigField& field : config_fields()) {
    if (!has_field(config.model, field)) continue;
    if (field.group != group) out += fmt::format("\n# {}\n", group = field.group);
    const std::string setting = fmt::format("{} = {}", field.key, text_of(config, field));
    out += fmt::format("{:<32} # {}\n", setting, field.full_help());
  }
  return out;
}

}  // namespace

std::span<const ConfigField> config_fields() {
  static const std::vector<ConfigField> fields = make_fields();
  return fields;
}

const ConfigField* find_field(std::string_view key) {
  for (const ConfigField& field : config_fields())
    if (field.key == key) return &field;
  return nullptr;
}

std::string ConfigField::full_help() const {
  return std::string(help) + (choices == nullptr ? "" : fmt::format(": {}", fmt::join(choices(), ", ")));
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
                             [&](bool TrainConfig::*m) { return std::string(config.*m ? "true" : "false"); },
                             [&](std::vector<std::int64_t> TrainConfig::*m) {
                               return fmt::format("[{}]", fmt::join(config.*m, ", "));
                             }},
                    field.member);
}

void set_from_text(TrainConfig& config, const ConfigField& field, const std::string& text) {
  const auto parse = [&](std::string_view part, auto& out, std::string_view wanted) {
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), out);
    if (part.empty() || error != std::errc{} || end != part.data() + part.size())
      fail(ErrorKind::usage, "{} '{}': {} is needed", flag_of(field), text, wanted);
  };
  std::visit(Overload{[&](std::string TrainConfig::*m) { config.*m = text; },
                      [&](std::int64_t TrainConfig::*m) { parse(text, config.*m, "a whole number"); },
                      [&](double TrainConfig::*m) { parse(text, config.*m, "a number"); },
                      [&](bool TrainConfig::*m) {
                        if (text != "true" && text != "false")
                          fail(ErrorKind::usage, "{} '{}': true or false is needed", flag_of(field), text);
                        config.*m = text == "true";
                      },
                      [&](std::vector<std::int64_t> TrainConfig::*m) {
                        (config.*m).clear();
                        for (std::string_view rest = text; !rest.empty();) {
                          const std::size_t comma = rest.find_first_of(",x");
                          parse(rest.substr(0, comma), (config.*m).emplace_back(), "a list as 8,5,5");
                          rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
                        }
                      }},
             field.member);
}

bool has_field(std::string_view model, const ConfigField& field) {
  const TaskDef& def = task_def(model);
  if (field.key == "preset") return !def.presets.empty();
  if (field.has.empty()) return true;
  for (const std::string_view word : words_of(field.has)) {
    if (word == def.name) return true;
    for (const std::string_view own : words_of(def.has))
      if (word == own) return true;
  }
  return false;
}

std::vector<std::string> models_with(const ConfigField& field) {
  std::vector<std::string> names = task_names();
  std::erase_if(names, [&](const std::string& name) { return !has_field(name, field); });
  return names;
}

void require_field(std::string_view model, const ConfigField& field) {
  if (!has_field(model, field))
    fail(ErrorKind::usage, "{}: {} has no such setting; {} have it", flag_of(field), model,
         fmt::join(models_with(field), ", "));
}

void apply_preset(TrainConfig& config, std::string_view name) {
  std::vector<std::string_view> known;
  for (const TaskDef::Preset& preset : task_def(config.model).presets) {
    known.push_back(preset.name);
    if (preset.name != name) continue;
    preset.apply(config);
    config.preset = name;
    return;
  }
  fail(ErrorKind::usage, "--preset '{}' is unknown; {} has: {}", name, config.model,
       known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", ")));
}

TrainConfig default_config(std::string_view model) {
  TrainConfig config;
  config.model = model;
  const TaskDef& def = task_def(model);
  if (!def.presets.empty()) apply_preset(config, def.presets.front().name);
  return config;
}

TrainConfig with_model(const TrainConfig& config, std::string_view model) {
  TrainConfig changed = default_config(model);
  const TrainConfig usual = default_config(config.model);
  for (const ConfigField& field : config_fields())
    if (field.key != "model" && has_field(config.model, field) && has_field(model, field) &&
        text_of(config, field) != text_of(usual, field))
      std::visit([&](auto member) { changed.*member = config.*member; }, field.member);
  return changed;
}

void validate(const TrainConfig& config) {
  for (const ConfigField& field : config_fields())
    if (field.key == "model" || has_field(config.model, field)) check_field(config, field);
  if (config.lr <= 0) fail(ErrorKind::usage, "--lr is {}; it must be above 0", config.lr);
  const TaskDef& def = task_def(config.model);
  if (!def.presets.empty()) {
    TrainConfig copy = config;
    apply_preset(copy, config.preset);
  }
  if (def.check) def.check(config);
}

TrainConfig read_config(const std::filesystem::path& path, const TrainConfig& base) {
  return config_of(parse(path), path.string(), base);
}

ComparisonSettings read_comparison(const std::filesystem::path& path) {
  toml::table table = parse(path);
  const std::string file = path.string();
  ComparisonSettings settings;
  if (const toml::node* node = table.get("compare")) {
    const toml::table* own = node->as_table();
    const auto check = [&](bool ok, std::string_view what) {
      if (!ok) fail(ErrorKind::usage, "{}: [compare] {}", file, what);
    };
    check(own != nullptr, "must be a table of vary, seeds and pictures");
    for (const auto& [key, value] : *own) {
      if (key == "vary") {
        check(value.is_array(), "vary must be a list of texts, as \"estimator=ste,rotation\"");
        for (const toml::node& axis : *value.as_array()) {
          check(axis.is_string(), "vary must be a list of texts, as \"estimator=ste,rotation\"");
          settings.vary.push_back(*axis.value<std::string>());
        }
      } else if (key == "seeds") {
        check(value.is_integer(), "seeds must be a whole number");
        settings.seeds = *value.value<std::int64_t>();
      } else {
        check(key == "pictures" && value.is_boolean(), "has vary, seeds, and pictures, which is true or false");
        settings.pictures = *value.value<bool>();
      }
    }
    table.erase("compare");
  }
  settings.base = config_of(table, file, {});
  return settings;
}

std::string to_toml(const TrainConfig& config) {
  return "# Settings of one training run. `stopgrad train --config FILE` runs it again.\n" + fields_to_toml(config);
}

std::string to_toml(const ComparisonSettings& settings) {
  std::string axes;
  for (const std::string& axis : settings.vary) axes += (axes.empty() ? "" : ", ") + toml_string(axis);
  return "# Settings of a comparison. `stopgrad compare --config FILE` runs it again, or goes on with it.\n" +
         fields_to_toml(settings.base) +
         fmt::format(
             "\n[compare]\nvary = [{}]  # each combination of these values, over the settings above\n"
             "seeds = {}  # runs of each, with the seed above, the next, ...\npictures = {}  # of each run\n",
             axes, settings.seeds, settings.pictures);
}

}  // namespace sg::tools
