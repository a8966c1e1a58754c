// compare: the runs of every combination of settings with every seed. Runs of one seed have the same data, initial
// weights and batches, whatever else is varied: weights are a function of seed and name, batches of seed and step.
//
// Folder: compare.toml (all that is needed to run it again), ARM/seed-N (run folders, each with a result.json once it
// is done), results.json, table.md, curves.png.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "tools/config.h"
#include "tools/run_folder.h"

namespace sg::tools {

// One thing that is varied: "estimator=ste,rotation". Lists are written with x (grid=8x5x5,8x8x8); a value may set
// more than the axis' own key: "codebook=loss,ema+ema_decay=0.8,ema+ema_decay=0.99".
struct Axis {
  std::string key;
  std::vector<std::string> values;
};

// One combination.
struct Arm {
  std::string name;                 // of its folder: the values, joined
  std::vector<std::string> values;  // one for each axis
  TrainConfig config;               // with the first seed
};

struct Run {
  std::size_t arm = 0;
  std::int64_t seed = 0;
  TrainConfig config;
  std::filesystem::path folder;
};

enum class RunState : std::uint8_t { to_do, interrupted, done, diverged, failed };
std::string_view to_string(RunState);

// result.json of a run.
struct RunResult {
  RunState state = RunState::to_do;
  std::string error;      // of a run that diverged or failed
  std::int64_t step = 0;  // done
  // Of a run that is done: the figures of its evaluation; norm_ratio, |q|/|z|, mean of the last window of training
  // steps; step_ms, median, where runs were not side by side. What the model has not is not there.
  Metrics figures;
};

struct Comparison {
  ComparisonSettings settings;
  std::filesystem::path folder;
  std::vector<Axis> axes;
  std::vector<Arm> arms;
  std::vector<Run> runs;  // seed by seed, each with all arms
};

// Error{usage}: an axis that is no setting, a value that is none, two arms of one name, `seed` as an axis.
Comparison plan(const ComparisonSettings& settings, const std::filesystem::path& folder);

// What lies in the folder of the run. Error{io}: a run of other settings.
RunResult state_of(const Run& run);
void write_result(const Run& run, const RunResult& result);  // result.json

struct CompareRequest {
  ComparisonSettings settings;
  std::filesystem::path out;
  std::int64_t jobs = 1;  // runs side by side, each in a process of its own
  bool list = false;      // print the runs and what is done of them, and do nothing
};

// Runs what is to do, goes on with what was interrupted, and writes table and pictures of what is done. A run that
// fails or diverges is reported there. Error{usage}, Error{io} before anything is run or written.
void compare(const CompareRequest& request);

}  // namespace sg::tools
