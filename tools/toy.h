// Vector quantization in the plane: points fall down Himmelblau's function f of their codes, f(x, y) = (x^2 + y - 11)^2
// + (x + y^2 - 7)^2, which has four minima of 0. After the toy of Fifty et al. (2410.06424, appendix): what a gradient
// estimator does can be seen.
#pragma once
#include <cstdint>
#include <vector>

#include "core/backend.h"
#include "ops/estimator_table.h"
#include "tools/images.h"

namespace sg::tools {

struct ToyOptions {
  std::int64_t points = 64, codes = 12, steps = 100;
  double lr = 1e-3, ema_decay = 0.8;
  double gamma = 0;        // weight of |z - q|^2 of each point
  std::uint32_t seed = 1;  // of the points, uniform in [-5, 5]^2; codes start at their k-means
};

// Each step is z <- z - lr d/dz [f(z_q) + gamma |z - q|^2] for every point, then the codes' moving averages.
struct ToyRun {
  std::vector<Tensor> points, codes;  // (points,2) and (codes,2) at the start of each step, and at the end
  std::vector<Tensor> indices;        // i32 (points): the codes of these points
  std::vector<double> loss;           // mean of f over the points' codes, of the same times
  std::vector<double> quantization;   // mean of |z - q|^2
  std::vector<double> used;           // codes that some point has
};
ToyRun run_toy(const BoundEstimator& estimator, const ToyOptions& options, Backend& backend);

// A panel per run: level lines of f, each point's path (coloured by its first code) to a dot, codes at the end as
// crosses. What leaves [-6, 6]^2 is not drawn.
Image draw_toys(const std::vector<std::pair<std::string, ToyRun>>& runs, int columns);

}  // namespace sg::tools
