// A run folder: config.toml, metrics.jsonl, checkpoint.safetensors, reconstructions.png, curves.png.
#pragma once
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sg::tools {

// Makes the folder and its parents. Error{io} where it exists and is not empty, is no folder, or cannot be written.
void make_output_folder(const std::filesystem::path& path);

class RunFolder {
 public:
  // make_output_folder().
  static RunFolder create(const std::filesystem::path& path);
  // Error{io} where it does not exist or has no config.toml or checkpoint.
  static RunFolder open(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config() const { return path_ / "config.toml"; }
  std::filesystem::path metrics() const { return path_ / "metrics.jsonl"; }
  std::filesystem::path checkpoint() const { return path_ / "checkpoint.safetensors"; }
  std::filesystem::path reconstructions() const { return path_ / "reconstructions.png"; }
  std::filesystem::path curves() const { return path_ / "curves.png"; }

 private:
  explicit RunFolder(std::filesystem::path path) : path_(std::move(path)) {}
  std::filesystem::path path_;
};

// The first of runs/NAME-001, runs/NAME-002, ... that does not exist.
std::filesystem::path next_run_path(const std::string& name);

// One step's numbers in the order in which they were logged. NaN and infinities are written as null and read as NaN.
using Metrics = std::vector<std::pair<std::string, double>>;

// Appends one JSON object a line, each with one write. A line that a crash left incomplete is dropped on reading.
class MetricsLog {
 public:
  // Keeps the lines up to `last_step` of an existing file (the steps after a checkpoint are trained again), and gives
  // them in `history`. Error{io}.
  MetricsLog(std::filesystem::path path, std::int64_t last_step, std::vector<Metrics>& history);
  void append(const Metrics& metrics);  // Error{io}: disk full
  void flush();                         // Error{io}

 private:
  struct Close {
    void operator()(std::FILE* f) const { std::fclose(f); }
  };
  std::filesystem::path path_;
  std::unique_ptr<std::FILE, Close> file_;
};

// Error{io} on lines that are not JSON objects, other than an incomplete last one.
std::vector<Metrics> read_metrics(const std::filesystem::path& path);

double metric(const Metrics& metrics, std::string_view name);  // NaN where it is missing

}  // namespace sg::tools
