#include "backends/cpu/tune.h"

#include <omp.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "backends/backends.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/onednn_compat.h"
#include "core/program.h"

namespace sg {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "stopgrad convolutions 1";
constexpr std::string_view kNames[] = {"formula", "direct", "automatic", "winograd", "columns", "windows", "tiles"};

std::optional<cpu::ConvAlgorithm> algorithm_by_name(std::string_view name) {
  for (std::size_t i = 1; i < std::size(kNames); ++i)
    if (kNames[i] == name) return static_cast<cpu::ConvAlgorithm>(i);
  return std::nullopt;
}

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name"))
      if (const auto colon = line.find(": "); colon != std::string::npos) return line.substr(colon + 2);
  return "unknown processor";
}

// Everything besides the shape that a time depends on.
std::string machine() {
  return fmt::format("{}, {}, {} threads, oneDNN {}", processor(), isa_name(), omp_get_max_threads(),
                     onednn::library_version());
}

std::string shape_key(const LowerCtx& ctx) {
  const Instr& instr = ctx.instr();
  std::string key(op_def(instr.op).name);
  for (std::int32_t v : instr.inputs) key += " " + to_string(ctx.type(v));
  return key + " -> " + to_string(ctx.out_type()) + " " + to_string(instr.attrs);
}

using Entries = std::map<std::string, std::map<std::string, std::string>>;  // machine -> shape -> algorithm

// Throws where the file is not ours.
Entries read_entries(const fs::path& path) {
  std::ifstream in(path);
  const auto json = nlohmann::json::parse(in);
  if (json.at("format").get<std::string>() != kFormat) throw std::runtime_error("it is of another format");
  return json.at("machines").get<Entries>();
}

class Results {
 public:
  std::optional<cpu::ConvAlgorithm> find(const std::string& machine, const std::string& shape) {
    const std::lock_guard lock(mutex_);
    load();
    const auto m = entries_.find(machine);
    if (m == entries_.end()) return std::nullopt;
    const auto s = m->second.find(shape);
    return s == m->second.end() ? std::nullopt : algorithm_by_name(s->second);
  }
  void add(const std::string& machine, const std::string& shape, cpu::ConvAlgorithm algorithm) {
    const std::lock_guard lock(mutex_);
    entries_[machine][shape] = kNames[static_cast<std::size_t>(algorithm)];
    save();
  }
  std::string note() {
    const std::lock_guard lock(mutex_);
    if (!loaded_) return "";
    std::size_t count = 0;
    for (const auto& [m, shapes] : entries_) count += shapes.size();
    return fmt::format("{} tuned convolutions{}", count, trouble_.empty() ? "" : ", " + trouble_);
  }
  void forget() {
    const std::lock_guard lock(mutex_);
    entries_.clear(), trouble_.clear(), loaded_ = false;
  }

 private:
  void load() {
    if (std::exchange(loaded_, true)) return;
    const fs::path path = tuning_file();
    std::error_code ignored;
    if (path.empty() || !fs::exists(path, ignored)) return;
    try {
      entries_ = read_entries(path);
    } catch (const std::exception& e) {
      trouble_ = fmt::format("{} was ignored: {}", path.string(), e.what());
    }
  }
  // Written beside and renamed: a reader sees the old file or the new one. What another process added is kept.
  void save() {
    const fs::path path = tuning_file();
    if (path.empty()) return;
    try {
      Entries all = entries_;
      try {
        for (const auto& [m, shapes] : read_entries(path)) all[m].insert(shapes.begin(), shapes.end());
      } catch (const std::exception&) {
        // None, or a broken one, which this one replaces.
      }
      fs::create_directories(path.parent_path());
      const fs::path beside = path.string() + fmt::format(".{}", getpid());
      {
        std::ofstream out(beside);
        out.exceptions(std::ios::failbit | std::ios::badbit);
        out << nlohmann::json{{"format", kFormat}, {"machines", all}}.dump(1) << "\n";
      }
      fs::rename(beside, path);
    } catch (const std::exception& e) {
      trouble_ = fmt::format("{} cannot be written: {}", path.string(), e.what());
    }
  }

