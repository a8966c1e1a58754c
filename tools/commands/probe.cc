// probe: what each gradient estimator sends to the encoder of a run, on one batch or a few.
#include "tools/probe.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "tools/commands/commands.h"
#include "tools/data/loader.h"
#include "tools/session.h"

namespace sg::tools {
namespace {

struct ProbeArguments {
  std::string run;
  std::vector<std::string> estimators;
  std::vector<double> steps{0.01};
  double shift = 0;
  std::int64_t first = 0, batches = 1;
  bool at_start = false, json = false;
  std::unique_ptr<ConfigFlags> flags;
};

// Columns as wide as their widest cell; the first is aligned left, the others right.
void print_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> width;
  for (const auto& row : rows)
    for (std::size_t c = 0; c < row.size(); ++c) {
      width.resize(std::max(width.size(), c + 1));
      width[c] = std::max(width[c], row[c].size());
    }
  for (const auto& row : rows) {
    fmt::print("  {:<{}}", row[0], width[0]);
    for (std::size_t c = 1; c < row.size(); ++c) fmt::print("  {:>{}}", row[c], width[c]);
    fmt::print("\n");
  }
}

nlohmann::ordered_json json_of(const Numbers& numbers) {
  nlohmann::ordered_json out = nlohmann::ordered_json::object();
  for (const auto& [name, value] : numbers) out[name] = value;
  return out;
}

nlohmann::ordered_json json_of(const ProbeResult& result) {
  nlohmann::ordered_json estimators = nlohmann::ordered_json::object();
  for (const auto& [name, numbers] : result.rows) estimators[name] = json_of(numbers);
  return {{"common", json_of(result.common)}, {"estimators", estimators}};
}

void print(const ProbeArguments& a, const ProbeResult& r) {
  const auto c = [&](std::string_view name) { return number(r.common, name); };
  fmt::print("  reconstruction loss {:.6f}; {:.6f} where z itself is decoded\n", c("loss"), c("decode_loss"));
  fmt::print("  |q|/|z| {:.4g} (5 % {:.4g}, 95 % {:.4g}), angle of z and q {:.3g} (5 % {:.3g}, 95 % {:.3g}) degrees\n",
             c("norm_ratio"), c("norm_ratio_p5"), c("norm_ratio_p95"), c("angle"), c("angle_p5"), c("angle_p95"));
  fmt::print("  gradient of the quantizer's losses at z, weighted as in training: {:.4g}\n\n", c("losses"));

  std::vector<std::vector<std::string>> table{
      {"gradient at z", "|G|", "cos ste", "|G|/ste", "cos exact", "|G|/exact", "cos ste, weights", "share of z"}};
  if (a.shift != 0) table[0].insert(table[0].end(), {"shifted: change", "cos"});
  for (const auto& [name, n] : r.rows) {
    const auto cell = [&n](std::string_view key, std::string_view format) {
      return fmt::format(fmt::runtime(format), number(n, key));
    };
    table.push_back({name, cell("gradient", "{:.3g}"), cell("cosine_ste", "{:.4f}"), cell("ratio_ste", "{:.4g}"),
                     cell("cosine_exact", "{:.4f}"), cell("ratio_exact", "{:.4g}"), cell("cosine_parameters", "{:.4f}"),
                     cell("share", "{:.3f}")});
    if (a.shift != 0 && name != "decode(z)")
      table.back().insert(table.back().end(), {cell("shift_change", "{:.3g}"), cell("shift_cosine", "{:.4f}")});
  }
  print_table(table);

  for (const double step : a.steps) {
    const auto key = [step](std::string_view what) { return fmt::format("{}@{:g}", what, step); };
    fmt::print("\n");
    table = {{fmt::format("a step of {:g} |z|", step), "loss of D(z)", "actual/predicted", "loss of D(Q(z))",
              "actual/predicted", "codes changed"}};
    for (const auto& [name, n] : r.rows)
      table.push_back({name, fmt::format("{:+.3f} %", 100 * number(n, key("decode"))),
                       fmt::format("{:.3f}", number(n, key("decode_ratio"))),
                       fmt::format("{:+.3f} %", 100 * number(n, key("quantized"))),
                       fmt::format("{:.3f}", number(n, key("quantized_ratio"))),
                       fmt::format("{:.1f} %", 100 * number(n, key("moved")))});
    print_table(table);
  }
}

// The variables as the run's checkpoint has them, or as its training began.
void set_variables(const ProbeArguments& a, const LoadedRun& run, const Dataset& data, VqVae& model, Backend& backend) {
  if (a.at_start) {
    Tensor first({DType::f32, {run.config.batch, run.images.height, run.images.width, run.images.channels}});
    BatchOrder order(data.train.count, run.config.batch, static_cast<std::uint32_t>(run.config.seed));
    copy_images(data.train, order.indices(0), first);
    initialize_codebook(model, first, backend);
    return;
  }
  const std::vector<Variable*> to = model.variables(), from = run.model->variables();
  for (std::size_t i = 0; i < to.size(); ++i) to[i]->set(from[i]->value());
}

void probe(const ProbeArguments& a) {
  LoadedRun run = load_run(a.run);
  run.config = a.flags->over(run.config);
  validate(run.config);
  Backend& backend = start_backend(run.config);
  const Dataset data = load_dataset(data_options(run.config));
  if (size_of(data.train) != run.images)
    fail(ErrorKind::io, "the run in {} is for images of {}; the training images of {} are {}", a.run,
         to_string(run.images), data.name, to_string(size_of(data.train)));

  ProbeOptions options{.estimators = {}, .steps = a.steps, .shift = a.shift};
  for (const std::string& name : a.estimators.empty() ? estimator_names() : a.estimators)
    options.estimators.emplace_back(name);
  Probe probe(model_config(run.config, run.images), options, backend, a.at_start ? 0 : run.step);
  set_variables(a, run, data, probe.model(), backend);

  BatchOrder order(data.train.count, run.config.batch, static_cast<std::uint32_t>(run.config.seed));
  Tensor images({DType::f32, {run.config.batch, run.images.height, run.images.width, run.images.channels}});
  std::vector<ProbeResult> results;
  for (std::int64_t i = 0; i < a.batches; ++i) {
    copy_images(data.train, order.indices(a.first + i), images);
    results.push_back(probe.run(images));
  }
  const ProbeResult mean = mean_of(results);
  const std::int64_t step = a.at_start ? 0 : run.step;
  if (a.json) {
    nlohmann::ordered_json batches = nlohmann::ordered_json::array();
    for (const ProbeResult& r : results) batches.push_back(json_of(r));
    const nlohmann::ordered_json out = {{"run", a.run},
                                        {"step", step},
                                        {"data", data.name},
                                        {"estimator", run.config.estimator},
                                        {"batch", run.config.batch},
                                        {"first_batch", a.first},
                                        {"shift", a.shift},
                                        {"mean", json_of(mean)},
                                        {"batches", batches}};
    fmt::print("{}\n", out.dump(2));
    return;
  }
  fmt::print("{} ({}) at step {}, batch{} {}", a.run, run.config.estimator, step, a.batches > 1 ? "es" : "", a.first);
  if (a.batches > 1) fmt::print(" to {}, means", a.first + a.batches - 1);
  fmt::print(", {} training images of {} each:\n", run.config.batch, data.name);
  print(a, mean);
}

}  // namespace

