// curves.png: what a training run logged, as six panels.
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

Image draw_curves(const std::vector<Metrics>& history);

}  // namespace sg::tools
