#include <fmt/ranges.h>

#include "core/error.h"
#include "tools/commands/commands.h"
#include "tools/run_folder.h"
#include "tools/trainer.h"

namespace sg::tools {
namespace {

struct TrainArguments {
  std::string model, config, out, resume;
  std::int64_t stop_after = 0;
  bool allow_untrained = false;
  std::unique_ptr<ConfigFlags> flags;
};

TrainRequest new_run(const TrainArguments& a) {
  if (a.config.empty() && a.model.empty())
    fail(ErrorKind::usage, "train: which model? For example: stopgrad train vqvae (there are: {})", model_list());
  TrainConfig base = default_config(a.model.empty() ? "vqvae" : a.model);
  if (!a.config.empty()) {
    base = read_config(a.config, base);
    if (!a.model.empty() && base.model != a.model)
      fail(ErrorKind::usage, "train: {} is of {}, not of {}", a.config, base.model, a.model);
  }
  TrainRequest request;
  request.config = a.flags->over(base);
  request.out = a.out;
  request.allow_untrained = a.allow_untrained;
  request.stop_after = a.stop_after;
  validate(request.config);
  if (request.out.empty()) request.out = next_run_path(request.config.model);
  return request;
}

// A resumed run is the same run: only what leaves its numbers as they are, and its length, may be given another value.
TrainRequest resumed_run(const TrainArguments& a) {
  if (!a.config.empty())
    fail(ErrorKind::usage, "train: --resume takes its settings from the run; --config cannot be given with it");
  if (!a.out.empty())
    fail(ErrorKind::usage, "train: --resume goes on in the folder of the run; --out cannot be given with it");
  const RunFolder folder = RunFolder::open(a.resume);
  const TrainConfig saved = read_config(folder.config(), {});
  validate(saved);
  if (!a.model.empty() && a.model != saved.model)
    fail(ErrorKind::usage, "train: {} is a run of {}, not of {}", a.resume, saved.model, a.model);
  TrainConfig config = a.flags->over(saved);
  validate(config);
  for (const ConfigField& field : config_fields())
    if (has_field(saved.model, field) && !field.resume_may_change && text_of(config, field) != text_of(saved, field))
      fail(ErrorKind::usage, "train: {} is {} in {}; a resumed run cannot change it to {}", flag_of(field),
           text_of(saved, field), folder.config().string(), text_of(config, field));
  TrainRequest request;
  request.config = config;
  request.out = a.resume;
  request.resume = true;
  request.allow_untrained = a.allow_untrained;
  request.stop_after = a.stop_after;
  return request;
}

}  // namespace

void add_train(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("train", "Train a model and write a run folder with checkpoint, metrics and pictures.");
  const auto a = std::make_shared<TrainArguments>();
  std::string models = "architecture; `train MODEL --help` shows its settings:";
  for (const TaskDef& def : task_table()) models += fmt::format("\n{:<14} {}", def.name, def.summary);
  command->add_option("model", a->model, models);
  command->add_option("--out", a->out,
                      "run folder to make; it must not exist or be empty. Without it: runs/MODEL-001, -002, ...");
  command->add_option("--config", a->config, "take settings from a TOML file (a run's config.toml); flags go over it");
  command->add_option("--resume", a->resume, "go on with the run in this folder, exactly as if it had not stopped");
  command->add_option("--stop-after", a->stop_after, "stop after this step as Ctrl-C would; 0: never")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--allow-untrained", a->allow_untrained,
                    "train although the audit of the gradient flow found parameters that nothing trains");
  a->flags = std::make_unique<ConfigFlags>(
      *command, std::vector<std::string_view>{"Model", "Data", "Quantizer", "Training", "Run"}, "model");
  command->footer(
      "Examples:\n"
      "  stopgrad train vqvae                                          Fashion-MNIST, 2000 steps\n"
      "  stopgrad train vqvae --estimator rotation --codes 1024 --out runs/rotation\n"
      "  stopgrad train vqvae --data ~/pictures --image-size 64 --epochs 20\n"
      "  stopgrad train vqvae --data synthetic --steps 300 --codebook loss\n"
      "  stopgrad train --resume runs/rotation --steps 5000\n"
      "  stopgrad train --config runs/rotation/config.toml --seed 2");
  command->callback([a] { train(a->resume.empty() ? new_run(*a) : resumed_run(*a)); });
}

}  // namespace sg::tools
