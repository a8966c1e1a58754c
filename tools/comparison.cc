#include "tools/comparison.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <map>
#include <new>
#include <nlohmann/json.hpp>
#include <thread>

#include "backends/backends.h"
#include "core/error.h"
#include "tools/comparison_report.h"
#include "tools/files.h"
#include "tools/program.h"
#include "tools/progress.h"
#include "tools/session.h"
#include "tools/trainer.h"

namespace sg::tools {
namespace {

namespace fs = std::filesystem;

constexpr std::pair<RunState, std::string_view> kStates[] = {{RunState::to_do, "to do"},
                                                             {RunState::interrupted, "interrupted"},
                                                             {RunState::done, "done"},
                                                             {RunState::diverged, "diverged"},
                                                             {RunState::failed, "failed"}};

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts(1);
  for (const char c : text)
    if (c == at)
      parts.emplace_back();
    else
      parts.back() += c;
  return parts;
}

Axis parse_axis(const std::string& text) {
  const std::size_t equal = text.find('=');
  if (equal == std::string::npos || equal == 0)
    fail(ErrorKind::usage, "--vary '{}': a setting and its values are needed, as estimator=ste,rotation", text);
  Axis axis{text.substr(0, equal), split(text.substr(equal + 1), ',')};
  std::replace(axis.key.begin(), axis.key.end(), '-', '_');
  for (const std::string& value : axis.values)
    if (value.empty()) fail(ErrorKind::usage, "--vary '{}': an empty value", text);
  return axis;
}

void set(TrainConfig& config, const std::string& key, const std::string& value) {
  const ConfigField* field = find_field(key);
  if (field == nullptr) fail(ErrorKind::usage, "--vary {}: there is no such setting; `train --help` lists them", key);
  if (key == "seed") fail(ErrorKind::usage, "--vary seed: every arm has the same seeds; give their number by --seeds");
  require_field(config.model, *field);
  if (key == "model")
    config = with_model(config, value);
  else
    set_from_text(config, *field, value);
  if (key == "preset") apply_preset(config, value);
}

// "value" or "value+other_key=value+...". A '+' without a '=' after it is a part of the value.
void set_axis(TrainConfig& config, const std::string& key, const std::string& text) {
  std::vector<std::string> parts;
  for (const std::string& part : split(text, '+'))
    if (parts.empty() || part.find('=') != std::string::npos)
      parts.push_back(part);
    else
      parts.back() += '+' + part;
  set(config, key, parts[0]);
  for (std::size_t i = 1; i < parts.size(); ++i) {
    const std::size_t equal = parts[i].find('=');
    std::string more = parts[i].substr(0, equal);
    std::replace(more.begin(), more.end(), '-', '_');
    set(config, more, parts[i].substr(equal + 1));
  }
}

std::string folder_name(const std::vector<std::string>& values) {
  std::string name;
  for (const std::string& value : values) {
    if (!name.empty()) name += '_';
    for (const char c : value) name += std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' ? c : '-';
  }
  return name.empty() ? "run" : name;
}

RunResult finished(const Run& run, const TrainResult& trained, bool alone) {
  RunResult r{.state = RunState::done, .error = {}, .step = trained.step, .figures = {}};
  for (const Figure& figure : trained.test) r.figures.emplace_back(figure.key, figure.value);
  const std::vector<Metrics>& history = trained.history;
  const std::size_t window = std::min(history.size(), static_cast<std::size_t>(run.config.window));
  double ratio = 0;
  for (std::size_t i = history.size() - window; i < history.size(); ++i)
    ratio += metric(history[i], "norm_ratio") / static_cast<double>(window);
  if (std::isfinite(ratio)) r.figures.emplace_back("norm_ratio", ratio);
  if (alone) r.figures.emplace_back("step_ms", 1000 * trained.step_seconds);
  return r;
}

// Trains one run, from the start or from its checkpoint; what fails becomes its result.
struct Ran {
  RunResult result;
  bool interrupted = false;
};
Ran train_run(const Run& run, RunState before, DataCache& data, bool pictures, bool alone) {
  TrainRequest request;
  request.config = run.config;
  request.out = run.folder;
  request.resume = before == RunState::interrupted;
  request.data = &data;
  request.quiet = true;
  request.pictures = pictures;
  if (!request.resume)
    for (const char* left : {"config.toml", "metrics.jsonl", "result.json", "checkpoint.safetensors"})
      fs::remove(run.folder / left);
  Ran out;
  try {
    const TrainResult trained = train(request);
    out.interrupted = trained.interrupted;
    if (trained.finished)
      out.result = finished(run, trained, alone);
    else
      out.result.state = RunState::interrupted, out.result.step = trained.step;
  } catch (const Error& e) {
    out.result.state = e.kind() == ErrorKind::non_finite ? RunState::diverged : RunState::failed;
    out.result.error = e.message();
  } catch (const std::bad_alloc&) {
    out.result.state = RunState::failed;
    out.result.error = "out of memory";
  }
  if (out.result.state != RunState::interrupted) write_result(run, out.result);
  return out;
}

std::string label(const Comparison& c, const Run& run) {
  std::string text;
  for (const std::string& value : c.arms[run.arm].values) text += value + "  ";
  return text + fmt::format("seed {}", run.seed);
}

// ", test MSE 0.001234, 98.0 % of the codes", of those that it has.
std::string main_figures(const RunResult& r) {
  std::string text;
  if (const double mse = metric(r.figures, "mse"); std::isfinite(mse)) text += fmt::format(", test MSE {:.6f}", mse);
  if (const double usage = metric(r.figures, "usage"); std::isfinite(usage))
    text += fmt::format(", {:.1f} % of the codes", 100 * usage);
  return text;
}

class Comparer {
 public:
  explicit Comparer(const CompareRequest& request)
      : request_(request), comparison_(plan(request.settings, request.out)) {
    for (const Run& run : comparison_.runs) states_.push_back(state_of(run).state);
  }

