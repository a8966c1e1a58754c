// tokenize, sample: images to the tokens that a prior is trained on, and a prior's new tokens to images.
#include <algorithm>

#include "core/error.h"
#include "models/sampling.h"
#include "tools/commands/commands.h"
#include "tools/data/tokens.h"
#include "tools/images.h"
#include "tools/program.h"
#include "tools/tokenizing.h"

namespace sg::tools {
namespace {

struct Arguments {
  std::string run, prior, out;
  std::int64_t count = 64, columns = 0, seed = 1, klass = -1;
  SamplingOptions options;
  std::unique_ptr<ConfigFlags> flags;
};

RestoredTask restored(const std::string& path, const Arguments& a) {
  return restore_task(
      path,
      [&](const TrainConfig& saved) {
        TrainConfig config = a.flags->over(saved);
        config.epochs = 0;  // the length of the run does not matter any more
        return config;
      },
      nullptr);
}

const Tokenizer& tokenizer_of(const std::string& path, const Task& task) {
  if (const Tokenizer* tokenizer = task.tokenizer()) return *tokenizer;
  fail(ErrorKind::usage, "{} is a run of {}, which makes no tokens of images", path, task.config().model);
}

void tokenize(const Arguments& a) {
  const RestoredTask run = restored(a.run, a);
  const Tokenizer& tokenizer = tokenizer_of(a.run, *run.task);
  Backend& backend = start_backend(run.task->config());
  const TrainConfig& config = run.task->config();
  const Dataset images = load_dataset(data_options(config));
  if (to_string(size_of(images.train)) != run.task->data_shape())
    fail(ErrorKind::io, "the run in {} is for images of {}; those of {} are {}", a.run, run.task->data_shape(),
         images.name, to_string(size_of(images.train)));
  TokenData data;
  ImageEncoder encoder(tokenizer, backend);
  data.train = {encoder.encode(images.train, config.batch), images.train.labels};
  data.test = {encoder.encode(images.test, config.batch), images.test.labels};
  data.vocabulary = tokenizer.codes();
  data.classes = images.classes;
  data.origin = fmt::format("{} on {}", a.run, images.name);
  write_token_files(a.out, data);
  fmt::print("{} training and {} test images of {} -> {} and beside it: {} tokens each, in 0..{}{}\n",
             data.train.count(), data.test.count(), images.name, a.out, data.train.length(), data.vocabulary - 1,
             data.classes > 0 ? fmt::format(", of {} classes", data.classes) : "");
  fmt::print("train a prior on them: {} train prior --tokens {}{}\n", program_name(), a.out,
             data.classes > 0 ? " --conditional" : "");
}

// One class for each sequence: the one asked for, or each in its turn, row by row of the picture.
std::vector<std::int32_t> classes_of(const Arguments& a, std::int64_t classes, std::int64_t columns) {
  if (classes == 0) {
    if (a.klass >= 0) fail(ErrorKind::usage, "--class {}: the prior in {} has no classes", a.klass, a.prior);
    return {};
  }
  if (a.klass >= classes)
    fail(ErrorKind::usage, "--class {}: the prior in {} has classes 0 to {}", a.klass, a.prior, classes - 1);
  std::vector<std::int32_t> out;
  for (std::int64_t i = 0; i < a.count; ++i)
    out.push_back(static_cast<std::int32_t>(a.klass >= 0 ? a.klass : i / columns % classes));
  return out;
}

void sample(const Arguments& a) {
  validate(a.options);
  const RestoredTask prior = restored(a.prior, a), run = restored(a.run, a);
  const Tokenizer& tokenizer = tokenizer_of(a.run, *run.task);
  Backend& backend = start_backend(run.task->config());
  const std::unique_ptr<TokenGenerator> generator = prior.task->generator(a.count, backend);
  if (generator == nullptr)
    fail(ErrorKind::usage, "{} is a run of {}, which makes no tokens", a.prior, prior.task->config().model);
  const Shape shape = tokenizer.token_shape(a.count);
  const std::int64_t length = shape.elements() / a.count;
  if (generator->vocabulary() != tokenizer.codes() || (generator->longest() > 0 && generator->longest() != length))
    fail(ErrorKind::usage,
         "the prior in {} makes {} tokens of {}, the images of {} are {} tokens of {}: it was trained on another "
         "model's tokens",
         a.prior, generator->longest(), generator->vocabulary(), a.run, length, tokenizer.codes());
  const std::int64_t columns = a.columns > 0 ? a.columns : 8;
  const std::vector<std::int32_t> classes = classes_of(a, generator->classes(), columns);
  Tensor tokens = generate(*generator, length, a.options, static_cast<std::uint32_t>(a.seed), classes);
  tokens = Tensor::of<std::int32_t>(shape, tokens.span<std::int32_t>());
  const DecodedImages images = decode_tokens(tokenizer, tokens, run.task->config().batch, backend, a.prior);
  save_png(a.out, image_grid(images.images, static_cast<int>(columns)));
  fmt::print("{} images of {} new tokens each -> {}{}\n", a.count, length, a.out,
             classes.empty() || a.klass >= 0 ? "" : "  (a class per row, in turn)");
}

}  // namespace

void add_tokenize(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("tokenize", "Turn the data set of a run into tokens, for a prior to be trained on.");
  const auto a = std::make_shared<Arguments>();
  command->add_option("RUN", a->run, "run folder")->required();
  command
      ->add_option("--out", a->out,
                   ".npy file of the training images' tokens; those of the test images and the labels go beside it")
      ->required();
  a->flags = std::make_unique<ConfigFlags>(*command, std::vector<std::string_view>{"Data", "Run"});
  command->footer("Examples:\n  stopgrad tokenize runs/vqvae --out tokens.npy");
  command->callback([a] { tokenize(*a); });
}

void add_sample(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("sample", "Make new images: a prior draws tokens, a trained model decodes them.");
  const auto a = std::make_shared<Arguments>();
  command->add_option("PRIOR", a->prior, "run folder of a model of tokens")->required();
  command->add_option("RUN", a->run, "run folder of the model whose tokens they are")->required();
  command->add_option("--out", a->out, "picture to write (PNG)")->required();
  command->add_option("--count", a->count, "images")->check(CLI::Range(1, 4096))->capture_default_str();
  command->add_option("--columns", a->columns, "images in a row of the picture; 0: 8")->check(CLI::Range(0, 256));
  command->add_option("--class", a->klass, "class of all images; without it one class per row, in turn");
  command->add_option("--temperature", a->options.temperature, "logits are divided by it; 0: the likeliest token")
      ->capture_default_str();
  command->add_option("--top-k", a->options.top_k, "draw among the k likeliest tokens; 0: all")->capture_default_str();
  command->add_option("--top-p", a->options.top_p, "draw among the fewest tokens of at least this probability")
      ->capture_default_str();
  command->add_option("--sampling-seed", a->seed, "seed of the drawing")->capture_default_str();
  a->flags = std::make_unique<ConfigFlags>(*command, std::vector<std::string_view>{"Run"});
  command->footer(
      "Examples:\n"
      "  stopgrad sample runs/prior runs/vqvae --count 64 --out samples.png\n"
      "  stopgrad sample runs/prior runs/vqvae --class 9 --temperature 0.9 --top-k 100 --out boots.png");
  command->callback([a] { sample(*a); });
}

}  // namespace sg::tools
