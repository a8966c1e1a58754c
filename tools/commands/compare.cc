// compare: the same training with one or more settings varied, over several seeds.
#include "core/error.h"
#include "tools/commands/commands.h"
#include "tools/comparison.h"
#include "tools/run_folder.h"

namespace sg::tools {
namespace {

struct CompareArguments {
  std::string model, config, out, estimators, quantizers, codebooks, codes;
  std::vector<std::string> vary;
  std::int64_t seeds = 3, jobs = 1;
  bool list = false, pictures = false;
  CLI::Option* seeds_option = nullptr;
  std::unique_ptr<ConfigFlags> flags;
};

CompareRequest request_of(const CompareArguments& a) {
  CompareRequest request;
  ComparisonSettings& s = request.settings;
  if (!a.config.empty()) s = read_comparison(a.config);
  if (!a.model.empty()) s.base = with_model(s.base, a.model);
  s.base = a.flags->over(s.base);
  const bool codes_vary = a.codes.find(',') != std::string::npos;
  if (!a.codes.empty() && !codes_vary) {
    require_field(s.base.model, *find_field("codes"));
    set_from_text(s.base, *find_field("codes"), a.codes);
  }
  validate(s.base);
  if (a.seeds_option->count() > 0) s.seeds = a.seeds;
  if (a.pictures) s.pictures = true;
  std::vector<std::string> vary;
  for (const auto& [key, values] :
       {std::pair{"quantizer", &a.quantizers}, {"estimator", &a.estimators}, {"codebook", &a.codebooks}})
    if (!values->empty()) vary.push_back(fmt::format("{}={}", key, *values));
  if (codes_vary) vary.push_back(fmt::format("codes={}", a.codes));
  vary.insert(vary.end(), a.vary.begin(), a.vary.end());
  if (!vary.empty()) s.vary = std::move(vary);
  const std::filesystem::path config(a.config);
  if (!a.out.empty())
    request.out = a.out;
  else if (config.filename() == "compare.toml")
    request.out = config.has_parent_path() ? config.parent_path() : ".";
  else
    request.out = next_run_path("compare");
  request.jobs = a.jobs;
  request.list = a.list;
  return request;
}

}  // namespace

void add_compare(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "compare", "Train with some settings varied, over several seeds: a table with intervals, and curves.");
  const auto a = std::make_shared<CompareArguments>();
  command->add_option("model", a->model, fmt::format("architecture: {}; vqvae where none is given", model_list()));
  command
      ->add_option("--vary", a->vary,
                   "KEY=VALUE,VALUE,...: a setting of `train` and its values; may be given again, for all\n"
                   "combinations. Lists with x: grid=8x5x5,8x8x8. A value may set more than its own key:\n"
                   "codebook=loss,ema+ema_decay=0.8,ema+ema_decay=0.99")
      ->allow_extra_args(false);
  command->add_option("--estimators", a->estimators, "short for --vary estimator=...");
  command->add_option("--quantizers", a->quantizers, "short for --vary quantizer=...");
  command->add_option("--codebooks", a->codebooks, "short for --vary codebook=...");
  command->add_option("--codes", a->codes,
                      "number of codes K, of each book; several, as 256,1024: short for --vary codes=...\n"
                      "A scalar grid (fsq, lfq, bsq) takes its levels or bits from it");
  a->seeds_option = command->add_option("--seeds", a->seeds, "runs of each arm, with --seed and the numbers after it")
                        ->check(CLI::Range(1, 1000))
                        ->capture_default_str();
  command->add_option("--out", a->out,
                      "folder of the comparison; what is done in it is kept. Without it: runs/compare-001, ...");
  command->add_option("--config", a->config, "compare.toml of a comparison: go on with it, or with --out run it again");
  command
      ->add_option("--jobs", a->jobs,
                   "runs side by side, each in a process of its own; step times are not reported then")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command->add_flag("--list", a->list, "say which runs there are and what is done of them, and stop");
  command->add_flag("--pictures", a->pictures, "reconstructions and curves of each run, too");
  a->flags = std::make_unique<ConfigFlags>(
      *command, std::vector<std::string_view>{"Model", "Data", "Quantizer", "Training", "Run"}, "model",
      std::vector<std::string_view>{"codes"});
  command->footer(
      "All runs of a seed have the same data, initial weights and batches.\n"
      "Examples:\n"
      "  stopgrad compare --estimators ste,rotation --seeds 3 --steps 400\n"
      "  stopgrad compare --vary estimator=ste,rotation --vary init=uniform,kmeans --out runs/factorial\n"
      "  stopgrad compare --quantizers vq,fsq,lfq --codes 256,1024,4096\n"
      "  stopgrad compare --vary model=ae,vqvae,fsq-ae --seeds 1\n"
      "  stopgrad compare --config runs/factorial/compare.toml");
  command->callback([a] { compare(request_of(*a)); });
}

}  // namespace sg::tools
