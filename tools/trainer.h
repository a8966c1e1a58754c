// One training run from settings to pictures.
#pragma once
#include <filesystem>
#include <string>

#include "tools/config.h"

namespace sg::tools {

struct TrainRequest {
  TrainConfig config;
  std::filesystem::path out;  // a new run folder; for a resume the folder of the run
  bool resume = false;
  bool allow_untrained = false;  // train although the audit found problems
  std::int64_t stop_after = 0;   // end after this step as Ctrl-C would; 0: train all steps
};

// Trains, and writes the run folder. Error{contract}: a parameter gets no gradient and no update, or the audit found
// another problem. Nothing is written before data, model and settings were found good.
void train(const TrainRequest& request);

}  // namespace sg::tools
