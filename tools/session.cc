#include "tools/session.h"

#include <fmt/ranges.h>

#include <charconv>
#include <cmath>

#include "backends/backends.h"
#include "backends/cpu/bf16.h"
#include "core/error.h"

namespace sg::tools {
namespace {

bool all_finite(const Tensor& t) {
  if (t.dtype() == DType::i32) return true;
  for (std::int64_t i = 0; i < t.elements(); ++i)
    if (!std::isfinite(t.at(i))) return false;
  return true;
}

}  // namespace

std::string to_string(const ImageSize& s) { return fmt::format("{}x{}x{}", s.height, s.width, s.channels); }

bool parse_image_size(std::string_view text, ImageSize& out) {
  std::int64_t* const extents[] = {&out.height, &out.width, &out.channels};
  for (std::size_t i = 0; i < 3; ++i) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *extents[i]);
    if (error != std::errc{} || *extents[i] < 1) return false;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    if (i < 2 && (text.empty() || text.front() != 'x')) return false;
    if (i < 2) text.remove_prefix(1);
  }
  return text.empty();
}

Backend& start_backend(const TrainConfig& config) {
  if (config.threads > 0) set_threads(static_cast<int>(config.threads));
  set_cpu_options({.isa = config.isa, .winograd = config.winograd, .tune = config.tune});
  if (config.tf32 && config.backend != "cuda")
    fail(ErrorKind::usage, "--tf32: backend {} has no tf32; use it with --backend cuda", config.backend);
  Backend& chosen = backend(config.backend);
  if (config.backend == "cuda") set_cuda_options({.tf32 = config.tf32});
  if (config.dtype == "bf16" && config.backend == "cpu") {
    if (!cpu::has_bf16() && !config.emulate_bf16)
      fail(ErrorKind::backend,
           "--dtype bf16: this processor lacks avx512_bf16; use --dtype f32, or --emulate-bf16 for the same numbers, "
           "slower than f32");
    cpu::allow_emulated_bf16(config.emulate_bf16);
  }
  return chosen;
}

DataOptions data_options(const TrainConfig& config) {
  return {config.data, config.data_dir, config.image_size, config.channels, config.limit};
}

QuantizerConfig quantizer_config(const TrainConfig& config) {
  QuantizerConfig q;
  q.quantizer = config.quantizer;
  q.dim = config.code_dim;
  q.codes = config.codes;
  q.estimator = config.estimator;
  q.metric = metric_by_name(config.metric);
  q.codebook = codebook_update_by_name(config.codebook);
  q.init = codebook_init_by_name(config.init);
  q.normal_deviation = config.normal_deviation;
  q.ema_decay = config.ema_decay;
  q.ema_eps = config.ema_eps;
  q.inner_rate = config.inner_rate;
  q.assignment = assignment_by_name(config.assignment);
  q.revival_policy = revival_by_name(config.revival_policy);
  q.revival = config.revive >= 0 ? config.revive : sets_single_codes(q.codebook) ? 1 : 0;
  q.beta = config.beta;
  q.gamma = config.gamma;
  q.orthogonal = config.orthogonal;
  q.entropy = config.entropy;
  q.diversity = config.diversity;
  q.entropy_temperature = config.entropy_temperature;
  q.origin_decay = config.origin_decay;
  q.heads = config.heads;
  q.levels = config.levels;
  q.code_dim = config.code_width;
  q.shared_books = config.shared_books;
  q.level_dropout = config.level_dropout;
  q.grid = config.grid;
  q.dither = config.dither;
  q.scales = config.scales;
  q.phi = config.phi;
  return q;
}

VqVaeConfig model_config(const TrainConfig& config, const ImageSize& images, std::int64_t steps) {
  VqVaeConfig c;
  c.height = images.height;
  c.width = images.width;
  c.channels = images.channels;
  c.hidden = config.hidden;
  c.residual = config.residual_hidden;
  c.residual_blocks = config.residual_blocks;
  c.precision = config.dtype == "bf16" ? DType::bf16 : DType::f32;
  c.quantizer = quantizer_config(config);
  c.balance_commitment = config.balance_commitment;
  c.batch = config.batch;
  c.optimizer = config.optimizer;
  c.lr = config.lr;
  c.weight_decay = config.weight_decay;
  c.warmup = config.warmup;
  c.cosine_decay = config.schedule == "cosine";
  c.clip = config.clip;
  c.steps = steps > 0 ? steps : config.steps;
  c.window = config.window;
  c.seed = static_cast<std::uint32_t>(config.seed);
  sg::validate(c);
  return c;
}

