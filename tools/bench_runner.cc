#include "tools/bench_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "backends/backends.h"
#include "core/error.h"
#include "tools/files.h"

namespace sg::tools {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// A backend may take work faster than it does it, so the last wait belongs to the time, and a slice may last longer
// than it was to.
double seconds_of(const std::function<void()>& run, double slice, Backend& backend) {
  const auto start = Clock::now();
  for (double runs = 1;; ++runs) {
    run();
    if (seconds_since(start) < slice) continue;
    backend.wait();
    return seconds_since(start) / runs;
  }
}

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(std::min(line.size(), line.find(':') + 2));
  return "unknown";
}

std::string milliseconds(double seconds) { return fmt::format("{:.3f}", 1e3 * seconds); }

}  // namespace

Spread spread(std::vector<double> values) {
  SG_CHECK(!values.empty(), "a spread of nothing");
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return {values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]), values.front(),
          values.back()};
}

std::string to_text(const Spread& s, int digits) {
  return fmt::format("{:.{}f} ({:.{}f}-{:.{}f})", s.median, digits, s.least, digits, s.greatest, digits);
}

nlohmann::ordered_json to_json(const Spread& s) {
  return {{"median", s.median}, {"least", s.least}, {"greatest", s.greatest}};
}

const BenchVariant& BenchGroup::variant(std::string_view name) const {
  for (const BenchVariant& v : variants)
    if (v.name == name) return v;
  SG_CHECK(false, "no variant {} in {}", name, title);
  return variants.front();
}

Spread BenchGroup::time(const BenchVariant& v) const { return spread(v.seconds); }

Spread BenchGroup::ratio(const BenchVariant& v) const {
  std::vector<double> ratios;
  for (std::size_t round = 0; round < v.seconds.size(); ++round)
    ratios.push_back(v.seconds[round] / (reference ? reference(*this, round) : variants.front().seconds[round]));
  return spread(std::move(ratios));
}

void measure(BenchGroup& group, const BenchOptions& options) {
  Backend& on = backend(options.backend);
  for (const BenchVariant& v : group.variants) {
    v.run();
    v.run();
  }
  on.wait();
  const std::size_t count = group.variants.size();
  for (std::size_t round = 0; round < static_cast<std::size_t>(options.rounds); ++round)
    for (std::size_t i = 0; i < count; ++i) {
      BenchVariant& v = group.variants[(round + i) % count];
      v.seconds.push_back(seconds_of(v.run, options.slice, on));
    }
}

std::string to_text(const BenchGroup& group) {
  const std::string reference = group.reference_name.empty() ? group.variants.front().name : group.reference_name;
  std::string out =
      fmt::format("{}\n  {:<34} {:>28} {:>9} {:>9}   time / {}\n", group.title, "", "ms", "GB/s", "GFLOP/s", reference);
  for (const BenchVariant& v : group.variants) {
    const Spread t = group.time(v);
    const auto rate = [&](double work) { return work > 0 ? fmt::format("{:.1f}", work / t.median * 1e-9) : "-"; };
    const std::string times =
        fmt::format("{} ({}-{})", milliseconds(t.median), milliseconds(t.least), milliseconds(t.greatest));
    out += fmt::format("  {:<34} {:>28} {:>9} {:>9}   {}\n", v.name, times, rate(v.bytes), rate(v.flop),
                       to_text(group.ratio(v), 2));
  }
  if (!group.note.empty()) out += "  " + group.note + "\n";
  return out;
}

nlohmann::ordered_json to_json(const BenchGroup& group) {
  nlohmann::ordered_json variants = nlohmann::ordered_json::array();
  for (const BenchVariant& v : group.variants)
    variants.push_back({{"name", v.name},
                        {"seconds", to_json(group.time(v))},
                        {"ratio", to_json(group.ratio(v))},
                        {"bytes", v.bytes},
                        {"flop", v.flop}});
  nlohmann::ordered_json out = {
      {"title", group.title},
      {"reference", group.reference_name.empty() ? group.variants.front().name : group.reference_name},
      {"variants", variants}};
  if (!group.note.empty()) out["note"] = group.note;
  return out;
}

Backend& start_bench(const BenchOptions& options) {
  if (options.threads > 0) set_threads(static_cast<int>(options.threads));
  Backend& on = backend(options.backend);
  refuse_emulated(on);
  return on;
}

void refuse_emulated(const Backend& backend) {
  if (backend.emulated())
    fail(ErrorKind::usage, "bench: {} is emulated, its times mean nothing; use a machine with the device",
         backend.name());
}

void report(const BenchOptions& options, std::string_view command, const std::string& table,
            nlohmann::ordered_json figures) {
  nlohmann::ordered_json out = {{"command", command},
                                {"processor", processor()},
                                {"threads", threads()},
                                {"backend", backend(options.backend).describe()}};
  out.update(figures);
  if (options.json == "-") {
    fmt::print("{}\n", out.dump(2));
    return;
  }
  fmt::print("{}", table);
  if (!options.json.empty()) write_text_atomically(options.json, out.dump(2) + "\n");
}

}  // namespace sg::tools