  void list() const {
    for (std::size_t i = 0; i < states_.size(); ++i)
      fmt::print("{:<12} {}  ({})\n", to_string(states_[i]), label(comparison_, comparison_.runs[i]),
                 comparison_.runs[i].folder.string());
  }

  void run() {
    const std::int64_t jobs = std::min(request_.jobs, static_cast<std::int64_t>(comparison_.runs.size()));
    // A process that has used several threads cannot be forked into ones that do.
    alone_ = jobs == 1;
    if (!alone_) set_threads(1);
    // Everything that can be wrong with the settings of an arm shows here, before the first run.
    for (const Arm& arm : comparison_.arms) make_task({arm.config, &data_})->steps_per_epoch();
    std::error_code ec;
    fs::create_directories(comparison_.folder, ec);
    if (ec) fail(ErrorKind::io, "cannot make the folder {}: {}", comparison_.folder.string(), ec.message());
    write_text_atomically(comparison_.folder / "compare.toml", to_toml(comparison_.settings));
    fmt::print("{} runs: {} arms, {} seeds; written to {}\n", comparison_.runs.size(), comparison_.arms.size(),
               comparison_.settings.seeds, comparison_.folder.string());
    std::fflush(stdout);
    const bool interrupted = jobs > 1 ? run_side_by_side(jobs) : run_in_turn();

    std::vector<RunResult> results;
    for (const Run& run : comparison_.runs) results.push_back(state_of(run));
    fmt::print("\n{}", write_report(comparison_, results));
    fmt::print("\nLook at:\n  {}\n  {}\n", (comparison_.folder / "table.md").string(),
               (comparison_.folder / "curves.png").string());
    if (interrupted)
      fmt::print("stopped; go on with: {} compare --config {}\n", program_name(),
                 (comparison_.folder / "compare.toml").string());
  }

