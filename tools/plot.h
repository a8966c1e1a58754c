// A small plotter: panels of curves with axes, ticks, grid, legend and text, drawn into an image.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "tools/images.h"

namespace sg::tools {

struct Curve {
  std::string label;
  std::vector<double> x, y;             // points that are not finite leave a gap
  std::array<std::uint8_t, 3> color{};  // all zero: the next color of the palette
  bool thin = false;
};

struct Panel {
  std::string title, x_label;
  bool log_y = false;      // values <= 0 are left out
  bool from_zero = false;  // the y axis includes 0
  std::vector<Curve> curves;
  bool legend = false;  // no axes: a list of the curves' labels
};

struct PanelSize {
  int width = 720, height = 420;  // pixels, with the labels
};

// Colours that are easy to tell apart: six, then others around the circle of hues.
std::array<std::uint8_t, 3> palette(std::size_t i);

// The panels in a grid, left to right, top to bottom.
Image draw_panels(const std::vector<Panel>& panels, int columns, PanelSize size = {});

}  // namespace sg::tools
