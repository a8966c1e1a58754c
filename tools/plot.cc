#include "tools/plot.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include <stb/stb_easy_font.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <cmath>
#include <limits>

namespace sg::tools {
namespace {

using Color = std::array<std::uint8_t, 3>;
constexpr Color kInk{40, 40, 46}, kFaint{225, 226, 230}, kAxis{120, 122, 130};
constexpr std::array<Color, 6> kPalette{
    {{31, 101, 178}, {208, 74, 42}, {48, 140, 82}, {138, 84, 164}, {196, 142, 20}, {90, 96, 104}}};

constexpr int kLeft = 104, kRight = 24, kTop = 66, kBottom = 62;
constexpr int kTextScale = 2;

class Canvas {
 public:
  explicit Canvas(Image& image) : image_(image) {}

  void blend(int x, int y, const Color& color, double cover) {
    if (x < 0 || y < 0 || x >= image_.width || y >= image_.height || cover <= 0) return;
    std::uint8_t* p = image_.at(x, y);
    for (std::size_t c = 0; c < 3; ++c)
      p[c] = static_cast<std::uint8_t>(std::lround(p[c] + std::min(cover, 1.0) * (color[c] - p[c])));
  }

  void rectangle(int x0, int y0, int x1, int y1, const Color& color) {
    for (int y = y0; y < y1; ++y)
      for (int x = x0; x < x1; ++x) blend(x, y, color, 1);
  }

  // Antialiased: a pixel's cover is its distance to the segment, clipped to [x_lo, x_hi) x [y_lo, y_hi).
  void line(double x0, double y0, double x1, double y1, const Color& color, double width, int x_lo, int y_lo, int x_hi,
            int y_hi) {
    const double half = width / 2, dx = x1 - x0, dy = y1 - y0, length2 = dx * dx + dy * dy;
    const int left = std::max(x_lo, static_cast<int>(std::floor(std::min(x0, x1) - half - 1)));
    const int right = std::min(x_hi - 1, static_cast<int>(std::ceil(std::max(x0, x1) + half + 1)));
    const int top = std::max(y_lo, static_cast<int>(std::floor(std::min(y0, y1) - half - 1)));
    const int bottom = std::min(y_hi - 1, static_cast<int>(std::ceil(std::max(y0, y1) + half + 1)));
    for (int y = top; y <= bottom; ++y)
      for (int x = left; x <= right; ++x) {
        const double px = x + 0.5 - x0, py = y + 0.5 - y0;
        const double t = length2 > 0 ? std::clamp((px * dx + py * dy) / length2, 0.0, 1.0) : 0;
        blend(x, y, color, half + 0.5 - std::hypot(px - t * dx, py - t * dy));
      }
  }

  static int text_width(const std::string& text) {
    std::string copy = text;
    return kTextScale * stb_easy_font_width(copy.data());
  }

  // Top left corner at (x, y).
  void text(int x, int y, const std::string& text, const Color& color) {
    struct Vertex {
      float x, y, z;
      std::uint8_t rgba[4];
    };
    std::vector<Vertex> vertices(text.size() * 80 + 80);
    std::string copy = text;
    const int quads = stb_easy_font_print(0, 0, copy.data(), nullptr, vertices.data(),
                                          static_cast<int>(vertices.size() * sizeof(Vertex)));
    for (int q = 0; q < quads; ++q) {
      const Vertex& a = vertices[static_cast<std::size_t>(4 * q)];
      const Vertex& b = vertices[static_cast<std::size_t>(4 * q + 2)];
      const auto at = [](float v) { return kTextScale * static_cast<int>(std::lround(v)); };
      rectangle(x + at(a.x), y + at(a.y), x + at(b.x), y + at(b.y), color);
    }
  }

