// bench step: time and memory of a training step, as a whole and by its parts. bench start: from the start of a process
// to the end of its first step.
#include "tools/bench_step.h"

#include <array>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>

#include "backends/backends.h"
#include "core/error.h"
#include "core/recompute.h"
#include "tools/bench_floor.h"
#include "tools/bench_process.h"
#include "tools/commands/bench.h"
#include "tools/progress.h"
#include "tools/task.h"

namespace sg::tools {
namespace {

using Json = nlohmann::ordered_json;
// Of the settings: those that a step depends on.
const std::vector<std::string_view> kGroups = {"Model", "Data", "Quantizer", "Training", "Run"};

struct StepArguments {
  std::string model = TrainConfig{}.model;
  std::int64_t repeats = 30, warm = 5;
  bool explain = false, floor = false, parts = false;
  std::string against;
  BenchOptions options;
  std::unique_ptr<ConfigFlags> flags;
};

// The whole step and each of its parts in the same rounds. The floor of a step: its products and convolutions, each
// measured alone, taken together.
void measure_parts(const StepArguments& a, BenchStep& step, std::string& table, Json& figures) {
  std::vector<StepPart> parts = parts_of(step.program().compiled_tape(), step.backend(), !a.parts);
  BenchGroup group{.title = "step", .variants = {{.name = "step", .run = [&step] { step.run(); }}}};
  for (StepPart& p : parts)
    group.variants.push_back(
        {.name = p.name, .run = [&p] { p.work.program->run(); }, .bytes = p.work.bytes(), .flop = p.work.flop});
  measure(group, a.options);
  const auto sum_of = [&](bool products_only) {
    std::vector<double> sums(static_cast<std::size_t>(a.options.rounds));
    for (std::size_t round = 0; round < sums.size(); ++round)
      for (std::size_t i = 0; i < parts.size(); ++i)
        if (parts[i].product || !products_only) sums[round] += parts[i].count * group.variants[i + 1].seconds[round];
    return sums;
  };
  const auto ratio_to = [&](const std::vector<double>& sums) {
    std::vector<double> ratios;
    for (std::size_t round = 0; round < sums.size(); ++round)
      ratios.push_back(group.variants[0].seconds[round] / sums[round]);
    return spread(std::move(ratios));
  };
  const auto text = [](const Spread& s) { return to_text(Spread{1e3 * s.median, 1e3 * s.least, 1e3 * s.greatest}, 3); };
  const std::vector<double> products = sum_of(true);
  Json floor = {{"step_seconds", to_json(group.time(group.variants[0]))}, {"rounds", a.options.rounds}};
  table += fmt::format("  in {} rounds, ms:     step {}", a.options.rounds, text(group.time(group.variants[0])));
  if (std::any_of(parts.begin(), parts.end(), [](const StepPart& p) { return p.product; })) {
    const Spread ratio = ratio_to(products);
    floor["products_seconds"] = to_json(spread(products));
    floor["step_to_products"] = to_json(ratio);
    table += fmt::format("; its products and convolutions alone {}\n  step to this floor    {}\n",
                         text(spread(products)), to_text(ratio, 3));
  } else {
    table += "; it has no products\n";
  }
  if (a.parts) {
    const Spread all = spread(sum_of(false));
    floor["all_parts_seconds"] = to_json(all);
    table += fmt::format("  all parts alone, ms   {}\n\n  {:<20} {:>5} {:>26} {:>8} {:>8} {:>8} {:>22}   what\n",
                         text(all), "part", "times", "ms each", "share", "GB/s", "GFLOP/s", "time / floor");
  }
  Json rows = Json::array();
  Floors floors(step.backend(), a.options);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    StepPart& p = parts[i];
    const BenchVariant& v = group.variants[i + 1];
    const Spread t = group.time(v);
    Json row = {{"op", p.name},          {"what", p.what},   {"count", p.count}, {"product", p.product},
                {"seconds", to_json(t)}, {"bytes", v.bytes}, {"flop", v.flop}};
    if (a.parts) {
      const BenchGroup against = floors.measure(p.name, p.work);
      const Spread ratio = against.ratio(against.variants[0]);
      row["floor_ratio"] = to_json(ratio);
      table += fmt::format("  {:<20} {:>5} {:>26} {:>7.1f}% {:>8.1f} {:>8.1f} {:>22}   {}\n", p.name, p.count, text(t),
                           100 * p.count * t.median / group.time(group.variants[0]).median, v.bytes / t.median * 1e-9,
                           v.flop / t.median * 1e-9, to_text(ratio, 2), p.what);
    }
    rows.push_back(row);
  }
  figures["floor"] = floor;
  figures["parts"] = rows;
}

// ---- the step

// As a word; empty where the model has it not.
std::string setting(const TrainConfig& config, std::string_view key) {
  const ConfigField& field = *find_field(key);
  if (!has_field(config.model, field)) return "";
  std::string text = text_of(config, field);
  std::erase(text, '"');
  return text;
}

// Settings given in one word, over those of the first step. Error{usage}.
TrainConfig other_settings(const std::string& text, const TrainConfig& base) {
  CLI::App parser("--against");
  const ConfigFlags flags(parser, kGroups);
  try {
    parser.parse(text);
  } catch (const CLI::ParseError& e) {
    fail(ErrorKind::usage, "--against '{}': {}", text, e.what());
  }
  TrainConfig config = flags.over(base);
  validate(config);
  return config;
}

// Two steps in the same rounds.
void measure_against(const StepArguments& a, BenchStep& step, const TrainConfig& config, std::string& table,
                     Json& figures) {
  BenchStep other(other_settings(a.against, config));
  BenchGroup group{.title = "the step and the one with other settings",
                   .variants = {{.name = "step", .run = [&step] { step.run(); }},
                                {.name = a.against, .run = [&other] { other.run(); }}}};
  measure(group, a.options);
  table += "\n" + to_text(group);
  figures["against"] = to_json(group);
}

void bench_step(StepArguments& a) {
  const TrainConfig config = a.flags->over(default_config(a.model));
  validate(config);
  a.options.backend = config.backend;
  BenchStep step(config, a.explain);
  for (std::int64_t i = 0; i < a.warm; ++i) step.run();
  std::vector<double> times;
  for (std::int64_t i = 0; i < a.repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    step.run();
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2], best = times.front(), slow = times[times.size() * 9 / 10];
  const double per_second = 1000.0 * step.units() / median;
  const ProgramStats stats = step.program().stats();
  const double peak_mb = peak_memory_mb();  // before parts and other steps take memory of their own

  Json figures = {{"model", config.model},
                  {"preset", setting(config, "preset")},
                  {"estimator", setting(config, "estimator")},
                  {"backend", config.backend},
                  {"batch", config.batch},
                  {"steps_timed", a.repeats},
                  {"median_ms", median},
                  {"min_ms", best},
                  {"p90_ms", slow},
                  {"per_second", per_second},
                  {"instructions", step.instructions},
                  {"record_ms", step.record_ms},
                  {"compile_ms", step.compile_ms},
                  {"first_run_ms", step.first_run_ms},
                  {"first_step_s", step.first_step_s},
                  {"peak_rss_mb", peak_mb},
                  {"arena_bytes", stats.arena_bytes},
                  {"sum_bytes", stats.sum_bytes},
                  {"lower_bound_bytes", stats.lower_bound_bytes},
                  {"persistent_bytes", stats.persistent_bytes},
                  {"scratch_bytes", stats.scratch_bytes},
                  {"program_steps", stats.steps},
                  {"reorders", stats.reorders},
                  {"loss", step.loss()}};
  const auto mb = [](std::size_t bytes) { return static_cast<double>(bytes) / 1048576.0; };
  std::string table = fmt::format("one training step: {}, {}", config.model, step.data());
  for (const char* key : {"preset", "estimator", "backend"})
    if (const std::string value = setting(config, key); !value.empty()) table += fmt::format(", {} {}", key, value);
  table += fmt::format(", {} threads\n", threads());
  table += fmt::format("  time of a step      median {:.1f} ms, best {:.1f}, 90 % below {:.1f}   ({} steps)\n", median,
                       best, slow, a.repeats);
  table += fmt::format("  a second            {:.0f} {}\n", per_second, step.unit());
  table += fmt::format("  recording           {:.1f} ms for {} instructions\n", step.record_ms, step.instructions);
  table += fmt::format("  compiling           {:.1f} ms\n", step.compile_ms);
  table += fmt::format("  first step done     {:.2f} s after the program was started\n", step.first_step_s);
  table += fmt::format(
      "  peak memory         {:.0f} MB resident; arena {:.1f} MB (without reuse {:.1f}, lower bound {:.1f})\n", peak_mb,
      mb(stats.arena_bytes), mb(stats.sum_bytes), mb(stats.lower_bound_bytes));
  if (const RecomputeOptions again = recompute_by_name(config.recompute); again.mode != RecomputeOptions::Mode::none) {
    table += fmt::format("  {}\n", stats.recompute.to_string(again));
    figures["recompute"] = {{"setting", config.recompute},
                            {"segments", stats.recompute.segments},
                            {"instructions", stats.recompute.instructions},
                            {"largest_live_set_without", stats.recompute.before},
                            {"largest_live_set", stats.recompute.after}};
  }
  if (a.floor || a.parts) measure_parts(a, step, table, figures);
  if (!a.against.empty()) measure_against(a, step, config, table, figures);
  if (a.explain)
    table += "\n" + step.program().explain() + "\n";
  else
    table += "  --explain lists the compiled steps and the time of each kind\n";
  report(a.options, "bench step", table, std::move(figures));
}

// ---- start

struct StartArguments {
  std::vector<std::string> models;
  std::string preset;
  BenchOptions options;
};

void bench_start(const StartArguments& a) {
  start_bench(a.options);
  const std::vector<std::string> models = a.models.empty() ? task_names() : a.models;
  for (const std::string& model : models) task_def(model);  // or an error that lists them
  constexpr std::array kTimes = {"first_step_s", "record_ms", "compile_ms", "first_run_ms", "peak_rss_mb"};
  // seconds or megabytes, [quantity][model][round]
  std::map<std::string, std::map<std::string, std::vector<double>>> values;
  std::map<std::string, Json> last;
  for (std::int64_t round = 0; round < a.options.rounds; ++round)
    for (const std::string& model : models) {
      std::vector<std::string> arguments = {
          model, "--repeats", "1", "--warm", "0", "--threads", std::to_string(threads())};
      if (!a.preset.empty()) arguments.insert(arguments.end(), {"--preset", a.preset});
      Json figures = step_in_process(arguments);
      for (const char* quantity : kTimes) values[quantity][model].push_back(figures[quantity].get<double>());
      last[model] = std::move(figures);
    }
  std::string table = fmt::format(
      "a process each, medians of {} (least-greatest)\n  {:<20} {:>20} {:>18} {:>22} {:>20} {:>18} {:>12}\n",
      a.options.rounds, "model", "first step, s", "recording, ms", "compiling, ms", "first run, ms", "peak RSS, MB",
      "arena/bound");
  Json rows = Json::array();
  for (const std::string& model : models) {
    const auto of = [&](const char* quantity) { return spread(values[quantity][model]); };
    const double arena = last[model]["arena_bytes"].get<double>(),
                 bound = last[model]["lower_bound_bytes"].get<double>();
    table += fmt::format("  {:<20} {:>20} {:>18} {:>22} {:>20} {:>18} {:>12.3f}\n", model,
                         to_text(of("first_step_s"), 2), to_text(of("record_ms"), 1), to_text(of("compile_ms"), 1),
                         to_text(of("first_run_ms"), 1), to_text(of("peak_rss_mb"), 0), arena / bound);
    Json row = {{"model", model}};
    for (const char* quantity : kTimes) row[quantity] = to_json(of(quantity));
    row.update({{"arena_bytes", arena}, {"lower_bound_bytes", bound}});
    rows.push_back(row);
  }
  report(a.options, "bench start", table, {{"models", rows}});
}

}  // namespace

