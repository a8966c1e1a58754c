// The models of the program: one line each in rows().
#include <fmt/ranges.h>

#include <limits>

#include "core/error.h"
#include "tools/task.h"

namespace sg::tools {

TaskDef ae_task();
TaskDef fsq_ae_task();
TaskDef prior_task();
TaskDef transformer_vq_task();
TaskDef vqvae_task();
TaskDef vqgan_task();
TaskDef classifier_task();

namespace {

std::vector<TaskDef>& rows() {
  static std::vector<TaskDef> table{
      vqvae_task(),
      vqgan_task(),
      ae_task(),
      fsq_ae_task(),
      prior_task(),
      classifier_task(),
      transformer_vq_task(),
  };
  return table;
}

const TaskDef* find(std::string_view name) {
  for (const TaskDef& def : rows())
    if (def.name == name) return &def;
  return nullptr;
}

}  // namespace

const std::vector<TaskDef>& task_table() { return rows(); }

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for (const TaskDef& def : rows()) names.push_back(def.name);
  return names;
}

const TaskDef& task_def(std::string_view name) {
  if (const TaskDef* def = find(name)) return *def;
  fail(ErrorKind::usage, "model '{}' is unknown; choose one of: {}", name, fmt::join(task_names(), ", "));
}

void register_task(TaskDef def) {
  if (def.name.empty() || !def.make) fail(ErrorKind::usage, "register_task: a name and a function are needed");
  if (find(def.name) != nullptr) fail(ErrorKind::usage, "register_task: there is a model '{}' already", def.name);
  rows().push_back(std::move(def));
}

std::unique_ptr<Task> make_task(const TaskSetup& setup) { return task_def(setup.config.model).make(setup); }

double value_of(std::span<const Figure> figures, std::string_view key) {
  for (const Figure& figure : figures)
    if (figure.key == key) return figure.value;
  return std::numeric_limits<double>::quiet_NaN();
}

std::string to_text(std::span<const Figure> figures) {
  std::string out;
  for (const Figure& f : figures)
    if (!f.label.empty()) out += fmt::format("  {:<26} {}\n", f.label, f.text);
  return out;
}

const Dataset& DataCache::images(const DataOptions& o) {
  const std::string key = fmt::format("{}|{}|{}|{}|{}", o.name, o.folder, o.image_size, o.channels, o.limit);
  auto found = loaded_.find(key);
  if (found == loaded_.end()) found = loaded_.emplace(key, load_dataset(o)).first;
  return found->second;
}

}  // namespace sg::tools
