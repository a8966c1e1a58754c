// bench step: time and memory of a training step, as a whole and by its parts. bench start: from the start of a process
// to the end of its first step.
#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "backends/backends.h"
#include "core/error.h"
#include "core/row_program.h"
#include "tools/bench_floor.h"
#include "tools/commands/bench.h"
#include "tools/data/loader.h"
#include "tools/progress.h"
#include "tools/session.h"

namespace sg::tools {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

double milliseconds(Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

struct StepArguments {
  std::string model = TrainConfig{}.model;
  std::int64_t repeats = 30, warm = 5;
  bool explain = false, floor = false, parts = false;
  BenchOptions options;
  std::unique_ptr<ConfigFlags> flags;
};

// ---- parts of a step

// Instructions of a compiled step that are the same work: one of them, and how often.
struct Part {
  std::string name, what;
  bool product = false;
  int count = 1;
  BenchWork work;
};

std::string describe_part(const Tape& tape, const Instr& instr) {
  std::string out;
  for (const std::int32_t input : instr.inputs) out += (out.empty() ? "" : " ") + to_string(tape.type(input));
  out += " ->";
  for (const std::int32_t output : instr.outputs) out += " " + to_string(tape.type(output));
  return out;
}

std::vector<Part> parts_of(const Tape& tape, Backend& backend, bool products_only) {
  std::vector<Part> parts;
  std::map<std::string, std::size_t> known;
  for (const Instr& instr : tape.instrs()) {
    if (!has_work(instr) || (products_only && !is_product(instr))) continue;
    const std::string name(op_def(instr.op).name), what = describe_part(tape, instr);
    const std::string meaning = op_def(instr.op).role == Role::region
                                    ? tape.row_program(instr.attrs.i("program")).formula()
                                    : to_string(instr.attrs);
    const auto [at, is_new] = known.try_emplace(name + what + meaning, parts.size());
    if (is_new)
      parts.push_back({name, what, is_product(instr), 1, isolate(tape, instr, backend)});
    else
      ++parts[at->second].count;
  }
  return parts;
}

// The whole step and each of its parts in the same rounds. The floor of a step: its products and convolutions, each
// measured alone, taken together.
void measure_parts(const StepArguments& a, const std::function<void()>& step, const Tape& compiled, Backend& backend,
                   std::string& table, Json& figures) {
  std::vector<Part> parts = parts_of(compiled, backend, !a.parts);
  BenchGroup group{.title = "step", .variants = {{.name = "step", .run = step}}};
  for (Part& p : parts)
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
  if (std::any_of(parts.begin(), parts.end(), [](const Part& p) { return p.product; })) {
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
  Floors floors(backend, a.options);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Part& p = parts[i];
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

void bench_step(const StepArguments& a) {
  TrainConfig config = a.flags->over({});
  config.model = a.model;
  validate(config);
  Backend& backend = start_backend(config);
  const VqVaeConfig sizes = vqvae_preset(config.preset);
  const ImageSize images{sizes.height, sizes.width, sizes.channels};
  VqVae model(model_config(config, images));
  VqVaeTraining training(model);

  // Drawn shapes: zeros as input take another time than data do.
  const ImageSet shapes = draw_shapes(config.batch, images.height, images.channels, 1);
  Tensor batch({DType::f32, {config.batch, images.height, images.width, images.channels}});
  copy_images(shapes, BatchOrder(shapes.count, config.batch, 1).indices(0), batch);
  initialize_codebook(model, batch, backend);
  const Tensor rate = Tensor::full({DType::f32, {}}, config.lr);

  Tape tape;
  const auto record_start = Clock::now();
  const TrainStep step = build_train_step(tape, training);
  const auto compile_start = Clock::now();
  Program program = compile(tape, step.fetches(), backend, {.check_finite = config.check_finite, .profile = a.explain});
  const auto first_start = Clock::now();
  double loss = 0;
  const auto run = [&] {
    program.feed(step.images, batch);
    program.feed(step.learning_rate, rate);
    program.run();
    loss = program.fetch_scalar(step.total);
  };
  run();
  const auto first_end = Clock::now();
  const double first_step = seconds_since_start();
  for (std::int64_t i = 0; i < a.warm; ++i) run();
  std::vector<double> times;
  for (std::int64_t i = 0; i < a.repeats; ++i) {
    const auto start = Clock::now();
    run();
    times.push_back(milliseconds(Clock::now() - start));
  }
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2], best = times.front(), slow = times[times.size() * 9 / 10];
  const double per_second = 1000.0 * static_cast<double>(config.batch) / median;
  const ProgramStats stats = program.stats();
  const double record_ms = milliseconds(compile_start - record_start),
               compile_ms = milliseconds(first_start - compile_start);
  // Before the parts take memory of their own.
  const double peak_mb = peak_memory_mb();

  Json figures = {{"model", config.model},
                  {"preset", config.preset},
                  {"estimator", config.estimator},
                  {"backend", config.backend},
                  {"batch", config.batch},
                  {"steps_timed", a.repeats},
                  {"median_ms", median},
                  {"min_ms", best},
                  {"p90_ms", slow},
                  {"images_per_second", per_second},
                  {"instructions", tape.instrs().size()},
                  {"record_ms", record_ms},
                  {"compile_ms", compile_ms},
                  {"first_run_ms", milliseconds(first_end - first_start)},
                  {"first_step_s", first_step},
                  {"peak_rss_mb", peak_mb},
                  {"arena_bytes", stats.arena_bytes},
                  {"sum_bytes", stats.sum_bytes},
                  {"lower_bound_bytes", stats.lower_bound_bytes},
                  {"persistent_bytes", stats.persistent_bytes},
                  {"scratch_bytes", stats.scratch_bytes},
                  {"program_steps", stats.steps},
                  {"reorders", stats.reorders},
                  {"loss", loss}};
  const auto mb = [](std::size_t bytes) { return static_cast<double>(bytes) / 1048576.0; };
  std::string table =
      fmt::format("one training step: {} {}, batch {} of {}, estimator {}, backend {}, {} threads\n", config.model,
                  config.preset, config.batch, to_string(images), config.estimator, config.backend, threads());
  table += fmt::format("  time of a step      median {:.1f} ms, best {:.1f}, 90 % below {:.1f}   ({} steps)\n", median,
                       best, slow, a.repeats);
  table += fmt::format("  images a second     {:.0f}\n", per_second);
  table += fmt::format("  recording           {:.1f} ms for {} instructions\n", record_ms, tape.instrs().size());
  table += fmt::format("  compiling           {:.1f} ms\n", compile_ms);
  table += fmt::format("  first step done     {:.2f} s after the program was started\n", first_step);
  table += fmt::format(
      "  peak memory         {:.0f} MB resident; arena {:.1f} MB (without reuse {:.1f}, lower bound {:.1f})\n", peak_mb,
      mb(stats.arena_bytes), mb(stats.sum_bytes), mb(stats.lower_bound_bytes));
  if (a.floor || a.parts) measure_parts(a, run, program.compiled_tape(), backend, table, figures);
  if (a.explain)
    table += "\n" + program.explain() + "\n";
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

std::string quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

// What the command prints on standard output. Error{io} where it fails.
std::string output_of(const std::string& command) {
  std::FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) fail(ErrorKind::io, "bench start: cannot run {}", command);
  std::string text;
  std::array<char, 4096> chunk{};
  for (std::size_t got; (got = std::fread(chunk.data(), 1, chunk.size(), pipe)) > 0;) text.append(chunk.data(), got);
  if (pclose(pipe) != 0) fail(ErrorKind::io, "bench start: {} failed", command);
  return text;
}

void bench_start(const StartArguments& a) {
  start_bench(a.options);
  const std::vector<std::string> known = find_field("model")->choices();
  const std::vector<std::string> models = a.models.empty() ? known : a.models;
  for (const std::string& model : models)
    if (std::find(known.begin(), known.end(), model) == known.end())
      fail(ErrorKind::usage, "model '{}' is unknown; choose one of: {}", model, fmt::join(known, ", "));
  const std::string program = quoted(std::filesystem::read_symlink("/proc/self/exe").string());
  constexpr std::array kTimes = {"first_step_s", "record_ms", "compile_ms", "first_run_ms", "peak_rss_mb"};
  // seconds or megabytes, [quantity][model][round]
  std::map<std::string, std::map<std::string, std::vector<double>>> values;
  std::map<std::string, Json> last;
  for (std::int64_t round = 0; round < a.options.rounds; ++round)
    for (const std::string& model : models) {
      std::string command =
          fmt::format("{} bench step {} --repeats 1 --warm 0 --json - --threads {}", program, quoted(model), threads());
      if (!a.preset.empty()) command += " --preset " + quoted(a.preset);
      Json figures = Json::parse(output_of(command));
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
  command->add_option("model", a->model, "which model")->capture_default_str();
  command->add_option("--repeats", a->repeats, "steps to time")->check(CLI::Range(1, 1000000))->capture_default_str();
  command->add_option("--warm", a->warm, "steps before that")->check(CLI::Range(0, 1000000))->capture_default_str();
  command->add_flag("--explain", a->explain, "time each kind of step and list the compiled program");
  command->add_flag("--floor", a->floor, "compare with its products and convolutions, each measured alone");
  command->add_flag("--parts", a->parts, "as --floor, and measure every part of the step against its own floor");
  add_bench_options(*command, a->options, false);
  a->flags =
      std::make_unique<ConfigFlags>(*command, std::vector<std::string_view>{"Model", "Quantizer", "Training", "Run"});
  command->footer(
      "Examples:\n  stopgrad bench step\n  stopgrad bench step vqvae --preset large --threads 1 --estimator rotation "
      "--json -\n  stopgrad bench step --parts");
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
