#include "tools/run_folder.h"

#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "tools/files.h"

namespace sg::tools {
namespace fs = std::filesystem;
namespace {

std::string to_line(const Metrics& metrics) {
  std::string line = "{";
  for (const auto& [name, value] : metrics) {
    if (line.size() > 1) line += ", ";
    line += fmt::format("\"{}\": ", name);
    line += std::isfinite(value) ? fmt::format("{}", value) : "null";
  }
  return line + "}\n";
}

[[noreturn]] void cannot_write(const fs::path& path) {
  fail(ErrorKind::io, "cannot write {}: {}", path.string(), std::strerror(errno));
}

}  // namespace

void make_output_folder(const fs::path& path) {
  std::error_code ec;
  if (fs::exists(path, ec)) {
    if (!fs::is_directory(path, ec))
      fail(ErrorKind::io, "{} exists and is not a folder; choose another --out", path.string());
    const bool empty = fs::is_empty(path, ec);
    if (ec) fail(ErrorKind::io, "cannot read the folder {}: {}", path.string(), ec.message());
    if (!empty)
      fail(ErrorKind::io, "{} is not empty; choose another --out, or go on with the run in it with --resume",
           path.string());
  } else if (fs::create_directories(path, ec); ec) {
    fail(ErrorKind::io, "cannot make the folder {}: {}", path.string(), ec.message());
  }
  if (access(path.c_str(), W_OK | X_OK) != 0)
    fail(ErrorKind::io, "cannot write into the folder {}: {}", path.string(), std::strerror(errno));
}

RunFolder RunFolder::create(const fs::path& path) {
  make_output_folder(path);
  return RunFolder(path);
}

RunFolder RunFolder::open(const fs::path& path) {
  RunFolder run(path);
  std::error_code ec;
  if (!fs::is_directory(path, ec)) fail(ErrorKind::io, "{} is not a run folder: no such folder", path.string());
  for (const fs::path& file : {run.config(), run.checkpoint()})
    if (!fs::exists(file, ec))
      fail(ErrorKind::io, "{} is not a run folder: it has no {}", path.string(), file.filename().string());
  return run;
}

fs::path next_run_path(const std::string& name) {
  for (int i = 1;; ++i) {
    const fs::path path = fs::path("runs") / fmt::format("{}-{:03}", name, i);
    std::error_code ec;
    if (!fs::exists(path, ec)) return path;
  }
}

double metric(const Metrics& metrics, std::string_view name) {
  for (const auto& [key, value] : metrics)
    if (key == name) return value;
  return std::numeric_limits<double>::quiet_NaN();
}

std::vector<Metrics> read_metrics(const fs::path& path) {
  const std::vector<std::byte> bytes = read_file(path);
  std::string_view rest(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::vector<Metrics> all;
  for (std::size_t end; (end = rest.find('\n')) != std::string_view::npos; rest = rest.substr(end + 1)) {
    const auto object = nlohmann::ordered_json::parse(rest.substr(0, end), nullptr, false);
    if (!object.is_object()) fail(ErrorKind::io, "{}: line {} is not a JSON object", path.string(), all.size() + 1);
    Metrics& line = all.emplace_back();
    for (const auto& [key, value] : object.items())
      line.emplace_back(key, value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN());
  }
  return all;
}

MetricsLog::MetricsLog(fs::path path, std::int64_t last_step, std::vector<Metrics>& history) : path_(std::move(path)) {
  std::error_code ec;
  history.clear();
  if (fs::exists(path_, ec)) history = read_metrics(path_);
  std::erase_if(history, [&](const Metrics& m) { return !(metric(m, "step") <= static_cast<double>(last_step)); });
  std::string kept;
  for (const Metrics& m : history) kept += to_line(m);
  write_text_atomically(path_, kept);
  file_.reset(std::fopen(path_.c_str(), "ab"));
  if (!file_) cannot_write(path_);
}

void MetricsLog::append(const Metrics& metrics) {
  const std::string line = to_line(metrics);
  if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size()) cannot_write(path_);
}

void MetricsLog::flush() {
  if (std::fflush(file_.get()) != 0) cannot_write(path_);
}

}  // namespace sg::tools
