// From settings to a model, and to and from a checkpoint.
#pragma once
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/safetensors.h"
#include "models/vqvae_training.h"
#include "tools/config.h"
#include "tools/data/dataset.h"
#include "tools/run_folder.h"

namespace sg::tools {

struct ImageSize {
  std::int64_t height = 0, width = 0, channels = 0;
  bool operator==(const ImageSize&) const = default;
};
std::string to_string(const ImageSize&);  // "28x28x1"
inline ImageSize size_of(const ImageSet& set) { return {set.height, set.width, set.channels}; }

// Sets the threads of the process and returns the backend. Error{backend}.
Backend& start_backend(const TrainConfig& config);

DataOptions data_options(const TrainConfig& config);
// cosine_decay etc. as in the settings; steps: of the run, where they are not config.steps (--epochs).
// Error{usage}: sizes that the model cannot have.
VqVaeConfig model_config(const TrainConfig& config, const ImageSize& images, std::int64_t steps = 0);

// Writes the variables and what kind of images they are for, atomically.
void save_checkpoint(const std::filesystem::path& path, std::span<Variable* const> variables, const ImageSize& images,
                     std::int64_t step);

// A checkpoint's tensors and what its file says about itself. Error{io}: unreadable, or not written by this program.
struct Checkpoint {
  std::filesystem::path path;
  StateFile file;
  ImageSize images;
};
Checkpoint read_checkpoint(const std::filesystem::path& path);

// Sets every variable from the tensor of its name. Error{io} naming the first that is missing, of another type, not
// finite, or (where `all`) in the file and not among the variables; no variable is changed then.
void restore(std::span<Variable* const> variables, const Checkpoint& checkpoint, bool all);

// The model of a finished or interrupted run, for evaluate, encode, decode and tape.
struct LoadedRun {
  RunFolder folder;
  TrainConfig config;
  ImageSize images;
  std::unique_ptr<VqVae> model;
  std::int64_t step;
};
LoadedRun load_run(const std::filesystem::path& path);

}  // namespace sg::tools
