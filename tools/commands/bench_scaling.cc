// bench scaling: how the time and the memory of a training step grow with the batch, the codes, their length and the
// threads, as figures and as a picture.
#include <sstream>
#include <thread>

#include "core/error.h"
#include "tools/bench_process.h"
#include "tools/commands/bench.h"
#include "tools/images.h"
#include "tools/plot.h"

namespace sg::tools {
namespace {

using Json = nlohmann::ordered_json;
using Ints = std::vector<std::int64_t>;

struct Axis {
  std::string flag, label;  // of `bench step`
  Ints values;
  // [value][round]
  std::vector<std::vector<double>> milliseconds = {}, megabytes = {};
};

struct ScalingArguments {
  Ints batches = {32, 64, 128, 192, 256}, codes = {256, 1024, 2048, 4096, 8192}, lengths = {16, 64, 128, 192, 256},
       thread_counts;
  std::int64_t repeats = 15, warm = 3;
  std::string picture, with;
  BenchOptions options;
};

// 1, 2, 4, ... and all.
Ints default_thread_counts() {
  const auto all = static_cast<std::int64_t>(std::max(1u, std::thread::hardware_concurrency()));
  Ints out;
  for (std::int64_t n = 1; n < all; n *= 2) out.push_back(n);
  out.push_back(all);
  return out;
}

Panel panel(const Axis& axis, std::string title, const std::vector<std::vector<double>>& measured) {
  Panel out;
  out.title = std::move(title);
  out.x_label = axis.label;
  out.from_zero = true;
  Curve median, least, greatest;
  least.thin = greatest.thin = true;
  least.color = greatest.color = median.color = palette(0);
  for (std::size_t i = 0; i < axis.values.size(); ++i) {
    const Spread s = spread(measured[i]);
    const auto x = static_cast<double>(axis.values[i]);
    for (auto [curve, y] : {std::pair(&median, s.median), {&least, s.least}, {&greatest, s.greatest}})
      curve->x.push_back(x), curve->y.push_back(y);
  }
  out.curves = {median, least, greatest};
  return out;
}

void bench_scaling(const ScalingArguments& a) {
  start_bench(a.options);
  std::vector<std::string> common = {"--repeats", std::to_string(a.repeats), "--warm", std::to_string(a.warm)};
  std::istringstream words(a.with);
  for (std::string word; words >> word;) common.push_back(word);
  std::vector<Axis> axes = {{"--batch", "images in a batch", a.batches},
                            {"--codes", "codes", a.codes},
                            {"--code-dim", "length of a code", a.lengths},
                            {"--threads", "threads", a.thread_counts}};
  for (Axis& axis : axes) {
    axis.milliseconds.resize(axis.values.size());
    axis.megabytes.resize(axis.values.size());
  }
  for (std::int64_t round = 0; round < a.options.rounds; ++round)
    for (Axis& axis : axes)
      for (std::size_t i = 0; i < axis.values.size(); ++i) {
        std::vector<std::string> arguments = common;
        arguments.insert(arguments.end(), {axis.flag, std::to_string(axis.values[i])});
        if (axis.flag != "--threads" && a.options.threads > 0)
          arguments.insert(arguments.end(), {"--threads", std::to_string(a.options.threads)});
        const Json figures = step_in_process(arguments);
        axis.milliseconds[i].push_back(figures["median_ms"].get<double>());
        axis.megabytes[i].push_back(figures["peak_rss_mb"].get<double>());
      }
  std::string table =
      fmt::format("a training step; a process each, medians of {} (least-greatest)\n", a.options.rounds);
  Json all = Json::array();
  std::vector<Panel> panels;
  for (const Axis& axis : axes) {
    table += fmt::format("  {:>18} {:>26} {:>22}\n", axis.label, "step, ms", "peak RSS, MB");
    Json points = Json::array();
    for (std::size_t i = 0; i < axis.values.size(); ++i) {
      const Spread ms = spread(axis.milliseconds[i]), mb = spread(axis.megabytes[i]);
      table += fmt::format("  {:>18} {:>26} {:>22}\n", axis.values[i], to_text(ms, 1), to_text(mb, 0));
      points.push_back({{"value", axis.values[i]}, {"step_ms", to_json(ms)}, {"peak_rss_mb", to_json(mb)}});
    }
    all.push_back({{"flag", axis.flag}, {"label", axis.label}, {"points", points}});
    panels.push_back(panel(axis, "ms a step", axis.milliseconds));
  }
  for (const Axis& axis : axes) panels.push_back(panel(axis, "MB resident at most", axis.megabytes));
  if (!a.picture.empty()) save_png(a.picture, draw_panels(panels, static_cast<int>(axes.size()), {360, 260}));
  report(a.options, "bench scaling", table, {{"with", a.with}, {"axes", all}});
}

}  // namespace

void add_bench_scaling(CLI::App& bench) {
  CLI::App* command =
      bench.add_subcommand("scaling", "How a step's time and memory grow with batch, codes, their length and threads.");
  const auto a = std::make_shared<ScalingArguments>();
  a->options.rounds = 3;
  a->thread_counts = default_thread_counts();
  const auto list = [&](const char* flag, Ints& values, const char* help) {
    command->add_option(flag, values, help)->delimiter(',')->check(CLI::PositiveNumber)->capture_default_str();
  };
  list("--batches", a->batches, "images in a batch");
  list("--codes", a->codes, "sizes of the codebook");
  list("--code-dims", a->lengths, "lengths of a code");
  list("--thread-counts", a->thread_counts, "threads");
  command->add_option("--repeats", a->repeats, "steps to time in each process")->check(CLI::Range(1, 1000000));
  command->add_option("--warm", a->warm, "steps before that")->check(CLI::Range(0, 1000000));
  command->add_option("--with", a->with, "further flags of `bench step`, in one word");
  command->add_option("--picture", a->picture, "draw them into this PNG file");
  add_bench_options(*command, a->options);
  command->footer(
      "Examples:\n  stopgrad bench scaling --picture scaling.png --json scaling.json\n  stopgrad bench scaling --with "
      "\"--preset large\" --batches 16,32,64");
  command->callback([a] { bench_scaling(*a); });
}

}  // namespace sg::tools