  std::mutex mutex_;
  Entries entries_;
  std::string trouble_;
  bool loaded_ = false;
};

Results& results() {
  static Results r;
  return r;
}

std::atomic<cpu::Tuning>& chosen_tuning() {
  static std::atomic<cpu::Tuning> tuning{cpu::Tuning::off};
  return tuning;
}

thread_local std::optional<cpu::ConvAlgorithm> forced;  // during a trial, or by force_algorithm()

struct Forced {
  explicit Forced(cpu::ConvAlgorithm algorithm) { forced = algorithm; }
  ~Forced() { forced.reset(); }
  Forced(const Forced&) = delete;
  Forced& operator=(const Forced&) = delete;
};

// Seconds of one run of the instruction alone, packing of its weights included. Infinite where it does not compile.
double time_of(const LowerCtx& ctx, cpu::ConvAlgorithm algorithm) {
  using Clock = std::chrono::steady_clock;
  constexpr int kWarm = 2, kRuns = 7;
  const Forced guard(algorithm);
  try {
    Tape tape;
    std::vector<Value> inputs;
    for (std::size_t k = 0; k < ctx.instr().inputs.size(); ++k)
      inputs.push_back(tape.input(fmt::format("x{}", k), ctx.in_type(static_cast<int>(k))));
    const std::vector<Value> y = tape.emit(ctx.instr().op, inputs, ctx.attrs());
    Program program = compile(tape, y, cpu_backend());
    for (const Value& x : inputs) {
      Tensor t({DType::f32, x.shape()});
      float value = 0.1f;  // neither zeros nor subnormal numbers, which take another time
      for (float& v : t.span<float>()) v = value = value > 1.9f ? 0.1f : value * 1.01f;
      program.feed(x, t.cast(x.dtype()));
    }
    double best = INFINITY;
    for (int i = 0; i < kWarm + kRuns; ++i) {
      const auto start = Clock::now();
      program.run();
      const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
      if (i >= kWarm) best = std::min(best, seconds);
    }
    return best;
  } catch (const Error&) {
    return INFINITY;
  }
}

}  // namespace

std::string tuning_file() {
  const auto folder = [](const char* name) {
    return std::getenv(name) == nullptr ? fs::path() : fs::path(std::getenv(name));
  };
  fs::path base = folder("XDG_CACHE_HOME");
  if (base.empty() && !folder("HOME").empty()) base = folder("HOME") / ".cache";
  return base.empty() ? "" : (base / "stopgrad" / "convolutions.json").string();
}

namespace cpu {

Tuning tuning() { return chosen_tuning(); }
void set_tuning(Tuning tuning) { chosen_tuning() = tuning; }
std::string tuning_note() { return results().note(); }
void forget_tuning() { results().forget(); }
void force_algorithm(std::optional<ConvAlgorithm> algorithm) { forced = algorithm; }

ConvAlgorithm conv_algorithm(const LowerCtx& ctx, std::span<const ConvAlgorithm> possible) {
  if (forced) return *forced;
  if (tuning() == Tuning::off) return ConvAlgorithm::formula;
  const std::string here = machine(), shape = shape_key(ctx);
  const auto known = results().find(here, shape);
  if (known && std::find(possible.begin(), possible.end(), *known) != possible.end()) return *known;
  if (tuning() == Tuning::cached || possible.empty()) return ConvAlgorithm::formula;
  ConvAlgorithm best = ConvAlgorithm::formula;
  double least = INFINITY;
  for (const ConvAlgorithm algorithm : possible)
    if (const double seconds = time_of(ctx, algorithm); seconds < least) least = seconds, best = algorithm;
  if (best != ConvAlgorithm::formula) results().add(here, shape, best);
  return best;
}

}  // namespace cpu
}  // namespace sg
