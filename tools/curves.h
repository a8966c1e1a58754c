// curves.png: what a training run logged, in panels.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "tools/images.h"
#include "tools/plot.h"
#include "tools/run_folder.h"

namespace sg::tools {

// A metric over steps; long runs are averaged over equal stretches of steps.
Curve curve_of(const std::vector<Metrics>& history, std::string_view name, std::string label, bool thin = false);

// A panel of metrics over steps, as a model asks for it.
struct CurvePanel {
  struct Line {
    std::string metric, label;
    bool thin = false;
  };
  std::string title;
  bool log_y = false, from_zero = false;  // as in Panel
  std::vector<Line> lines;
};
// Two panels in a row. Lines that nothing was logged of are left out, and panels without lines.
Image draw_curves(const std::vector<Metrics>& history, const std::vector<CurvePanel>& panels);

}  // namespace sg::tools