 private:
  // Whether Ctrl-C was pressed. Prints one line, in one write.
  bool run_one(std::size_t i) {
    const Run& run = comparison_.runs[i];
    const auto say = [&](const std::string& what) {
      fmt::print("[{}/{}] {}: {}\n", i + 1, comparison_.runs.size(), label(comparison_, run), what);
      std::fflush(stdout);
    };
    if (states_[i] == RunState::done || states_[i] == RunState::diverged) {
      say(fmt::format("{} before", to_string(states_[i])));
      return false;
    }
    const auto start = std::chrono::steady_clock::now();
    const Ran ran = train_run(run, states_[i], data_, comparison_.settings.pictures, alone_);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const RunResult& r = ran.result;
    if (r.state == RunState::done)
      say(fmt::format("{} steps, {:.1f} s{}", r.step, seconds, main_figures(r)));
    else if (r.state == RunState::interrupted)
      say(fmt::format("stopped at step {}", r.step));
    else
      say(fmt::format("{}: {}", to_string(r.state), r.error));
    return ran.interrupted;
  }

  bool run_in_turn() {
    for (std::size_t i = 0; i < comparison_.runs.size(); ++i)
      if (run_one(i)) return true;
    return false;
  }

  // Processes that take the numbers of the runs from one pipe.
  bool run_side_by_side(std::int64_t jobs) {
    int queue[2];
    if (pipe(queue) != 0) fail(ErrorKind::io, "compare: cannot make a pipe for --jobs");
    const auto all = static_cast<std::int64_t>(std::thread::hardware_concurrency());
    std::vector<pid_t> children;
    const InterruptGuard guard;
    for (std::int64_t job = 0; job < jobs; ++job) {
      const pid_t child = fork();
      if (child == 0) {
        setpgid(0, 0);  // Ctrl-C reaches the parent alone, which passes it on
        prctl(PR_SET_PDEATHSIG, SIGINT);
        close(queue[1]);
        work(queue[0], static_cast<int>(std::max<std::int64_t>(1, all / jobs)));
      }
      if (child > 0) children.push_back(child);
    }
    close(queue[0]);
    for (std::size_t i = 0; i < comparison_.runs.size() && !children.empty(); ++i)
      if (write(queue[1], &i, sizeof i) != sizeof i) break;
    close(queue[1]);
    if (children.empty()) fail(ErrorKind::io, "compare: cannot start a process for --jobs");
    bool passed_on = false;
    for (std::size_t left = children.size(); left > 0;) {
      if (InterruptGuard::interrupted() && !std::exchange(passed_on, true))
        for (const pid_t child : children) kill(child, SIGINT);
      int status = 0;
      if (waitpid(-1, &status, WNOHANG) > 0)
        --left;
      else
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return passed_on;
  }

  [[noreturn]] void work(int queue, int threads) {
    set_threads(threads);
    int code = 0;
    try {
      bool stop = false;
      for (std::size_t i = 0; !stop && read(queue, &i, sizeof i) == sizeof i;) stop = run_one(i);
    } catch (const std::exception& e) {
      fmt::print(stderr, "{}: {}\n", program_name(), e.what());
      code = 1;
    }
    std::fflush(stdout);
    _exit(code);
  }

  const CompareRequest& request_;
  Comparison comparison_;
  std::vector<RunState> states_;  // before this call
  DataCache data_;
  bool alone_ = true;  // whether one run is trained at a time
};

}  // namespace

std::string_view to_string(RunState state) {
  for (const auto& [value, name] : kStates)
    if (value == state) return name;
  return "";
}

Comparison plan(const ComparisonSettings& settings, const fs::path& folder) {
  if (settings.seeds < 1) fail(ErrorKind::usage, "--seeds is {}; at least 1 is needed", settings.seeds);
  Comparison c{settings, folder, {}, {}, {}};
  for (const std::string& text : settings.vary) {
    Axis axis = parse_axis(text);
    for (const Axis& other : c.axes)
      if (other.key == axis.key) fail(ErrorKind::usage, "{} is varied twice", axis.key);
    c.axes.push_back(std::move(axis));
  }
  c.arms = {{"", {}, settings.base}};
  for (const Axis& axis : c.axes) {
    std::vector<Arm> more;
    for (const Arm& arm : c.arms)
      for (const std::string& value : axis.values) {
        Arm& next = more.emplace_back(arm);
        set_axis(next.config, axis.key, value);
        next.values.push_back(value);
      }
    c.arms = std::move(more);
  }
  std::map<std::string, int> names;
  for (Arm& arm : c.arms) {
    validate(arm.config);
    arm.name = folder_name(arm.values);
    if (++names[arm.name] > 1) fail(ErrorKind::usage, "--vary: two arms have the name {}", arm.name);
  }
  for (std::int64_t s = 0; s < settings.seeds; ++s)
    for (std::size_t a = 0; a < c.arms.size(); ++a) {
      Run& run = c.runs.emplace_back(Run{a, settings.base.seed + s, c.arms[a].config, {}});
      run.config.seed = run.seed;
      run.folder = folder / c.arms[a].name / fmt::format("seed-{}", run.seed);
    }
  return c;
}

RunResult state_of(const Run& run) {
  RunResult r;
  const fs::path config = run.folder / "config.toml", result = run.folder / "result.json";
  std::error_code ec;
  if (!fs::exists(config, ec)) return r;
  const TrainConfig saved = read_config(config, {});
  bool longer = false;
  for (const ConfigField& field : config_fields()) {
    if (!has_field(run.config.model, field)) continue;
    const std::string is = text_of(saved, field), wanted = text_of(run.config, field);
    if (is == wanted) continue;
    if (!field.resume_may_change)
      fail(ErrorKind::io, "{} is of a run with {} {}, not {}; choose another --out", run.folder.string(),
           flag_of(field), is, wanted);
    longer = longer || field.key == "steps" || field.key == "epochs";
  }
  if (fs::exists(result, ec) && !longer) {
    const std::vector<std::byte> bytes = read_file(result);
    const auto json =
        nlohmann::ordered_json::parse(reinterpret_cast<const char*>(bytes.data()),
                                      reinterpret_cast<const char*>(bytes.data()) + bytes.size(), nullptr, false);
    if (!json.is_object()) fail(ErrorKind::io, "{} is not JSON", result.string());
    const std::string state = json.value("state", "");
    for (const auto& [value, name] : kStates)
      if (name == state) r.state = value;
    r.error = json.value("error", "");
    r.step = static_cast<std::int64_t>(json.value("step", 0));
    for (const auto& [key, value] : json.items())
      if (key != "step" && value.is_number()) r.figures.emplace_back(key, value.get<double>());
    return r;
  }
  if (fs::exists(run.folder / "checkpoint.safetensors", ec)) r.state = RunState::interrupted;
  return r;
}

void write_result(const Run& run, const RunResult& r) {
  std::error_code ec;
  fs::create_directories(run.folder, ec);
  // A run that failed before it began has no settings beside its result yet.
  if (!fs::exists(run.folder / "config.toml", ec))
    write_text_atomically(run.folder / "config.toml", to_toml(run.config));
  nlohmann::ordered_json json{{"state", to_string(r.state)}, {"step", r.step}};
  if (r.state == RunState::done)
    for (const auto& [key, value] : r.figures) json[key] = value;  // NaN is written as null
  else
    json["error"] = r.error;
  write_text_atomically(run.folder / "result.json", json.dump(2) + "\n");
}

void compare(const CompareRequest& request) {
  Comparer comparer(request);
  if (request.list)
    comparer.list();
  else
    comparer.run();
}

}  // namespace sg::tools
