// evaluate, encode, decode: what a trained model is used for.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/program.h"
#include "tools/commands/commands.h"
#include "tools/data/loader.h"
#include "tools/images.h"
#include "tools/metrics.h"
#include "tools/npy.h"
#include "tools/program.h"
#include "tools/session.h"
#include "tools/tasks/classifier_task.h"
#include "tools/tasks/image_task.h"
#include "tools/tokenizing.h"

namespace sg::tools {
namespace {

struct UseArguments {
  std::string run, out, tokens, classifier, inception, features_real, features_generated, json_file;
  std::vector<std::string> images;
  bool json = false;
  std::unique_ptr<ConfigFlags> flags;
};

// The run with the settings of this command line, its backend started. data: null where none are needed.
struct OpenedRun {
  RestoredTask run;
  Backend& backend;
  Task& task() const { return *run.task; }
};
OpenedRun open_run(const UseArguments& a, DataCache* data) {
  RestoredTask run = restore_task(
      a.run,
      [&](const TrainConfig& saved) {
        TrainConfig config = a.flags->over(saved);
        config.epochs = 0;  // the length of the run does not matter any more, and --limit may have made it none
        return config;
      },
      data);
  Backend& backend = start_backend(run.task->config());
  return {std::move(run), backend};
}

// --features-real A.npy --features-generated B.npy: the distance of two sets of features made elsewhere.
std::vector<Figure> figures_of_files(const UseArguments& a) {
  const Tensor real = read_npy(a.features_real), generated = read_npy(a.features_generated);
  const double distance = frechet_distance(real, generated);
  return {{"fid_given_features", distance, "Frechet distance",
           fmt::format("{:.5f}   (of the {} and {} rows given; FID where they are Inception-v3's 2048 pool3 features)",
                       distance, real.shape()[0], generated.shape()[0])}};
}

void print_json(const nlohmann::ordered_json& out, const std::string& file) {
  const std::string text = out.dump(2) + "\n";
  if (file.empty())
    fmt::print("{}", text);
  else
    write_file_atomically(file, std::as_bytes(std::span(text)));
}

void evaluate(const UseArguments& a) {
  if (a.features_real.empty() != a.features_generated.empty())
    fail(ErrorKind::usage, "evaluate: --features-real and --features-generated belong together");
  std::vector<Figure> given;
  if (!a.features_real.empty()) given = figures_of_files(a);
  if (a.run.empty()) {
    if (given.empty()) fail(ErrorKind::usage, "evaluate: which run? Name its folder, or give two files of features");
    nlohmann::ordered_json out;
    for (const Figure& figure : given) out[figure.key] = figure.value;
    if (!a.json || !a.json_file.empty()) fmt::print("{}", to_text(given));
    if (a.json) print_json(out, a.json_file);
    return;
  }
  DataCache data;
  const OpenedRun opened = open_run(a, &data);
  auto* images = dynamic_cast<ImageTask*>(&opened.task());
  const bool judged = !a.classifier.empty() || !a.inception.empty();
  if (judged && (images == nullptr || opened.task().config().model == "classifier"))
    fail(ErrorKind::usage, "evaluate: {} judges images; {} is a run of {}, which makes none",
         a.classifier.empty() ? "--inception" : "--classifier", a.run, opened.task().config().model);
  if (!a.classifier.empty()) images->add_judge(classifier_judge(load_classifier(a.classifier), a.classifier));
  if (!a.inception.empty()) images->add_judge(inception_judge(a.inception));
  const auto start = std::chrono::steady_clock::now();
  std::vector<Figure> figures = opened.task().evaluate(opened.backend);
  figures.insert(figures.end(), given.begin(), given.end());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!a.json || !a.json_file.empty()) {
    fmt::print("{} at step {}, on {}:\n{}", a.run, opened.run.step, opened.task().evaluated_on(), to_text(figures));
    fmt::print("  {:<26} {:.1f} s\n", "time", seconds);
    if (!judged && !std::isnan(value_of(figures, "mse")))
      fmt::print(
          "FID (classifier features) and IS (classifier) need a judge: {0} train classifier --data {2} --out "
          "runs/classifier, "
          "then\n{0} evaluate {1} --classifier runs/classifier\n",
          program_name(), a.run, opened.task().config().data);
    if (!a.json) return;
  }
  nlohmann::ordered_json out = {{"run", a.run}, {"step", opened.run.step}, {"model", opened.task().config().model}};
  if (has_field(opened.task().config().model, *find_field("data"))) out["data"] = opened.task().config().data;
  for (const Figure& figure : figures) out[figure.key] = figure.value;
  out["seconds"] = seconds;
  print_json(out, a.json_file);
}

// What a run turns data into tokens with, and the images that it does it for.
const Tokenizer& tokenizer_of(const UseArguments& a, const Task& task, std::string_view command, ImageSize& images) {
  const Tokenizer* tokenizer = task.tokenizer();
  if (tokenizer == nullptr || !parse_image_size(task.data_shape(), images))
    fail(ErrorKind::usage, "{}: {} is a run of {}, which makes no tokens of images", command, a.run,
         task.config().model);
  return *tokenizer;
}

bool is_idx(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  return name.find("idx3-ubyte") != std::string::npos || name.find("idx4-ubyte") != std::string::npos;
}

// PNG and JPEG files, folders of them, or one IDX file.
ImageSet images_to_encode(const UseArguments& a, const ImageSize& size) {
  if (a.images.size() == 1 && is_idx(a.images[0])) {
    ImageSet set = read_idx(a.images[0]);
    if (size_of(set) != size)
      fail(ErrorKind::io, "{} holds images of {}; the run in {} is for {}", a.images[0], to_string(size_of(set)), a.run,
           to_string(size));
    return set;
  }
  std::vector<std::filesystem::path> files;
  for (const std::string& name : a.images) {
    if (is_idx(name)) fail(ErrorKind::usage, "encode: an IDX file ({}) must be given alone", name);
    std::error_code ec;
    if (!std::filesystem::is_directory(name, ec)) {
      files.emplace_back(name);
      continue;
    }
    const auto inside = list_images(name);
    if (inside.empty()) fail(ErrorKind::io, "encode: no PNG or JPEG files in {}", name);
    files.insert(files.end(), inside.begin(), inside.end());
  }
  if (size.height != size.width || (size.channels != 1 && size.channels != 3))
    fail(ErrorKind::usage,
         "encode: the run in {} is for images of {}; only square grey or colour images can be read from picture files",
         a.run, to_string(size));
  return read_images(files, size.height, size.channels);
}

void encode(const UseArguments& a) {
  const OpenedRun run = open_run(a, nullptr);
  ImageSize size;
  const Tokenizer& tokenizer = tokenizer_of(a, run.task(), "encode", size);
  const ImageSet images = images_to_encode(a, size);
  const Tensor tokens = ImageEncoder(tokenizer, run.backend).encode(images, run.task().config().batch);
  write_npy(a.out, tokens);
  fmt::print("{} images -> {}: i32{} tokens in 0..{}\n", images.count, a.out, to_string(tokens.shape()),
             tokenizer.codes() - 1);
}

void decode(const UseArguments& a) {
  const OpenedRun run = open_run(a, nullptr);
  ImageSize size;
  const Tokenizer& tokenizer = tokenizer_of(a, run.task(), "decode", size);
  if (size.channels != 1 && size.channels != 3)
    fail(ErrorKind::usage, "decode: images of {} channels cannot be written as PNG", size.channels);
  const Tensor tokens = read_npy(a.tokens);
  const DecodedImages decoded = decode_tokens(tokenizer, tokens, run.task().config().batch, run.backend, a.tokens);
  make_output_folder(a.out);
  const std::int64_t n = tokens.shape()[0];
  for (std::int64_t i = 0; i < n; ++i)
    save_png(std::filesystem::path(a.out) / fmt::format("{:05}.png", i), image_of(decoded.images, i));
  fmt::print("{} images of {} -> {}\n", n, to_string(size), a.out);
  if (decoded.differ == 0)
    fmt::print("quantizing their codes again gives the same {} tokens\n", tokens.elements());
  else
    fmt::print("quantizing their codes again gives other tokens for {} of {}: some codes of this codebook coincide\n",
               decoded.differ, tokens.elements());
}

}  // namespace

