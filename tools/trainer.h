// One training run from settings to pictures.
#pragma once
#include <filesystem>
#include <string>

#include "tools/config.h"
#include "tools/evaluation.h"

namespace sg::tools {

struct TrainRequest {
  TrainConfig config;
  std::filesystem::path out;  // a new run folder; for a resume the folder of the run
  bool resume = false;
  bool allow_untrained = false;  // train although the audit found problems
  std::int64_t stop_after = 0;    // end after this step as Ctrl-C would; 0: train all steps
  const Dataset* data = nullptr;  // what config names, where the caller has it already
  bool quiet = false;             // prints nothing
  bool pictures = true;           // draws reconstructions and curves at the end
};

struct TrainResult {
  std::int64_t step = 0;     // done in all
  bool finished = false;     // whether these are all steps
  bool interrupted = false;  // by Ctrl-C, also after the last step
  EvaluationResult test;     // where finished
};

// Trains, and writes the run folder. Error{contract}: a parameter gets no gradient and no update, or the audit found
// another problem. Nothing is written before data, model and settings were found good.
TrainResult train(const TrainRequest& request);

}  // namespace sg::tools
