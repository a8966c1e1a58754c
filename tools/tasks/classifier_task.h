// The classifier as a model of the program, and as a judge of others.
#pragma once
#include <filesystem>
#include <memory>

#include "models/classifier.h"
#include "tools/task.h"

namespace sg::tools {

TaskDef classifier_task();

// The trained classifier of a run folder. Error{io}: no run, or one of another model.
std::unique_ptr<Classifier> load_classifier(const std::filesystem::path& run);

}  // namespace sg::tools
