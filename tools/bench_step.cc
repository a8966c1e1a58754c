#include "tools/bench_step.h"

#include <algorithm>
#include <chrono>
#include <map>

#include "core/recompute.h"
#include "core/row_bundle.h"
#include "ops/op_ids.h"
#include "tools/bench_runner.h"
#include "tools/progress.h"
#include "tools/session.h"
#include "tools/task.h"

namespace sg::tools {
namespace {

using Clock = std::chrono::steady_clock;

bool reads_images(const TrainConfig& config) { return has_field(config.model, *find_field("data")); }

double milliseconds(Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

// Drawn images, as many as a batch, where the model's data are images and none were named.
TrainConfig with_drawn_data(TrainConfig config) {
  if (!reads_images(config)) return config;
  if (config.data == TrainConfig{}.data) config.data = "synthetic";
  // Of images a batch is enough; a text is read as it is.
  if (config.limit == 0 && has_field(config.model, *find_field("image_size"))) config.limit = config.batch;
  return config;
}

// How many values an i32 input may have: as few as the tables that it points into have rows.
std::int64_t values_of(const Tape& tape, std::int32_t input) {
  std::vector<bool> same(static_cast<std::size_t>(tape.value_count()), false);
  same[static_cast<std::size_t>(input)] = true;
  std::int64_t least = 0;
  for (const Instr& instr : tape.instrs())
    for (std::size_t i = 0; i < instr.inputs.size(); ++i) {
      if (!same[static_cast<std::size_t>(instr.inputs[i])]) continue;
      if ((op_def(instr.op).moves && instr.inputs.size() == 1) || op_def(instr.op).role == Role::alias) {
        same[static_cast<std::size_t>(instr.outputs[0])] = true;
        continue;
      }
      const bool labels = instr.op == OpId::cross_entropy;
      if (!labels && instr.op != OpId::gather_rows && instr.op != OpId::scatter_add_rows && instr.op != OpId::one_hot &&
          instr.op != OpId::histogram)
        continue;
      const std::int64_t limit = labels ? tape.type(instr.inputs[0]).shape[-1] : index_limit(tape, instr);
      least = least == 0 ? limit : std::min(least, limit);
    }
  return std::max<std::int64_t>(least, 1);
}

std::string types_of(const Tape& tape, const Instr& instr) {
  std::string out;
  for (const std::int32_t input : instr.inputs) out += (out.empty() ? "" : " ") + to_string(tape.type(input));
  out += " ->";
  for (const std::int32_t output : instr.outputs) out += " " + to_string(tape.type(output));
  return out;
}

// What tells instructions of one op and one type apart: where the attributes are numbers of programs, these.
std::string meaning_of(const Tape& tape, const Instr& instr) {
  const Role role = op_def(instr.op).role;
  if (role == Role::region) return tape.row_program(instr.attrs.i("program")).formula();
  if (role != Role::bundle) return to_string(instr.attrs);
  std::string text;
  for (const RowBundle::Region& region : row_bundle(tape, instr).regions) text += region.program->formula() + "\n";
  return text;
}

}  // namespace

namespace {
Backend& timed_backend(const TrainConfig& config) {
  Backend& backend = start_backend(config);
  refuse_emulated(backend);
  return backend;
}
}  // namespace

struct BenchStep::State {
  explicit State(const TrainConfig& config)
      : backend(timed_backend(config)),
        task(make_task({with_drawn_data(config), reads_images(config) ? &data : nullptr})),
        rate(Tensor::full({DType::f32, {}}, config.lr)) {}

  Backend& backend;
  DataCache data;
  std::unique_ptr<Task> task;
  Tensor rate;
  Tape tape;
  TaskStep step;
  std::optional<Program> program;
};

BenchStep::BenchStep(const TrainConfig& config, bool profile) : state_(std::make_unique<State>(config)) {
  State& s = *state_;
  if (reads_images(config)) s.task->start(s.backend);
  data_ = fmt::format("{} {} of {}", s.task->units_per_step(), s.task->unit(), s.task->data_shape());

  const auto record_start = Clock::now();
  s.step = s.task->record(s.tape, IfUnreachable::zero);
  const auto compile_start = Clock::now();
  std::vector<Value> fetches;
  for (const NamedValue& m : s.step.metrics) fetches.push_back(m.value);
  s.program.emplace(compile(
      s.tape, fetches, s.backend,
      {.check_finite = config.check_finite, .profile = profile, .recompute = recompute_by_name(config.recompute)}));
  const auto first_start = Clock::now();
  if (reads_images(config)) {
    s.task->feed(*s.program, 0);
    s.task->end_feeding();
  } else {
    for (const Instr& instr : s.tape.instrs())
      if (op_def(instr.op).role == Role::input) {
        const Value input = s.tape.value(instr.outputs[0]);
        s.program->feed(input, drawn(input.type(), {.limit = values_of(s.tape, input.id)}));
      }
  }
  s.program->feed(s.step.learning_rate, s.rate);
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
  s.program->run();
  loss_ = s.program->fetch_scalar(s.step.metrics.front().value);
}

const Program& BenchStep::program() const { return *state_->program; }
Backend& BenchStep::backend() const { return state_->backend; }
double BenchStep::units() const { return static_cast<double>(state_->task->units_per_step()); }
std::string BenchStep::unit() const { return state_->task->unit(); }

std::vector<StepPart> parts_of(const Tape& tape, Backend& backend, bool products_only) {
  std::vector<StepPart> parts;
  std::map<std::string, std::size_t> known;
  for (const Instr& instr : tape.instrs()) {
    if (!has_work(instr) || (products_only && !is_product(instr))) continue;
    const std::string name(op_def(instr.op).name), what = types_of(tape, instr);
    const std::string meaning = meaning_of(tape, instr);
    const auto [at, is_new] = known.try_emplace(name + what + meaning, parts.size());
    if (is_new)
      parts.push_back({name, what, is_product(instr), 1, isolate(tape, instr, backend)});
    else
      ++parts[at->second].count;
  }
  return parts;
}

}  // namespace sg::tools
