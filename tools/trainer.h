// One training run from settings to pictures.
#pragma once
#include <filesystem>
#include <string>

#include "tools/config.h"
#include "tools/task.h"

namespace sg::tools {

struct TrainRequest {
  TrainConfig config;
  std::filesystem::path out;  // a new run folder; for a resume the folder of the run
  bool resume = false;
  bool allow_untrained = false;  // train although the audit found problems
  std::int64_t stop_after = 0;   // end after this step as Ctrl-C would; 0: train all steps
  DataCache* data = nullptr;     // of a caller that trains more than once
  bool quiet = false;            // prints nothing
  bool pictures = true;          // draws reconstructions and curves at the end
};

struct TrainResult {
  std::int64_t step = 0;         // done in all
  bool finished = false;         // whether these are all steps
  bool interrupted = false;      // by Ctrl-C, also after the last step
  std::vector<Figure> test;      // where finished
  std::vector<Metrics> history;  // of all steps, those before a resume too
  double step_seconds = 0;       // median over this call's steps, its first five left out where there are more
};

// Trains, and writes the run folder. Error{contract}: a parameter gets no gradient and no update, or the audit found
// another problem. Error{unsupported}: too little memory. Nothing is written before data, model, settings and memory
// were found good.
TrainResult train(const TrainRequest& request);

}  // namespace sg::tools
