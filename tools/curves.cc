#include "tools/curves.h"

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

Image draw_curves(const std::vector<Metrics>& history) {
  const auto c = [&](std::string_view name, std::string label, bool thin = false) {
    return curve_of(history, name, std::move(label), thin);
  };
  std::vector<Panel> panels(6);
  panels[0] = {"loss",
               "step",
               true,
               false,
               {c("loss", "total"), c("reconstruction", "reconstruction"), c("codebook", "codebook"),
                c("commitment", "commitment", true)}};  // equal to the codebook loss: both lines are seen
  panels[1] = {"codes used, fraction of the codebook",
               "step",
               false,
               true,
               {c("usage_window", "window of steps"), c("usage", "one batch")}};
  panels[2] = {"|q| / |z| of the rows",
               "step",
               true,
               false,
               {c("norm_ratio", "mean"), c("norm_ratio_p5", "5 %", true), c("norm_ratio_p95", "95 %", true)}};
  panels[3] = {"perplexity of the codes",
               "step",
               false,
               true,
               {c("perplexity_window", "window of steps"), c("perplexity", "one batch")}};
  panels[4] = {"relative quantization error |z-q|^2 / |z|^2", "step", true, false, {c("relative_error", "mean")}};
  panels[5] = {"size of the gradient at z",
               "step",
               true,
               false,
               {c("grad_reconstruction", "reconstruction"), c("grad_commitment", "commitment")}};
  return draw_panels(panels, 2);
}

}  // namespace sg::tools
