#include "tools/bench_step.h"

#include <chrono>
#include <map>

#include "core/row_program.h"
#include "tools/data/loader.h"
#include "tools/progress.h"
#include "tools/session.h"

namespace sg::tools {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

ImageSize size_of_preset(const TrainConfig& config) {
  const VqVaeConfig sizes = vqvae_preset(config.preset);
  return {sizes.height, sizes.width, sizes.channels};
}

std::string types_of(const Tape& tape, const Instr& instr) {
  std::string out;
  for (const std::int32_t input : instr.inputs) out += (out.empty() ? "" : " ") + to_string(tape.type(input));
  out += " ->";
  for (const std::int32_t output : instr.outputs) out += " " + to_string(tape.type(output));
  return out;
}

}  // namespace

struct BenchStep::State {
  explicit State(const TrainConfig& config)
      : backend(start_backend(config)),
        model(model_config(config, size_of_preset(config))),
        training(model),
        batch({DType::f32, {config.batch, model.config().height, model.config().width, model.config().channels}}),
        rate(Tensor::full({DType::f32, {}}, config.lr)) {}

  Backend& backend;
  VqVae model;
  VqVaeTraining training;
  Tensor batch, rate;
  Tape tape;
  TrainStep step;
  std::optional<Program> program;
};

BenchStep::BenchStep(const TrainConfig& config, bool profile) : state_(std::make_unique<State>(config)) {
  State& s = *state_;
  const ImageSize images = size_of_preset(config);
  const ImageSet shapes = draw_shapes(config.batch, images.height, images.channels, 1);
  copy_images(shapes, BatchOrder(shapes.count, config.batch, 1).indices(0), s.batch);
  initialize_codebook(s.model, s.batch, s.backend);
  data_ = fmt::format("{} of {}", config.batch, to_string(images));

  const auto record_start = Clock::now();
  s.step = build_train_step(s.tape, s.training);
  const auto compile_start = Clock::now();
  s.program.emplace(
      compile(s.tape, s.step.fetches(), s.backend, {.check_finite = config.check_finite, .profile = profile}));
  const auto first_start = Clock::now();
  run();
  first_run_ms = milliseconds(Clock::now() - first_start);
  first_step_s = seconds_since_start();
  record_ms = milliseconds(compile_start - record_start);
  compile_ms = milliseconds(first_start - compile_start);
  instructions = s.tape.instrs().size();
}

BenchStep::~BenchStep() = default;

void BenchStep::run() {
  State& s = *state_;
  s.program->feed(s.step.images, s.batch);
  s.program->feed(s.step.learning_rate, s.rate);
  s.program->run();
  loss_ = s.program->fetch_scalar(s.step.total);
}

const Program& BenchStep::program() const { return *state_->program; }
Backend& BenchStep::backend() const { return state_->backend; }

std::vector<StepPart> parts_of(const Tape& tape, Backend& backend, bool products_only) {
  std::vector<StepPart> parts;
  std::map<std::string, std::size_t> known;
  for (const Instr& instr : tape.instrs()) {
    if (!has_work(instr) || (products_only && !is_product(instr))) continue;
    const std::string name(op_def(instr.op).name), what = types_of(tape, instr);
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

}  // namespace sg::tools
