// Drawn shapes: each is a signed distance to its outline, so that one evaluation a pixel gives an antialiased edge.
#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "core/philox.h"
#include "tools/data/dataset.h"

namespace sg::tools {
namespace {

constexpr double kTau = 2 * std::numbers::pi;

// Random numbers of one image.
class Draw {
 public:
  Draw(std::uint32_t seed, std::uint32_t image) : seed_(seed), image_(image) {}
  double operator()(double lo, double hi) {
    if (used_ == 4) {
      numbers_ = uniform_block(random_block(seed_, image_, 0, block_++));
      used_ = 0;
    }
    return lo + (hi - lo) * numbers_[used_++];
  }

 private:
  std::uint32_t seed_, image_;
  std::uint64_t block_ = 0;
  std::array<double, 4> numbers_{};
  std::size_t used_ = 4;
};

enum class Kind { disc, ring, box, triangle, pentagon, star, cross, stripes };

struct Shape2d {
  Kind kind;
  double x, y, radius, angle;
  std::array<double, 3> color;
};

double box_distance(double x, double y, double half_x, double half_y) {
  const double dx = std::abs(x) - half_x, dy = std::abs(y) - half_y;
  return std::hypot(std::max(dx, 0.0), std::max(dy, 0.0)) + std::min(std::max(dx, dy), 0.0);
}

// A regular polygon as the intersection of half planes; exact inside and near the edges, which is all that is drawn.
double polygon_distance(double x, double y, int sides, double radius) {
  const double sector = kTau / sides, apothem = radius * std::cos(sector / 2);
  double a = std::fmod(std::atan2(y, x) + kTau + sector / 2, sector) - sector / 2;
  return std::hypot(x, y) * std::cos(a) - apothem;
}

// Negative inside; in pixels.
double distance(const Shape2d& s, double px, double py) {
  const double c = std::cos(s.angle), n = std::sin(s.angle);
  const double x = c * (px - s.x) + n * (py - s.y), y = -n * (px - s.x) + c * (py - s.y), r = std::hypot(x, y);
  switch (s.kind) {
    case Kind::disc:
      return r - s.radius;
    case Kind::ring:
      return std::abs(r - 0.75 * s.radius) - 0.22 * s.radius;
    case Kind::box:
      return box_distance(x, y, 0.9 * s.radius, 0.6 * s.radius);
    case Kind::triangle:
      return polygon_distance(x, y, 3, s.radius);
    case Kind::pentagon:
      return polygon_distance(x, y, 5, s.radius);
    case Kind::star:
      return r - s.radius * (0.65 + 0.3 * std::cos(5 * std::atan2(y, x)));
    case Kind::cross:
      return std::min(box_distance(x, y, s.radius, 0.28 * s.radius), box_distance(x, y, 0.28 * s.radius, s.radius));
    case Kind::stripes: {
      const double period = 0.7 * s.radius, bar = std::abs(std::remainder(y, period)) - 0.25 * period;
      return std::max(bar, box_distance(x, y, s.radius, s.radius));
    }
  }
  return 0;
}

}  // namespace

ImageSet draw_shapes(std::int64_t count, std::int64_t size, std::int64_t channels, std::uint32_t seed) {
  ImageSet set{count, size, size, channels, {}};
  set.pixels.resize(static_cast<std::size_t>(count) * set.image_bytes());
  set.labels.resize(static_cast<std::size_t>(count));
  const double side = static_cast<double>(size);
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < count; ++i) {
    Draw draw(seed, static_cast<std::uint32_t>(i));
    const auto color = [&](double lo, double hi) {
      std::array<double, 3> rgb{};
      rgb[0] = draw(lo, hi);
      for (std::size_t c = 1; c < 3; ++c) rgb[c] = channels == 1 ? rgb[0] : draw(lo, hi);
      return rgb;
    };
    const std::array<double, 3> ground = color(0.0, 0.35);
    const double slope = draw(0.0, 0.25), direction = draw(0, kTau);
    const int shapes = 1 + static_cast<int>(draw(0, 3));
    std::array<Shape2d, 3> list{};
    for (int s = 0; s < shapes; ++s) {
      auto& shape = list[static_cast<std::size_t>(s)];
      shape.kind =
          static_cast<Kind>(std::min(static_cast<int>(draw(0, kShapeKinds)), static_cast<int>(kShapeKinds) - 1));
      shape.x = draw(0.25, 0.75) * side;
      shape.y = draw(0.25, 0.75) * side;
      shape.radius = draw(0.14, 0.34) * side;
      shape.angle = draw(0, kTau);
      shape.color = color(0.45, 1.0);
    }
    const auto largest =
        std::max_element(list.begin(), list.begin() + shapes, [](auto& a, auto& b) { return a.radius < b.radius; });
    set.labels[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(largest->kind);
    std::uint8_t* pixel = set.pixels.data() + static_cast<std::size_t>(i) * set.image_bytes();
    for (std::int64_t py = 0; py < size; ++py)
      for (std::int64_t px = 0; px < size; ++px) {
        const double x = static_cast<double>(px) + 0.5, y = static_cast<double>(py) + 0.5;
        std::array<double, 3> value = ground;
        for (auto& v : value)
          v += slope * ((x / side - 0.5) * std::cos(direction) + (y / side - 0.5) * std::sin(direction) + 0.5);
        for (int s = 0; s < shapes; ++s) {
          const auto& shape = list[static_cast<std::size_t>(s)];
          const double cover = std::clamp(0.5 - distance(shape, x, y), 0.0, 1.0);
          for (std::size_t c = 0; c < 3; ++c) value[c] += cover * (shape.color[c] - value[c]);
        }
        for (std::int64_t c = 0; c < channels; ++c)
          *pixel++ =
              static_cast<std::uint8_t>(std::lround(255 * std::clamp(value[static_cast<std::size_t>(c)], 0.0, 1.0)));
      }
  }
  return set;
}

}  // namespace sg::tools
