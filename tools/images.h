// Pictures: 8-bit images, PNG files, and the grid of originals above reconstructions.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "core/tensor.h"

namespace sg::tools {

struct Image {
  int width = 0, height = 0, channels = 3;  // 1 grey, 3 red-green-blue
  std::vector<std::uint8_t> pixels;         // row by row, channels innermost

  Image() = default;
  Image(int w, int h, int c, std::uint8_t fill)
      : width(w),
        height(h),
        channels(c),
        pixels(static_cast<std::size_t>(w) * static_cast<std::size_t>(h) * static_cast<std::size_t>(c), fill) {}
  std::uint8_t* at(int x, int y) { return pixels.data() + offset(x, y); }
  const std::uint8_t* at(int x, int y) const { return pixels.data() + offset(x, y); }

 private:
  std::size_t offset(int x, int y) const {
    return (static_cast<std::size_t>(y) * static_cast<std::size_t>(width) + static_cast<std::size_t>(x)) *
           static_cast<std::size_t>(channels);
  }
};

// PNG, written atomically. Error{io}.
void save_png(const std::filesystem::path& path, const Image& image);

// Image i of a batch (N,H,W,C) in [0,1], values outside clamped, C of 1 or 3.
Image image_of(const Tensor& batch, std::int64_t i);

// Images (N,H,W,C) in their order, `columns` a row, enlarged by a whole factor so that small images can be seen.
Image image_grid(const Tensor& images, int columns);

// Pairs of rows: originals, below each its reconstruction, enlarged by a whole factor so that small images can be seen.
// Both (N,H,W,C); `columns` images a row.
Image reconstruction_grid(const Tensor& originals, const Tensor& reconstructions, int columns);

}  // namespace sg::tools
