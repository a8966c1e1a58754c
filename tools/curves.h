// curves.png: what a training run logged, as six panels.
#pragma once
#include <vector>

#include "tools/images.h"
#include "tools/run_folder.h"

namespace sg::tools {

Image draw_curves(const std::vector<Metrics>& history);

}  // namespace sg::tools
