#include "tools/memory.h"

#include <fmt/ranges.h>
#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>

#include "core/error.h"
#include "models/init.h"

namespace sg::tools {
namespace {

constexpr std::size_t kUnknown = std::numeric_limits<std::size_t>::max();

// The number in a file of one, as control groups have them; kUnknown where it is no number ("max") or not there.
std::size_t number_in(const std::string& path) {
  std::size_t value = 0;
  std::ifstream file(path);
  return file >> value ? value : kUnknown;
}

// The number of kB behind "NAME:" in a file of /proc.
std::size_t kilobytes(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  for (std::string word; file >> word;)
    if (std::size_t value = 0; word == name + ":" && file >> value) return value * 1024;
  return kUnknown;
}

std::size_t difference(std::size_t limit, std::size_t used) {
  if (limit == kUnknown || used == kUnknown) return kUnknown;
  return limit > used ? limit - used : 0;
}

// What the control groups of this process leave, from its own up to the root.
std::size_t left_by_groups() {
  std::size_t left = kUnknown;
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // "0::/a/b" (v2) or "7:memory:/a/b" (v1)
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool v2 = controllers.empty();
    if (!v2 && controllers != "memory") continue;
    const std::string root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    for (std::string path = line.substr(second + 1);; path = path.substr(0, path.find_last_of('/'))) {
      if (path == "/") path.clear();
      const std::string folder = root + path + "/";
      left = std::min(left, v2 ? difference(number_in(folder + "memory.max"), number_in(folder + "memory.current"))
                               : difference(number_in(folder + "memory.limit_in_bytes"),
                                            number_in(folder + "memory.usage_in_bytes")));
      if (path.empty()) break;
    }
  }
  return left;
}

std::size_t variable_bytes(std::vector<Variable*> variables) {
  std::size_t bytes = 0;
  for (const Variable* v : variables) bytes += v->value().bytes();
  return bytes;
}

// The settings of sizes that the model has; --batch, which weights do not depend on, where asked for.
std::string sizes_of(const Task& task, bool batch) {
  std::vector<std::string> flags;
  if (batch) flags.emplace_back("--batch");
  for (const ConfigField& field : config_fields())
    if (has_field(task.config().model, field) && std::holds_alternative<std::int64_t TrainConfig::*>(field.member) &&
        (field.group == "Model" || field.key == "codes" || field.key == "code_dim"))
      flags.push_back(flag_of(field));
  return fmt::format("{}", fmt::join(flags, ", "));
}

std::string gigabytes(std::size_t bytes) { return fmt::format("{:.2f} GB", 1e-9 * static_cast<double>(bytes)); }

}  // namespace

std::size_t available_memory() {
  std::size_t left = std::min(kilobytes("/proc/meminfo", "MemAvailable"), left_by_groups());
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
    left = std::min(left, difference(limit.rlim_cur, kilobytes("/proc/self/status", "VmSize")));
  return left;
}

std::unique_ptr<Task> make_task_that_fits(const TaskSetup& setup, std::size_t available) {
  {
    const ZeroInitialValues zeros;
    const std::unique_ptr<Task> sizes = make_task(setup);
    const std::size_t needed = variable_bytes(sizes->checkpoint()) + variable_bytes(sizes->parameters());
    if (needed > available)
      fail(ErrorKind::unsupported,
           "{}: weights, optimizer state and gradients need {}, this machine has {} available; lower one of {}",
           setup.config.model, gigabytes(needed), gigabytes(available), sizes_of(*sizes, false));
  }
  return make_task(setup);
}

void require_memory(Task& task, const ProgramStats& stats, std::size_t available) {
  const std::size_t program = stats.arena_bytes + stats.persistent_bytes + stats.scratch_bytes + stats.feed_bytes;
  const std::size_t needed = variable_bytes(task.checkpoint()) + program;
  if (needed > available)
    fail(ErrorKind::unsupported,
         "{}: a training step needs {} ({} of them beside the weights), this machine has {} available; lower one of {}",
         task.config().model, gigabytes(needed), gigabytes(program), gigabytes(available), sizes_of(task, true));
}

}  // namespace sg::tools
