#include "tools/curves.h"

#include <algorithm>
#include <cmath>

#include "tools/plot.h"

namespace sg::tools {
namespace {

constexpr std::size_t kPoints = 400;

}  // namespace

Curve curve_of(const std::vector<Metrics>& history, std::string_view name, std::string label, bool thin) {
  Curve curve;
  curve.label = std::move(label);
  curve.thin = thin;
  const std::size_t stretch = (history.size() + kPoints - 1) / kPoints;
  for (std::size_t first = 0; first < history.size(); first += stretch) {
    const std::size_t last = std::min(first + stretch, history.size());
    double x = 0, y = 0;
    for (std::size_t i = first; i < last; ++i) x += metric(history[i], "step"), y += metric(history[i], name);
    curve.x.push_back(x / static_cast<double>(last - first));
    curve.y.push_back(y / static_cast<double>(last - first));
  }
  return curve;
}

Image draw_curves(const std::vector<Metrics>& history, const std::vector<CurvePanel>& wanted) {
  std::vector<Panel> panels;
  for (const CurvePanel& w : wanted) {
    Panel panel{w.title, "step", w.log_y, w.from_zero, {}};
    for (const CurvePanel::Line& line : w.lines) {
      Curve curve = curve_of(history, line.metric, line.label, line.thin);
      if (std::any_of(curve.y.begin(), curve.y.end(), [](double y) { return std::isfinite(y); }))
        panel.curves.push_back(std::move(curve));
    }
    if (!panel.curves.empty()) panels.push_back(std::move(panel));
  }
  if (panels.empty()) panels.push_back({"nothing was logged", "step", false, false, {}});
  return draw_panels(panels, 2);
}

}  // namespace sg::tools
