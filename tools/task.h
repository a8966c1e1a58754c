// Task: a model, its training state and its data as the program sees them. `train`, `--resume`, `evaluate`, `audit`,
// `tape`, `compare` and `bench` work through this interface for every row of the table (task_table()).
//
// To add a model:
//   1. tools/tasks/NAME_task.cc: a class derived from Task (from ImageTask of tools/tasks/image_task.h where the data
//      are images) and a function `TaskDef NAME_task()`; tools/tasks/autoencoder_task.cc is an example.
//   2. tools/task_table.cc: one line.
//   3. Its own settings: a member of TrainConfig and a row in config.cc whose `has` names the model; the settings that
//      it shares with others come with the words in TaskDef::has ("images", "network", ...; see ConfigField::has).
// A program of your own adds a row by register_task() before run_program().
//
// Invariants: addresses of the variables never change; batches are a function of (config, step) alone, so that a
// resumed run is exact; nothing but start() and the recorded step changes a variable.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/audit.h"
#include "core/autodiff.h"
#include "core/backend.h"
#include "core/program.h"
#include "models/sampling.h"
#include "models/statistics.h"
#include "models/vqvae_training.h"
#include "tools/config.h"
#include "tools/curves.h"
#include "tools/data/dataset.h"
#include "tools/run_folder.h"

namespace sg::tools {

// One recorded training step.
struct TaskStep {
  Value learning_rate;                    // input, f32 []
  std::vector<NamedValue> metrics;        // scalars to log; the first is "loss"
  std::vector<AuditTerm> terms;           // what the losses are the sums of
  std::vector<FlowExpectation> expected;  // what these are to train, and what not
  std::vector<Value> forward;             // what `tape --part forward` shows: losses, their terms
};

// One number of an evaluation.
struct Figure {
  std::string key;  // in JSON and in comparisons: "mse"
  double value = 0;
  std::string label, text;  // for people: "reconstruction MSE", "0.001234   (mean over pixels)"; no label: not shown
};
double value_of(std::span<const Figure> figures, std::string_view key);  // NaN where there is none
std::string to_text(std::span<const Figure> figures);                    // a line each of those with a label

// What turns data into tokens and back. encode and decode work with every task that has one.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual Encoding encode(Tape& tape, std::int64_t batch) const = 0;
  virtual Decoding decode(Tape& tape, std::int64_t batch) const = 0;
  virtual Shape token_shape(std::int64_t n) const = 0;
  virtual std::int64_t codes() const = 0;  // tokens are below it
};

class Task {
 public:
  explicit Task(TrainConfig config) : config_(std::move(config)) {}
  virtual ~Task() = default;
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;
  const TrainConfig& config() const { return config_; }

  // Variables. checkpoint(): all that an exact resume needs, model() among them; model(): what a trained model is used
  // with; parameters(): what gradients train; state(): what else of the model an audit should list.
  virtual std::vector<Variable*> checkpoint() = 0;
  virtual std::vector<Variable*> model() = 0;
  virtual std::vector<Variable*> parameters() = 0;
  virtual std::vector<Variable*> state() { return {}; }
  virtual Variable& step() = 0;  // i32 []: steps done; the recorded step counts it

  // Which data it is for, "28x28x1", as a checkpoint keeps it: a run goes on only with data of the same shape.
  virtual std::string data_shape() const = 0;
  // Where it has data. --steps, or --epochs times the steps of one; the unit of the pace, and how many a step has.
  virtual std::int64_t steps_per_epoch() const = 0;
  std::int64_t total_steps() const { return config_.epochs > 0 ? config_.epochs * steps_per_epoch() : config_.steps; }
  virtual std::string unit() const = 0;  // "images"
  virtual std::int64_t units_per_step() const { return config_.batch; }

  virtual TaskStep record(Tape& tape, IfUnreachable untrained) = 0;
  // Other tapes that it can show, for `tape --part`.
  virtual std::vector<std::string> parts() const { return {}; }
  virtual void record_part(Tape& tape, std::string_view part) { (void)tape, (void)part; }
  // Before the first step of a new run: what is computed from data (a k-means codebook).
  virtual void start(Backend& backend) { (void)backend; }
  // Feeds the batch of step `step` (from 0) to the program of record(). Called with ascending numbers.
  virtual void feed(Program& program, std::int64_t step) = 0;
  // After the last step: lets go of threads and buffers that feed() uses.
  virtual void end_feeding() {}

  // For people. heading(): what is trained on what, a line each, before training, after record(); first_step(): remarks
  // on the metrics of the first step; progress(): one line's worth of a step's metrics.
  virtual std::vector<std::string> heading() const = 0;
  virtual std::vector<std::string> first_step(const Metrics& m) const { return (void)m, std::vector<std::string>{}; }
  virtual std::string progress(const Metrics& m) const = 0;
  virtual std::vector<CurvePanel> curves() const = 0;  // of curves.png

  // The trained model on held-out data. Figures that do not exist for a model are left out, not zero.
  virtual std::vector<Figure> evaluate(Backend& backend) = 0;
  virtual std::string evaluated_on() const = 0;  // "all 10000 test images of fashion-mnist"
  // Pictures and other files for the run folder. Returns a line about each: its path and what is to be seen.
  virtual std::vector<std::string> write_files(const RunFolder& folder, Backend& backend) {
    return (void)folder, (void)backend, std::vector<std::string>{};
  }
  virtual const Tokenizer* tokenizer() const { return nullptr; }
  // Of a model of tokens: what makes so many new sequences at once. The task outlives it.
  virtual std::unique_ptr<TokenGenerator> generator(std::int64_t sequences, Backend& backend) {
    return (void)sequences, (void)backend, nullptr;
  }

 private:
  TrainConfig config_;
};

// Data sets by what names them, each loaded once: the runs of a comparison share them.
class DataCache {
 public:
  const Dataset& images(const DataOptions& options);

 private:
  std::map<std::string, Dataset> loaded_;
};

struct TaskSetup {
  TrainConfig config;           // validated
  DataCache* data = nullptr;    // outlives the task. Null: no data are read, only sizes matter (audit, tape)
  std::string data_shape = {};  // without data: of a checkpoint; empty: what the settings say
};

// A row of the table.
struct TaskDef {
  std::string name, summary;
  // Words of the settings that it has besides its own and everybody's; see ConfigField::has.
  std::string has;
  std::function<std::unique_ptr<Task>(const TaskSetup&)> make;  // Error{usage}: settings that make no sense; Error{io}
  // Sizes in one word. The first is what the model starts from, over the defaults of TrainConfig; none: these.
  struct Preset {
    std::string name;
    std::function<void(TrainConfig&)> apply;
  };
  std::vector<Preset> presets = {};
  std::function<void(const TrainConfig&)> check = {};  // of settings against each other: Error{usage}
};
const std::vector<TaskDef>& task_table();
std::vector<std::string> task_names();
const TaskDef& task_def(std::string_view name);  // Error{usage} listing them
// Adds a row; Error{usage} where the name is empty or taken. Call it at the start of main().
void register_task(TaskDef def);
std::unique_ptr<Task> make_task(const TaskSetup& setup);  // of setup.config.model

}  // namespace sg::tools