 private:
  Image& image_;
};

std::string number(double v) {
  if (v == 0) return "0";
  const double size = std::abs(v);
  if (size >= 1e6 || size < 1e-4) return fmt::format("{:.0e}", v);
  return fmt::format("{:.6g}", v);
}

// Multiples of 1, 2 or 5 times a power of ten; at most about `wanted` of them.
std::vector<double> linear_ticks(double lo, double hi, int wanted) {
  const double raw = (hi - lo) / wanted, power = std::pow(10.0, std::floor(std::log10(raw)));
  const double step = power * (raw / power <= 1 ? 1 : raw / power <= 2 ? 2 : raw / power <= 5 ? 5 : 10);
  std::vector<double> ticks;
  for (double i = std::ceil(lo / step - 1e-9); i * step <= hi + 1e-9 * step; ++i) ticks.push_back(i * step);
  return ticks;
}

// Over more than two decades the powers of ten; below that 1, 2, 5 times each; within a few times as on a linear axis.
std::vector<double> log_ticks(double lo, double hi) {
  if (hi < 5 * lo) return linear_ticks(lo, hi, 6);
  std::vector<double> ticks;
  const bool dense = std::log10(hi / lo) < 2.5;
  for (int e = static_cast<int>(std::floor(std::log10(lo))); e <= static_cast<int>(std::ceil(std::log10(hi))); ++e)
    for (const double m : {1.0, 2.0, 5.0})
      if (const double v = m * std::pow(10.0, e); v >= lo * (1 - 1e-9) && v <= hi * (1 + 1e-9) && (dense || m == 1.0))
        ticks.push_back(v);
  return ticks;
}

struct Range {
  double lo = std::numeric_limits<double>::infinity(), hi = -std::numeric_limits<double>::infinity();
  void add(double v) { lo = std::min(lo, v), hi = std::max(hi, v); }
  bool empty() const { return lo > hi; }
};

Color color_of(const Panel& panel, std::size_t k) {
  const Color color = panel.curves[k].color;
  return color == Color{} ? palette(k) : color;
}

bool drawable(const Panel& panel, double x, double y) {
  return std::isfinite(x) && std::isfinite(y) && (!panel.log_y || y > 0);
}

void draw_legend(Canvas canvas, const Panel& panel, int x0, int y0, PanelSize size) {
  constexpr int kLine = 24;
  const int lines = (size.height - kTop) / kLine;
  canvas.text(x0 + kLeft, y0 + 14, panel.title, kInk);
  int x = x0 + kLeft, line = 0, widest = 0;
  for (std::size_t k = 0; k < panel.curves.size(); ++k) {
    if (line == lines) x += widest + 60, line = 0, widest = 0;
    const int y = y0 + kTop - 24 + kLine * line++;
    canvas.rectangle(x, y + 6, x + 22, y + 9, color_of(panel, k));
    canvas.text(x + 28, y, panel.curves[k].label, kInk);
    widest = std::max(widest, Canvas::text_width(panel.curves[k].label));
  }
}

void draw_panel(Canvas canvas, const Panel& panel, int x0, int y0, PanelSize size) {
  const int left = x0 + kLeft, right = x0 + size.width - kRight, top = y0 + kTop, bottom = y0 + size.height - kBottom;
  if (panel.legend) return draw_legend(canvas, panel, x0, y0, size);
  canvas.text(left, y0 + 14, panel.title, kInk);

  Range xs, ys;
  for (const Curve& curve : panel.curves)
    for (std::size_t i = 0; i < curve.x.size(); ++i)
      if (drawable(panel, curve.x[i], curve.y[i])) xs.add(curve.x[i]), ys.add(curve.y[i]);
  if (xs.empty()) {
    canvas.text(left, top + 20, "no data", kAxis);
    return;
  }
  if (panel.from_zero && !panel.log_y) ys.add(0);
  if (xs.lo == xs.hi) xs.hi = xs.lo + 1;
  if (panel.log_y) {
    ys.lo /= 1.15, ys.hi *= 1.15;
  } else {
    const double margin = ys.hi > ys.lo ? 0.05 * (ys.hi - ys.lo) : std::max(0.05 * std::abs(ys.hi), 1e-6);
    if (!panel.from_zero || ys.lo < 0) ys.lo -= margin;
    ys.hi += margin;
  }
  const auto px = [&](double v) { return left + (v - xs.lo) / (xs.hi - xs.lo) * (right - left); };
  const auto py = [&](double v) {
    const double t = panel.log_y ? std::log(v / ys.lo) / std::log(ys.hi / ys.lo) : (v - ys.lo) / (ys.hi - ys.lo);
    return bottom - t * (bottom - top);
  };

  for (const double v : panel.log_y ? log_ticks(ys.lo, ys.hi) : linear_ticks(ys.lo, ys.hi, 6)) {
    const int y = static_cast<int>(std::lround(py(v)));
    canvas.rectangle(left, y, right, y + 1, kFaint);
    const std::string label = number(v);
    canvas.text(left - 10 - Canvas::text_width(label), y - 7, label, kInk);
  }
  for (const double v : linear_ticks(xs.lo, xs.hi, 6)) {
    const int x = static_cast<int>(std::lround(px(v)));
    canvas.rectangle(x, top, x + 1, bottom, kFaint);
    canvas.rectangle(x, bottom, x + 1, bottom + 6, kAxis);
    const std::string label = number(v);
    canvas.text(std::min(x - Canvas::text_width(label) / 2, x0 + size.width - Canvas::text_width(label)), bottom + 12,
                label, kInk);
  }
  canvas.rectangle(left, top, left + 1, bottom, kAxis);
  canvas.rectangle(left, bottom, right, bottom + 1, kAxis);
  canvas.text((left + right - Canvas::text_width(panel.x_label)) / 2, bottom + 36, panel.x_label, kInk);

  int legend = left;
  for (std::size_t k = 0; k < panel.curves.size(); ++k) {
    const Curve& curve = panel.curves[k];
    const Color color = color_of(panel, k);
    const double width = curve.thin ? 1.0 : 2.0;
    bool pen_down = false;
    double last_x = 0, last_y = 0;
    for (std::size_t i = 0; i < curve.x.size(); ++i) {
      const bool ok = drawable(panel, curve.x[i], curve.y[i]);
      if (ok) {
        const double x = px(curve.x[i]), y = py(curve.y[i]);
        canvas.line(pen_down ? last_x : x, pen_down ? last_y : y, x, y, color, width, left, top, right, bottom + 1);
        last_x = x, last_y = y;
      }
      pen_down = ok;
    }
    if (curve.label.empty()) continue;
    canvas.rectangle(legend, y0 + 45, legend + 22, y0 + 48, color);
    canvas.text(legend + 28, y0 + 39, curve.label, kInk);
    legend += 28 + Canvas::text_width(curve.label) + 22;
  }
}

}  // namespace

std::array<std::uint8_t, 3> palette(std::size_t i) {
  if (i < kPalette.size()) return kPalette[i];
  const double hue = 6 * std::fmod(0.618034 * static_cast<double>(i), 1.0), light = i % 2 == 0 ? 0.75 : 0.55;
  Color color{};
  for (int c = 0; c < 3; ++c) {
    const double distance = std::abs(std::fmod(hue + 2.0 * c, 6.0) - 3.0);  // 3 at the channel's own hue
    color[static_cast<std::size_t>(c)] =
        static_cast<std::uint8_t>(std::lround(255 * light * std::clamp(distance - 1.0, 0.05, 1.0)));
  }
  return color;
}

Image draw_panels(const std::vector<Panel>& panels, int columns, PanelSize size) {
  const int count = static_cast<int>(panels.size()), rows = (count + columns - 1) / columns;
  Image image(columns * size.width, rows * size.height, 3, 255);
  for (int i = 0; i < count; ++i)
    draw_panel(Canvas(image), panels[static_cast<std::size_t>(i)], i % columns * size.width, i / columns * size.height,
               size);
  return image;
}

}  // namespace sg::tools
