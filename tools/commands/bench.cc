// bench: time and memory of the training step that the documentation measures.
#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "backends/backends.h"
#include "core/error.h"
#include "core/program.h"
#include "tools/commands/commands.h"
#include "tools/data/loader.h"
#include "tools/progress.h"
#include "tools/session.h"

namespace sg::tools {
namespace {

struct BenchArguments {
  std::int64_t repeats = 30, warm = 5;
  bool json = false, explain = false;
  std::unique_ptr<ConfigFlags> flags;
};

double milliseconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double, std::milli>(d).count();
}

void bench(const BenchArguments& a) {
  const TrainConfig config = a.flags->over({});
  validate(config);
  Backend& backend = start_backend(config);
  const VqVaeConfig sizes = vqvae_preset(config.preset);
  const ImageSize images{sizes.height, sizes.width, sizes.channels};
  VqVae model(model_config(config, images));
  VqVaeTraining training(model);

  // Drawn shapes: zeros as input take another time than data do.
  const ImageSet drawn = draw_shapes(config.batch, images.height, images.channels, 1);
  Tensor batch({DType::f32, {config.batch, images.height, images.width, images.channels}});
  copy_images(drawn, BatchOrder(drawn.count, config.batch, 1).indices(0), batch);
  initialize_codebook(model, batch, backend);
  const Tensor rate = Tensor::full({DType::f32, {}}, config.lr);

  using Clock = std::chrono::steady_clock;
  Tape tape;
  const auto record_start = Clock::now();
  const TrainStep step = build_train_step(tape, training);
  const auto compile_start = Clock::now();
  Program program = compile(tape, step.fetches(), backend, {.check_finite = config.check_finite, .profile = a.explain});
  const auto first_start = Clock::now();
  const auto run = [&] {
    program.feed(step.images, batch);
    program.feed(step.learning_rate, rate);
    program.run();
    return program.fetch_scalar(step.total);
  };
  run();
  const auto first_end = Clock::now();
  const double first_step = seconds_since_start();
  for (std::int64_t i = 0; i < a.warm; ++i) run();
  std::vector<double> times;
  double loss = 0;
  for (std::int64_t i = 0; i < a.repeats; ++i) {
    const auto start = Clock::now();
    loss = run();
    times.push_back(milliseconds(Clock::now() - start));
  }
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2], best = times.front(), slow = times[times.size() * 9 / 10];
  const double per_second = 1000.0 * static_cast<double>(config.batch) / median;
  const ProgramStats stats = program.stats();
  const double record_ms = milliseconds(compile_start - record_start),
               compile_ms = milliseconds(first_start - compile_start);

  if (a.json) {
    const nlohmann::ordered_json out = {{"preset", config.preset},
                                        {"estimator", config.estimator},
                                        {"backend", config.backend},
                                        {"threads", threads()},
                                        {"batch", config.batch},
                                        {"steps_timed", a.repeats},
                                        {"median_ms", median},
                                        {"min_ms", best},
                                        {"p90_ms", slow},
                                        {"images_per_second", per_second},
                                        {"record_ms", record_ms},
                                        {"compile_ms", compile_ms},
                                        {"first_run_ms", milliseconds(first_end - first_start)},
                                        {"first_step_s", first_step},
                                        {"peak_rss_mb", peak_memory_mb()},
                                        {"arena_bytes", stats.arena_bytes},
                                        {"sum_bytes", stats.sum_bytes},
                                        {"lower_bound_bytes", stats.lower_bound_bytes},
                                        {"persistent_bytes", stats.persistent_bytes},
                                        {"scratch_bytes", stats.scratch_bytes},
                                        {"program_steps", stats.steps},
                                        {"loss", loss}};
    fmt::print("{}\n", out.dump(2));
    return;
  }
  const auto mb = [](std::size_t bytes) { return static_cast<double>(bytes) / 1048576.0; };
  fmt::print("one training step: vqvae {}, batch {} of {}, estimator {}, backend {}, {} threads\n", config.preset,
             config.batch, to_string(images), config.estimator, config.backend, threads());
  fmt::print("  time of a step      median {:.1f} ms, best {:.1f}, 90 % below {:.1f}   ({} steps)\n", median, best,
             slow, a.repeats);
  fmt::print("  images a second     {:.0f}\n", per_second);
  fmt::print("  recording           {:.1f} ms for {} instructions\n", record_ms, tape.instrs().size());
  fmt::print("  compiling           {:.1f} ms\n", compile_ms);
  fmt::print("  first step done     {:.2f} s after the program was started\n", first_step);
  fmt::print("  peak memory         {:.0f} MB resident; arena {:.1f} MB (without reuse {:.1f}, lower bound {:.1f})\n",
             peak_memory_mb(), mb(stats.arena_bytes), mb(stats.sum_bytes), mb(stats.lower_bound_bytes));
  if (a.explain)
    fmt::print("\n{}\n", program.explain());
  else
    fmt::print("  --explain lists the compiled steps and the time of each kind\n");
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* command = app.add_subcommand("bench", "Time one training step of the baseline network, on drawn images.");
  const auto a = std::make_shared<BenchArguments>();
  command->add_option("--repeats", a->repeats, "steps to time")->check(CLI::Range(1, 1000000))->capture_default_str();
  command->add_option("--warm", a->warm, "steps before that")->check(CLI::Range(0, 1000000))->capture_default_str();
  command->add_flag("--json", a->json, "print JSON");
  command->add_flag("--explain", a->explain, "time each kind of step and list the compiled program");
  a->flags =
      std::make_unique<ConfigFlags>(*command, std::vector<std::string_view>{"Model", "Quantizer", "Training", "Run"});
  command->footer(
      "Examples:\n  stopgrad bench\n  stopgrad bench --preset large --threads 1 --estimator rotation --json\n  "
      "stopgrad bench --explain");
  command->callback([a] { bench(*a); });
}

}  // namespace sg::tools
