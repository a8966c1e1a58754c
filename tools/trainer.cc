#include "tools/trainer.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>

#include "backends/backends.h"
#include "core/program.h"
#include "models/schedule.h"
#include "tools/curves.h"
#include "tools/files.h"
#include "tools/flow_report.h"
#include "tools/memory.h"
#include "tools/program.h"
#include "tools/progress.h"
#include "tools/session.h"

namespace sg::tools {
namespace {

using Clock = std::chrono::steady_clock;

// Everything of a run that lives as long as its training steps.
class Trainer {
 public:
  explicit Trainer(const TrainRequest& request);
  TrainResult run();

 private:
  void open_folder();
  void print_heading() const;
  void print_first_step(const Metrics& m) const;
  Metrics step();
  Metrics checked_step();
  std::string last_checkpoint() const;
  void save();
  TrainResult finish();
  void print_end(const TrainResult& result, const std::vector<std::string>& files) const;
  Schedule schedule() const;
  std::string pace_text(double per_second) const { return fmt::format("{:.0f} {}/s", per_second, task_->unit()); }
  double units() const { return static_cast<double>(task_->units_per_step()); }

  const TrainRequest& request_;
  const TrainConfig& config_;
  Backend& backend_;
  std::size_t available_;  // bytes of memory, before anything was made
  DataCache own_data_;
  std::unique_ptr<Task> task_;
  std::int64_t steps_per_epoch_, steps_;
  std::int64_t first_step_ = 0, step_ = 0, saved_step_ = 0;  // saved_step_ 0: no checkpoint
  std::optional<RunFolder> folder_;
  std::vector<Metrics> history_;
  std::unique_ptr<MetricsLog> log_;
  Tape tape_;
  TaskStep recorded_;
  FlowReport flow_;
  std::optional<Program> program_;
  Tensor rate_{TensorType{DType::f32, {}}};
  std::vector<double> step_seconds_;
};

Trainer::Trainer(const TrainRequest& request)
    : request_(request),
      config_(request.config),
      backend_(start_backend(config_)),
      available_(available_memory()),
      task_(make_task_that_fits({config_, request.data != nullptr ? request.data : &own_data_}, available_)),
      steps_per_epoch_(task_->steps_per_epoch()),
      steps_(task_->total_steps()) {
  if (config_.warmup >= steps_)
    fail(ErrorKind::usage, "--warmup is {} steps of {} in all; it must be shorter", config_.warmup, steps_);
  if (request.resume) {
    const Checkpoint checkpoint = read_checkpoint(RunFolder::open(request.out).checkpoint());
    require_data_shape(*task_, checkpoint);
    restore(task_->checkpoint(), checkpoint, true);
    first_step_ = step_ = saved_step_ = static_cast<std::int64_t>(task_->step().value().item());
    if (step_ >= steps_)
      fail(ErrorKind::usage, "{} has done all of its {} steps; give a larger --steps to train on", request.out.string(),
           step_);
  }
  recorded_ = task_->record(tape_, IfUnreachable::zero);
  flow_ = report_flow(audit(tape_, recorded_.terms, task_->parameters(), task_->state()), recorded_.expected);
  if (!flow_.problems.empty() && !request.allow_untrained)
    fail(ErrorKind::contract,
         "this model would not be trained as a whole:\n{}\n`{} audit` with the same flags shows which term trains "
         "what; --allow-untrained trains it all the same",
         fmt::join(flow_.problems, "\n"), program_name());
  std::vector<Value> fetches;
  for (const NamedValue& m : recorded_.metrics) fetches.push_back(m.value);
  program_.emplace(compile(tape_, fetches, backend_,
                           {.check_finite = config_.check_finite, .recompute = recompute_by_name(config_.recompute)}));
  require_memory(*task_, program_->stats(), available_);
}

Schedule Trainer::schedule() const {
  return {.peak = config_.lr, .warmup = config_.warmup, .total = config_.schedule == "cosine" ? steps_ : 0, .floor = 0};
}

void Trainer::open_folder() {
  folder_ = request_.resume ? RunFolder::open(request_.out) : RunFolder::create(request_.out);
  write_text_atomically(folder_->config(), to_toml(config_));
  log_ = std::make_unique<MetricsLog>(folder_->metrics(), step_, history_);
}

void Trainer::print_heading() const {
  if (request_.quiet) return;
  std::string_view indent;
  for (const std::string& line : task_->heading()) {
    fmt::print("{}{}\n", indent, line);
    indent = "  ";
  }
  std::int64_t weights = 0;
  for (const Variable* v : task_->parameters()) weights += v->value().elements();
  fmt::print("{}", short_text(flow_));
  for (const auto* messages : {&flow_.problems, &flow_.violations})
    for (const std::string& message : *messages) fmt::print("  warning: {}\n", message);
  fmt::print("  {:.2f} million weights, {} {:g}, batch {}, backend {} with {} thread{}\n",
             static_cast<double>(weights) / 1e6, config_.optimizer, config_.lr, config_.batch, config_.backend,
             threads(), threads() == 1 ? "" : "s");
  if (const RecomputeOptions again = recompute_by_name(config_.recompute); again.mode != RecomputeOptions::Mode::none)
    fmt::print("  {}\n", program_->stats().recompute.to_string(again));
  fmt::print("  {} {} to {} ({:.2f} epochs in all), written to {}\n", request_.resume ? "resuming: steps" : "steps",
             step_ + 1, steps_, static_cast<double>(steps_) / static_cast<double>(steps_per_epoch_),
             folder_->path().string());
  fmt::print("  Ctrl-C saves and stops; `{} train --resume {}` goes on\n", program_name(), folder_->path().string());
  std::fflush(stdout);
}

void Trainer::print_first_step(const Metrics& m) const {
  if (request_.quiet) return;
  std::string start = fmt::format("at step {}: ", step_);
  for (const std::string& line : task_->first_step(m)) {
    fmt::print("  {}{}\n", start, line);
    start.clear();
  }
  fmt::print("  first training step done {:.2f} s after the program was started\n", seconds_since_start());
  std::fflush(stdout);
}

Metrics Trainer::step() {
  const auto start = Clock::now();
  const double rate = learning_rate(schedule(), step_);
  rate_.set(0, rate);
  task_->feed(*program_, step_);
  program_->feed(recorded_.learning_rate, rate_);
  program_->run();
  ++step_;
  Metrics m{{"step", static_cast<double>(step_)}};
  for (const NamedValue& named : recorded_.metrics) m.emplace_back(named.name, program_->fetch_scalar(named.value));
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  m.emplace_back("lr", rate);
  m.emplace_back(task_->unit() + "_per_second", units() / seconds);
  step_seconds_.push_back(seconds);
  return m;
}

std::string Trainer::last_checkpoint() const {
  return saved_step_ > 0 ? fmt::format("The checkpoint in {} is of step {}", folder_->path().string(), saved_step_)
                         : "No checkpoint was saved yet";
}

// step(), saying which one it was where --check-finite stops it.
Metrics Trainer::checked_step() {
  try {
    return step();
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::non_finite) throw;
    fail(ErrorKind::non_finite, "step {}: {}\n  {}", step_ + 1, e.message(), last_checkpoint());
  }
}

void Trainer::save() {
  log_->flush();
  const std::vector<Variable*> variables = task_->checkpoint();
  save_checkpoint(folder_->checkpoint(), variables, task_->data_shape(), step_);
  saved_step_ = step_;
}

TrainResult Trainer::run() {
  open_folder();
  print_heading();
  if (!request_.resume) task_->start(backend_);

  const InterruptGuard guard;
  const std::int64_t last = request_.stop_after > 0 ? std::min(request_.stop_after, steps_) : steps_;
  {
    Progress progress(step_, steps_, config_.log_every);
    double pace = 0;
    while (step_ < last && !InterruptGuard::interrupted()) {
      Metrics m = checked_step();
      const double loss = metric(m, "loss");
      log_->append(m);
      if (!std::isfinite(loss))
        fail(ErrorKind::non_finite,
             "the loss is {} at step {}. {}; --check-finite names the op that made the first such "
             "number, a lower --lr or --clip 1 may avoid it",
             loss, step_, last_checkpoint());
      // Averaged as time, not as speed: one slow step among fast ones counts for what it took.
      const double seconds = step_seconds_.back();
      pace = step_ < first_step_ + 5 ? seconds : 0.95 * pace + 0.05 * seconds;
      if (step_ == first_step_ + 1) print_first_step(m);
      if (!request_.quiet && progress.wants_text(step_)) {
        progress.update(step_, task_->progress(m), pace_text(units() / pace));
        log_->flush();
      }
      history_.push_back(std::move(m));
      if (config_.checkpoint_every > 0 && step_ % config_.checkpoint_every == 0 && step_ < last) save();
    }
  }
  return finish();
}

TrainResult Trainer::finish() {
  task_->end_feeding();
  save();
  program_.reset();
  std::vector<std::string> files;
  if (request_.pictures) {
    files = task_->write_files(*folder_, backend_);
    save_png(folder_->curves(), draw_curves(history_, task_->curves()));
    files.push_back(fmt::format("{}  (loss and more over the steps)", folder_->curves().string()));
  }
  TrainResult result;
  result.step = step_, result.finished = step_ == steps_;
  if (result.finished) result.test = task_->evaluate(backend_);
  if (!request_.quiet) print_end(result, files);
  result.history = std::move(history_);
  if (step_seconds_.size() > 10) step_seconds_.erase(step_seconds_.begin(), step_seconds_.begin() + 5);
  const auto middle = step_seconds_.begin() + static_cast<std::ptrdiff_t>(step_seconds_.size() / 2);
  std::nth_element(step_seconds_.begin(), middle, step_seconds_.end());
  if (middle != step_seconds_.end()) result.step_seconds = *middle;
  result.interrupted = InterruptGuard::interrupted();
  return result;
}

void Trainer::print_end(const TrainResult& result, const std::vector<std::string>& files) const {
  double seconds = 0;
  for (const double s : step_seconds_) seconds += s;
  fmt::print("{} at step {} after {} of training ({}, peak memory {:.0f} MB)\n", result.finished ? "done" : "stopped",
             step_, duration_text(seconds),
             pace_text(units() * static_cast<double>(step_ - first_step_) / std::max(seconds, 1e-9)), peak_memory_mb());
  if (!result.finished) {
    fmt::print("  saved; go on with: {} train --resume {}\n", program_name(), folder_->path().string());
    return;
  }
  fmt::print("on {}:\n{}", task_->evaluated_on(), to_text(result.test));
  if (!files.empty()) fmt::print("Look at:\n  {}\n", fmt::join(files, "\n  "));
}

}  // namespace

TrainResult train(const TrainRequest& request) { return Trainer(request).run(); }

}  // namespace sg::tools
