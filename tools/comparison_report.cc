#include "tools/comparison_report.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "tools/curves.h"
#include "tools/files.h"

namespace sg::tools {
namespace {

struct Column {
  std::string key, title;
  double scale = 1;
};
// The figures that have a title here come first; others of the runs' evaluations follow under their keys.
const Column kColumns[] = {{"mse", "test MSE"},          {"usage", "codes used, %", 100},
                           {"perplexity", "perplexity"}, {"relative_error", "relative error"},
                           {"norm_ratio", "norm ratio"}, {"step_ms", "step, ms"}};
// Figures that say nothing beside the others.
constexpr std::string_view kLeftOut[] = {"images", "codes", "psnr", "quantization_mse"};

// 97.5 % quantile of Student's t with n degrees of freedom.
double t_quantile(std::size_t n) {
  constexpr double kTable[] = {12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281};
  if (n <= std::size(kTable)) return kTable[n - 1];
  // Cornish-Fisher expansion about the normal quantile: exact to 1e-4 from n = 11 on.
  const double z = 1.959964, z2 = z * z, v = static_cast<double>(n);
  return z + z * (z2 + 1) / (4 * v) + z * ((5 * z2 + 16) * z2 + 3) / (96 * v * v) +
         z * (((3 * z2 + 19) * z2 + 17) * z2 - 15) / (384 * v * v * v);
}

std::vector<double> values_of(const Comparison& c, std::span<const RunResult> results, std::size_t arm,
                              const Column& column) {
  std::vector<double> values;
  for (std::size_t i = 0; i < c.runs.size(); ++i)
    if (c.runs[i].arm == arm && results[i].state == RunState::done)
      if (const double value = metric(results[i].figures, column.key); !std::isnan(value))
        values.push_back(column.scale * value);
  return values;
}

// Step times are shown where every run has been alone.
bool timed(std::span<const RunResult> results) {
  return std::none_of(results.begin(), results.end(), [](const RunResult& r) {
    return r.state == RunState::done && std::isnan(metric(r.figures, "step_ms"));
  });
}

// What some run has.
std::vector<Column> columns_of(std::span<const RunResult> results) {
  std::vector<Column> columns;
  const auto add = [&](const Column& column) {
    if (column.key == "step_ms" && !timed(results)) return;
    if (std::any_of(results.begin(), results.end(),
                    [&](const RunResult& r) { return !std::isnan(metric(r.figures, column.key)); }))
      columns.push_back(column);
  };
  for (const Column& column : kColumns) add(column);
  for (const RunResult& r : results)
    for (const auto& [key, value] : r.figures) {
      const auto is_key = [&](const Column& column) { return column.key == key; };
      if (std::none_of(std::begin(kColumns), std::end(kColumns), is_key) &&
          std::none_of(columns.begin(), columns.end(), is_key) &&
          std::find(std::begin(kLeftOut), std::end(kLeftOut), key) == std::end(kLeftOut))
        add({key, key});
    }
  return columns;
}

std::string table_of(const Comparison& c, std::span<const RunResult> results) {
  const std::vector<Column> columns = columns_of(results);
  std::vector<std::vector<std::string>> lines(1);
  for (const Axis& axis : c.axes) lines[0].push_back(axis.key);
  if (c.axes.empty()) lines[0].push_back("settings");
  for (const Column& column : columns) lines[0].emplace_back(column.title);
  std::vector<std::string> notes;
  for (std::size_t a = 0; a < c.arms.size(); ++a) {
    std::vector<std::string>& line = lines.emplace_back(c.arms[a].values);
    if (c.axes.empty()) line.push_back(c.arms[a].name);
    for (const Column& column : columns) line.push_back(to_string(interval_of(values_of(c, results, a, column))));
  }
  for (std::size_t i = 0; i < c.runs.size(); ++i)
    if (results[i].state != RunState::done) {
      const std::string& error = results[i].error;
      notes.push_back(fmt::format("{}, seed {}: {}{}{}", c.arms[c.runs[i].arm].name, c.runs[i].seed,
                                  to_string(results[i].state), error.empty() ? "" : ": ",
                                  error.substr(0, error.find('\n'))));
    }

  std::vector<std::size_t> widths(lines[0].size());
  const auto width_of = [](const std::string& s) {  // in characters, not bytes
    return static_cast<std::size_t>(std::count_if(s.begin(), s.end(), [](char ch) { return (ch & 0xc0) != 0x80; }));
  };
  for (const auto& line : lines)
    for (std::size_t k = 0; k < line.size(); ++k) widths[k] = std::max(widths[k], width_of(line[k]));
  std::string text;
  for (std::size_t l = 0; l < lines.size(); ++l) {
    for (std::size_t k = 0; k < lines[l].size(); ++k)
      text += "| " + lines[l][k] + std::string(widths[k] - width_of(lines[l][k]) + 1, ' ');
    text += "|\n";
    if (l > 0) continue;
    for (const std::size_t width : widths) text += "|" + std::string(width + 2, '-');
    text += "|\n";
  }
  const TrainConfig& base = c.settings.base;
  text += fmt::format("\n{}, batch {}, {}; seeds {} to {}. ", base.data, base.batch,
                      base.epochs > 0 ? fmt::format("{} epochs", base.epochs) : fmt::format("{} steps", base.steps),
                      base.seed, base.seed + c.settings.seeds - 1);
  text += "Mean ± half-width of the 95 % t-interval over seeds.\n";
  if (!timed(results)) text += "Step times are left out: some runs were trained side by side (--jobs).\n";
  if (!notes.empty()) text += fmt::format("\nNot in the table:\n\n- {}\n", fmt::join(notes, "\n- "));
  return text;
}

std::string json_of(const Comparison& c, std::span<const RunResult> results) {
  const std::vector<Column> columns = columns_of(results);
  nlohmann::ordered_json arms = nlohmann::ordered_json::array();
  for (std::size_t a = 0; a < c.arms.size(); ++a) {
    nlohmann::ordered_json settings = nlohmann::ordered_json::object(), runs = nlohmann::ordered_json::array(),
                           summary = nlohmann::ordered_json::object();
    for (std::size_t k = 0; k < c.axes.size(); ++k) settings[c.axes[k].key] = c.arms[a].values[k];
    for (std::size_t i = 0; i < c.runs.size(); ++i) {
      if (c.runs[i].arm != a) continue;
      nlohmann::ordered_json run{{"seed", c.runs[i].seed}, {"state", to_string(results[i].state)}};
      if (results[i].state == RunState::done)
        for (const Column& column : columns) run[column.key] = metric(results[i].figures, column.key);
      else if (!results[i].error.empty())
        run["error"] = results[i].error;
      runs.push_back(std::move(run));
    }
    for (const Column& column : columns) {
      Column unscaled = column;
      unscaled.scale = 1;
      const Interval interval = interval_of(values_of(c, results, a, unscaled));
      nlohmann::ordered_json one{{"mean", nullptr}, {"half_width", nullptr}, {"n", interval.n}};
      if (interval.n > 0) one["mean"] = interval.mean;
      if (interval.n > 1) one["half_width"] = interval.half_width;
      summary[column.key] = std::move(one);
    }
    arms.push_back({{"name", c.arms[a].name}, {"settings", settings}, {"summary", summary}, {"runs", runs}});
  }
  return nlohmann::ordered_json{{"vary", c.settings.vary}, {"seeds", c.settings.seeds}, {"arms", arms}}.dump(2) + "\n";
}

// Mean over the runs of an arm, and the lowest and highest of them as thin lines, at equal steps.
void add_curves(Panel& panel, const std::vector<std::vector<Metrics>>& histories, std::string_view name,
                std::size_t arm) {
  std::vector<Curve> curves;
  for (const std::vector<Metrics>& history : histories) curves.push_back(curve_of(history, name, ""));
  if (curves.empty()) return;
  const auto longest = std::max_element(curves.begin(), curves.end(),
                                        [](const Curve& a, const Curve& b) { return a.x.size() < b.x.size(); });
  Curve mean{"", longest->x, {}, palette(arm), false}, low = mean, high = mean;
  low.thin = high.thin = true;
  for (std::size_t p = 0; p < longest->x.size(); ++p) {
    double total = 0, least = std::numeric_limits<double>::infinity(), most = -least;
    double n = 0;
    for (const Curve& curve : curves)
      if (p < curve.y.size())
        total += curve.y[p], n += 1, least = std::min(least, curve.y[p]), most = std::max(most, curve.y[p]);
    mean.y.push_back(total / n), low.y.push_back(least), high.y.push_back(most);
  }
  panel.curves.push_back(std::move(mean));
  if (curves.size() < 2) return;
  panel.curves.push_back(std::move(low));
  panel.curves.push_back(std::move(high));
}

Image curves_of(const Comparison& c, std::span<const RunResult> results) {
  std::vector<Panel> panels{{"reconstruction error", "step", true, false, {}},
                            {"codes used in a batch, fraction of the codebook", "step", false, true, {}},
                            {"perplexity over a window of steps", "step", false, true, {}},
                            {"|q| / |z| of the rows", "step", true, false, {}},
                            {"share of the reconstruction in the gradient at z", "step", false, true, {}},
                            {"arms: mean over seeds, thin the lowest and highest", "", false, false, {}}};
  constexpr std::string_view kNames[] = {"reconstruction", "usage", "perplexity_window", "norm_ratio", "share"};
  panels.back().legend = true;
  for (std::size_t a = 0; a < c.arms.size(); ++a) {
    std::vector<std::vector<Metrics>> histories;
    for (std::size_t i = 0; i < c.runs.size(); ++i) {
      std::error_code ec;
      if (c.runs[i].arm != a || results[i].step == 0) continue;
      if (!std::filesystem::exists(c.runs[i].folder / "metrics.jsonl", ec)) continue;
      std::vector<Metrics>& history = histories.emplace_back(read_metrics(c.runs[i].folder / "metrics.jsonl"));
      for (Metrics& m : history) {
        const double ours = metric(m, "grad_reconstruction"), other = metric(m, "grad_commitment");
        m.emplace_back("share", ours / (ours + other));
      }
    }
    for (std::size_t p = 0; p < std::size(kNames); ++p) add_curves(panels[p], histories, kNames[p], a);
    panels.back().curves.push_back({fmt::format("{}", fmt::join(c.arms[a].values, "  ")), {}, {}, palette(a), false});
  }
  return draw_panels(panels, 2);
}

}  // namespace

Interval interval_of(std::span<const double> values) {
  Interval r;
  r.n = values.size();
  const double n = static_cast<double>(r.n);
  for (const double v : values) r.mean += v / n;
  double squares = 0;
  for (const double v : values) squares += (v - r.mean) * (v - r.mean);
  r.half_width =
      r.n < 2 ? std::numeric_limits<double>::quiet_NaN() : t_quantile(r.n - 1) * std::sqrt(squares / (n - 1) / n);
  return r;
}

std::string to_string(const Interval& r) {
  if (r.n == 0) return "-";
  if (!(r.half_width > 0)) return fmt::format("{:.4g}{}", r.mean, r.n > 1 ? " ± 0" : "");
  // Two digits of the interval, and as many decimals of the mean.
  const int decimals = std::clamp(1 - static_cast<int>(std::floor(std::log10(r.half_width))), 0, 9);
  return fmt::format("{:.{}f} ± {:.{}f}", r.mean, decimals, r.half_width, decimals);
}

std::string write_report(const Comparison& c, std::span<const RunResult> results) {
  const std::string table = table_of(c, results);
  write_text_atomically(c.folder / "table.md", table + "\nMade by: `stopgrad compare --config compare.toml`\n");
  write_text_atomically(c.folder / "results.json", json_of(c, results));
  save_png(c.folder / "curves.png", curves_of(c, results));
  return table;
}

}  // namespace sg::tools