void add_evaluate(CLI::App& app) {
  CLI::App* command = app.add_subcommand("evaluate", "Measure a trained model on all of its held-out data.");
  const auto a = std::make_shared<UseArguments>();
  command->add_option("RUN", a->run, "run folder; not needed where only features are compared");
  const CLI::Option* json =
      command->add_option("--json", a->json_file, "print JSON; with a file name, write it there beside the table")
          ->type_name("[FILE]")
          ->expected(0, 1);
  command->add_option("--classifier", a->classifier,
                      "run of `train classifier` that judges the images: FID (classifier features), IS (classifier)");
  command->add_option("--inception", a->inception,
                      "safetensors file of Inception-v3's weights (names of pytorch-fid), which judges the images: FID "
                      "and IS where these are the original ones; minutes for a thousand images");
  command->add_option("--features-real", a->features_real,
                      ".npy of features (N,D) of real images, made elsewhere, for their Frechet distance to");
  command->add_option("--features-generated", a->features_generated, ".npy of features (M,D) of generated images");
  a->flags = std::make_unique<ConfigFlags>(*command, std::vector<std::string_view>{"Data", "Run"});
  command->footer(
      "Examples:\n  stopgrad evaluate runs/first\n  stopgrad evaluate runs/first --json --backend reference --limit "
      "500\n"
      "  stopgrad evaluate runs/first --classifier runs/classifier --json figures.json\n"
      "  stopgrad evaluate --features-real real.npy --features-generated made.npy");
  command->callback([a, json] {
    a->json = json->count() > 0;
    evaluate(*a);
  });
}

void add_encode(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("encode", "Turn images into tokens: one i32 code index for each place of the latent grid.");
  const auto a = std::make_shared<UseArguments>();
  command->add_option("RUN", a->run, "run folder")->required();
  command->add_option("IMAGES", a->images, "PNG or JPEG files, folders of them, or one IDX file")->required();
  command->add_option("--out", a->out, ".npy file to write")->required();
  a->flags = std::make_unique<ConfigFlags>(*command, std::vector<std::string_view>{"Run"});
  command->footer(
      "Examples:\n"
      "  stopgrad encode runs/first shoe.png shirt.jpg --out tokens.npy\n"
      "  stopgrad encode runs/first /usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz --out tokens.npy");
  command->callback([a] { encode(*a); });
}

void add_decode(CLI::App& app) {
  CLI::App* command = app.add_subcommand("decode", "Turn tokens back into PNG images.");
  const auto a = std::make_shared<UseArguments>();
  command->add_option("RUN", a->run, "run folder")->required();
  command->add_option("TOKENS", a->tokens, ".npy file of i32 (N, height/4, width/4), as encode writes it")->required();
  command->add_option("--out", a->out, "folder to make; it must not exist or be empty")->required();
  a->flags = std::make_unique<ConfigFlags>(*command, std::vector<std::string_view>{"Run"});
  command->footer("Examples:\n  stopgrad decode runs/first tokens.npy --out decoded");
  command->callback([a] { decode(*a); });
}

}  // namespace sg::tools