void save_checkpoint(const std::filesystem::path& path, std::span<Variable* const> variables,
                     const std::string& data_shape, std::int64_t step) {
  StateFile file;
  for (const Variable* v : variables) file.tensors.push_back({v->name(), v->value()});
  file.metadata = {{"format", "stopgrad checkpoint 1"}, {"data", data_shape}, {"step", std::to_string(step)}};
  save_safetensors(path, file);
}

Checkpoint read_checkpoint(const std::filesystem::path& path) {
  Checkpoint c{path, load_safetensors(path), {}};
  const auto shape = c.file.metadata.find("data");
  if (shape == c.file.metadata.end())
    fail(ErrorKind::io, "{}: not a checkpoint of this program: its metadata does not say which data it is for",
         path.string());
  c.data_shape = shape->second;
  return c;
}

void require_data_shape(const Task& task, const Checkpoint& checkpoint) {
  if (task.data_shape() != checkpoint.data_shape)
    fail(ErrorKind::io, "{} is for {} of {}, the data are {}", checkpoint.path.string(), task.unit(),
         checkpoint.data_shape, task.data_shape());
}

void restore(std::span<Variable* const> variables, const Checkpoint& checkpoint, bool all) {
  const std::string file = checkpoint.path.string();
  std::vector<const Tensor*> found;
  for (const Variable* v : variables) {
    const Tensor* tensor = checkpoint.file.find(v->name());
    if (tensor == nullptr)
      fail(ErrorKind::io, "{} has no tensor '{}' ({}), which this model needs: it is a checkpoint of another model",
           file, v->name(), sg::to_string(v->type()));
    if (tensor->type() != v->type())
      fail(ErrorKind::io, "{}: tensor '{}' is {}, this model's is {}: it is a checkpoint of another model", file,
           v->name(), sg::to_string(tensor->type()), sg::to_string(v->type()));
    if (!all_finite(*tensor)) fail(ErrorKind::io, "{}: tensor '{}' holds a NaN or an infinity", file, v->name());
    found.push_back(tensor);
  }
  if (all && checkpoint.file.tensors.size() != variables.size())
    for (const NamedTensor& t : checkpoint.file.tensors) {
      bool known = false;
      for (const Variable* v : variables) known = known || v->name() == t.name;
      if (!known)
        fail(ErrorKind::io, "{}: tensor '{}' is not of this model: it is a checkpoint of another model", file, t.name);
    }
  for (std::size_t i = 0; i < found.size(); ++i) variables[i]->set(*found[i]);
}

RestoredTask restore_task(const std::filesystem::path& path,
                          const std::function<TrainConfig(const TrainConfig&)>& config, DataCache* data) {
  RunFolder folder = RunFolder::open(path);
  TaskSetup setup{config(read_config(folder.config(), {})), data};
  validate(setup.config);
  const Checkpoint checkpoint = read_checkpoint(folder.checkpoint());
  setup.data_shape = checkpoint.data_shape;
  std::unique_ptr<Task> task = make_task(setup);
  require_data_shape(*task, checkpoint);
  restore(task->model(), checkpoint, false);
  const Tensor* step = checkpoint.file.find(task->step().name());
  return {std::move(folder), std::move(task), step == nullptr ? 0 : static_cast<std::int64_t>(step->item())};
}

LoadedRun load_run(const std::filesystem::path& path) {
  RunFolder folder = RunFolder::open(path);
  TrainConfig config = read_config(folder.config(), {});
  validate(config);
  if (config.model != "vqvae")
    fail(ErrorKind::usage, "{} is a run of {}; one of vqvae is needed", path.string(), config.model);
  const Checkpoint checkpoint = read_checkpoint(folder.checkpoint());
  ImageSize images;
  if (!parse_image_size(checkpoint.data_shape, images))
    fail(ErrorKind::io, "{} is for data of {}, not for images", checkpoint.path.string(), checkpoint.data_shape);
  auto model = std::make_unique<VqVae>(model_config(config, images));
  restore(model->variables(), checkpoint, false);
  const Tensor* step = checkpoint.file.find("training.step");
  return {std::move(folder), std::move(config), images, std::move(model),
          step == nullptr ? 0 : static_cast<std::int64_t>(step->item())};
}

}  // namespace sg::tools
