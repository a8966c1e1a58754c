// From settings to a model, and to and from a checkpoint.
#pragma once
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/safetensors.h"
#include "models/vqvae.h"
#include "tools/config.h"
#include "tools/data/dataset.h"
#include "tools/run_folder.h"
#include "tools/task.h"

namespace sg::tools {

struct ImageSize {
  std::int64_t height = 0, width = 0, channels = 0;
  bool operator==(const ImageSize&) const = default;
};
std::string to_string(const ImageSize&);                       // "28x28x1"
bool parse_image_size(std::string_view text, ImageSize& out);  // as to_string writes it
inline ImageSize size_of(const ImageSet& set) { return {set.height, set.width, set.channels}; }

// Sets the threads of the process and returns the backend. Error{backend}.
Backend& start_backend(const TrainConfig& config);

DataOptions data_options(const TrainConfig& config);
QuantizerConfig quantizer_config(const TrainConfig& config);
// Of the models that are a VqVae with some quantizer. cosine_decay etc. as in the settings; steps: of the run, where
// they are not config.steps (--epochs). Error{usage}: sizes that the model cannot have.
VqVaeConfig model_config(const TrainConfig& config, const ImageSize& images, std::int64_t steps = 0);

// Writes the variables and which data they are for (Task::data_shape), atomically.
void save_checkpoint(const std::filesystem::path& path, std::span<Variable* const> variables,
                     const std::string& data_shape, std::int64_t step);

// A checkpoint's tensors and what its file says about itself. Error{io}: unreadable, or not written by this program.
struct Checkpoint {
  std::filesystem::path path;
  StateFile file;
  std::string data_shape;
};
Checkpoint read_checkpoint(const std::filesystem::path& path);
void require_data_shape(const Task& task, const Checkpoint& checkpoint);  // Error{io}: the task's is another

// Sets every variable from the tensor of its name. Error{io} naming the first that is missing, of another type, not
// finite, or (where `all`) in the file and not among the variables; no variable is changed then.
void restore(std::span<Variable* const> variables, const Checkpoint& checkpoint, bool all);

// The task of a finished or interrupted run with its trained model, for evaluate, encode, decode.
struct RestoredTask {
  RunFolder folder;
  std::unique_ptr<Task> task;
  std::int64_t step;
};
// config: of the saved settings, those to use (--backend, --limit, ...). data: null where none are needed. Error{io}
// where it is no run, or of data of another shape.
RestoredTask restore_task(const std::filesystem::path& path,
                          const std::function<TrainConfig(const TrainConfig&)>& config, DataCache* data);

// The same for what works inside a VqVae. Error{usage}: the run is of a model that is none.
struct LoadedRun {
  RunFolder folder;
  TrainConfig config;
  ImageSize images;
  std::unique_ptr<VqVae> model;
  std::int64_t step;
};
LoadedRun load_run(const std::filesystem::path& path);

}  // namespace sg::tools