void add_bench_step(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand("step", "One training step of a model, on drawn images.");
  const auto a = std::make_shared<StepArguments>();
  command->add_option("model", a->model, "which model: " + model_list())->capture_default_str();
  command->add_option("--repeats", a->repeats, "steps to time")->check(CLI::Range(1, 1000000))->capture_default_str();
  command->add_option("--warm", a->warm, "steps before that")->check(CLI::Range(0, 1000000))->capture_default_str();
  command->add_flag("--explain", a->explain, "time each kind of step and list the compiled program");
  command->add_flag("--floor", a->floor, "compare with its products and convolutions, each measured alone");
  command->add_flag("--parts", a->parts, "as --floor, and measure every part of the step against its own floor");
  command->add_option("--against", a->against,
                      "settings of another step, in one word, to be timed in turns with this one");
  add_bench_options(*command, a->options, false);
  a->flags = std::make_unique<ConfigFlags>(*command, kGroups, "model");
  command->footer(
      "Examples:\n  stopgrad bench step\n  stopgrad bench step vqvae --preset large --threads 1 --estimator rotation "
      "--json -\n  stopgrad bench step --parts\n  stopgrad bench step --against \"--estimator rotation\"");
  command->callback([a] { bench_step(*a); });
}

void add_bench_start(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand(
      "start", "Start-up, compile time, first step and memory of models, in processes of their own.");
  const auto a = std::make_shared<StartArguments>();
  a->options.rounds = 5;
  command->add_option("models", a->models, "which models; all where none is given");
  command->add_option("--preset", a->preset, "of the models");
  add_bench_options(*command, a->options);
  command->footer("Examples:\n  stopgrad bench start\n  stopgrad bench start vqvae --preset large");
  command->callback([a] { bench_start(*a); });
}

}  // namespace sg::tools
