#include "tools/toy.h"

#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <set>

#include "core/autodiff.h"
#include "core/program.h"
#include "models/init.h"
#include "models/quantizers/vector_quantizer.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tools/plot.h"

namespace sg::tools {
namespace {

constexpr double kSquare = 5, kView = 6;

Value himmelblau(Value rows) {
  const Value x = slice_axis(rows, 1, 0, 1), y = slice_axis(rows, 1, 1, 2);
  return square(square(x) + y - 11.0) + square(x + square(y) - 7.0);
}
double himmelblau(double x, double y) {
  const double a = x * x + y - 11, b = x + y * y - 7;
  return a * a + b * b;
}

struct Plane : Module {
  Plane(const BoundEstimator& estimator, const ToyOptions& o)
      : Module(o.seed),
        points(add_parameter("points", uniform_init({o.points, 2}, -kSquare, kSquare, o.seed, "points"))) {
    VectorQuantizerConfig config;
    config.dim = 2;
    config.codes = o.codes;
    config.estimator = estimator;
    config.codebook = CodebookUpdate::ema;
    config.ema_decay = o.ema_decay;
    config.init = CodebookInit::kmeans;
    quantizer.emplace(*this, "quantizer", config);
  }
  Variable& points;
  std::optional<VectorQuantizer> quantizer;
};

using Color = std::array<std::uint8_t, 3>;
constexpr Color kLevel{205, 208, 214}, kBlack{20, 20, 24};
constexpr std::array<Color, 8> kPaths{{{31, 101, 178},
                                       {208, 74, 42},
                                       {48, 140, 82},
                                       {138, 84, 164},
                                       {196, 142, 20},
                                       {23, 156, 168},
                                       {200, 70, 140},
                                       {120, 120, 60}}};

// Points with gaps: the pen is lifted between strokes, and where a point is outside.
void add(Curve& curve, std::initializer_list<std::pair<double, double>> stroke) {
  for (const auto& [x, y] : stroke) {
    const bool inside = std::abs(x) <= kView && std::abs(y) <= kView;
    curve.x.push_back(inside ? x : std::numeric_limits<double>::quiet_NaN());
    curve.y.push_back(y);
  }
}
void lift(Curve& curve) {
  curve.x.push_back(std::numeric_limits<double>::quiet_NaN());
  curve.y.push_back(0);
}

// Marching squares with linear interpolation, one segment or two a cell.
Curve level_lines(const std::vector<double>& levels) {
  constexpr int kCells = 120;
  Curve curve{.label = {}, .x = {}, .y = {}, .color = kLevel, .thin = true};
  const auto at = [](int i) { return -kView + 2 * kView * i / kCells; };
  for (const double level : levels)
    for (int i = 0; i < kCells; ++i)
      for (int j = 0; j < kCells; ++j) {
        const std::array<std::pair<double, double>, 4> corner{
            {{at(i), at(j)}, {at(i + 1), at(j)}, {at(i + 1), at(j + 1)}, {at(i), at(j + 1)}}};
        std::vector<std::pair<double, double>> cuts;
        for (std::size_t e = 0; e < 4; ++e) {
          const auto& [x0, y0] = corner[e];
          const auto& [x1, y1] = corner[(e + 1) % 4];
          const double f0 = himmelblau(x0, y0) - level, f1 = himmelblau(x1, y1) - level;
          if ((f0 < 0) == (f1 < 0)) continue;
          const double t = f0 / (f0 - f1);
          cuts.emplace_back(x0 + t * (x1 - x0), y0 + t * (y1 - y0));
        }
        for (std::size_t k = 0; k + 1 < cuts.size(); k += 2) {
          add(curve, {cuts[k], cuts[k + 1]});
          lift(curve);
        }
      }
  return curve;
}

Panel panel_of(const std::string& name, const ToyRun& run) {
  Panel panel;
  panel.title = fmt::format("{}: f = {:.3g}", name, run.loss.back());
  Curve frame{.label = {}, .x = {}, .y = {}, .color = kLevel, .thin = true};
  add(frame, {{-kView, -kView}, {kView, -kView}, {kView, kView}, {-kView, kView}, {-kView, -kView}});
  panel.curves.push_back(frame);
  panel.curves.push_back(level_lines({10, 50, 130, 250, 500}));
  const std::int64_t points = run.points[0].shape()[0], codes = run.codes[0].shape()[0];
  for (std::int64_t p = 0; p < points; ++p) {
    const auto color = kPaths[static_cast<std::size_t>(run.indices[0].at(p)) % kPaths.size()];
    Curve path{.label = {}, .x = {}, .y = {}, .color = color, .thin = true};
    for (const Tensor& t : run.points) add(path, {{t.at(2 * p), t.at(2 * p + 1)}});
    panel.curves.push_back(path);
    const double x = run.points.back().at(2 * p), y = run.points.back().at(2 * p + 1);
    Curve dot{.label = {}, .x = {}, .y = {}, .color = color, .thin = false};
    constexpr double r = 0.06;
    add(dot, {{x - r, y}, {x, y + r}, {x + r, y}, {x, y - r}, {x - r, y}});
    panel.curves.push_back(dot);
  }
  Curve crosses{.label = {}, .x = {}, .y = {}, .color = kBlack, .thin = false};
  for (std::int64_t k = 0; k < codes; ++k) {
    const double x = run.codes.back().at(2 * k), y = run.codes.back().at(2 * k + 1), r = 0.16;
    add(crosses, {{x - r, y - r}, {x + r, y + r}});
    lift(crosses);
    add(crosses, {{x - r, y + r}, {x + r, y - r}});
    lift(crosses);
  }
  panel.curves.push_back(crosses);
  return panel;
}

}  // namespace

ToyRun run_toy(const BoundEstimator& estimator, const ToyOptions& o, Backend& backend) {
  Plane plane(estimator, o);
  VectorQuantizer& quantizer = *plane.quantizer;
  quantizer.initialize(plane.points.value(), backend);
  Variable random("random", Tensor::of<std::int32_t>({2}, {static_cast<std::int32_t>(o.seed), 0}));
  Variable step("step", Tensor({DType::i32, {}}));

  Tape tape;
  const Value z = tape.read(plane.points), codes = tape.read(quantizer.codebook());
  const Value done = cast(tape.read(step), DType::f32) / static_cast<double>(std::max<std::int64_t>(1, o.steps));
  const QuantizeContext context{.random = tape.read(random), .progress = minimum(done, 1.0), .mask = {}};
  const Quantized x = quantizer(z, context);
  const Value at_codes = mean(himmelblau(x.q)), distance = sum(square(x.z - x.q), {-1});
  Value loss = sum(himmelblau(x.z_q));
  if (const Value term = quantizer.estimator_term(loss, x)) loss = loss + term;
  if (o.gamma > 0) loss = loss + o.gamma * sum(square(x.z - stop_gradient(x.q)));
  StepUpdates updates(tape);
  updates.set(plane.points, z - o.lr * gradient(loss, z, IfUnreachable::zero));
  quantizer.update(x, context, updates);
  updates.commit();
  tape.assign(step, tape.read(step) + 1);
  advance_random_state(tape, random);

  const Value quantization = mean(distance);
  Program program = compile(tape, {z, codes, x.indices, at_codes, quantization}, backend);
  ToyRun run;
  for (std::int64_t s = 0; s <= o.steps; ++s) {
    program.run();
    run.points.push_back(program.fetch(z));
    run.codes.push_back(program.fetch(codes));
    run.indices.push_back(program.fetch(x.indices));
    run.loss.push_back(program.fetch_scalar(at_codes));
    run.quantization.push_back(program.fetch_scalar(quantization));
    const auto chosen = run.indices.back().span<std::int32_t>();
    run.used.push_back(static_cast<double>(std::set<std::int32_t>(chosen.begin(), chosen.end()).size()));
  }
  return run;
}

Image draw_toys(const std::vector<std::pair<std::string, ToyRun>>& runs, int columns) {
  std::vector<Panel> panels;
  for (const auto& [name, run] : runs) panels.push_back(panel_of(name, run));
  return draw_panels(panels, columns, {.width = 440, .height = 440});
}

}  // namespace sg::tools