void add_probe(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "probe",
      "Compare what gradient estimators send to the encoder of a run: one forward, one backward for each, on the same "
      "batch.");
  const auto a = std::make_shared<ProbeArguments>();
  command->add_option("RUN", a->run, "run folder")->required();
  command->add_option("--estimators", a->estimators, "names, with commas between them; without it: all")
      ->delimiter(',');
  command->add_option("--batch-index", a->first, "the batch that this training step (from 0) had")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--batches", a->batches, "how many batches, from that one on; figures are means")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--step", a->steps,
                   "length of the steps along -gradient whose effect on the loss is measured, relative to |z|")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--shift", a->shift,
                      "also move z and all codes by one vector of this length, relative to the mean |z|, inside the "
                      "estimator: how much does its gradient change?");
  command->add_flag("--at-start", a->at_start, "probe the model as its training began, not the run's checkpoint");
  command->add_flag("--json", a->json, "print JSON");
  a->flags = std::make_unique<ConfigFlags>(*command, std::vector<std::string_view>{"Data", "Run"});
  command->footer(
      "G is an estimator's gradient of the reconstruction loss at the encoder's output z. exact: the gradient of the\n"
      "loss that decodes z itself. share of z: |G| / (|G| + |gradient of the quantizer's losses|). predicted: -|step| "
      "|G|.\n"
      "Examples:\n"
      "  stopgrad probe runs/first\n"
      "  stopgrad probe runs/first --estimators ste,rotation,g-scalar --batches 8 --step 0.001,0.01,0.1\n"
      "  stopgrad probe runs/first --at-start --shift 10 --json");
  command->callback([a] { probe(*a); });
}

}  // namespace sg::tools
