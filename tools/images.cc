#include "tools/images.h"

#include <stb/stb_image_write.h>

#include <algorithm>
#include <cmath>

#include "core/safetensors.h"

namespace sg::tools {

void save_png(const std::filesystem::path& path, const Image& image) {
  std::vector<std::byte> bytes;
  const auto append = [](void* context, void* data, int size) {
    auto& out = *static_cast<std::vector<std::byte>*>(context);
    out.insert(out.end(), static_cast<std::byte*>(data), static_cast<std::byte*>(data) + size);
  };
  if (!stbi_write_png_to_func(append, &bytes, image.width, image.height, image.channels, image.pixels.data(),
                              image.width * image.channels))
    fail(ErrorKind::io, "cannot make a PNG of {} x {} for {}", image.width, image.height, path.string());
  write_file_atomically(path, bytes);
}

Image image_of(const Tensor& batch, std::int64_t i) {
  const Shape& s = batch.shape();
  SG_CHECK(s.rank() == 4 && (s[3] == 1 || s[3] == 3) && i < s[0], "{}", to_string(s));
  Image out(static_cast<int>(s[2]), static_cast<int>(s[1]), static_cast<int>(s[3]), 0);
  const auto values = batch.span<float>().subspan(static_cast<std::size_t>(i) * out.pixels.size(), out.pixels.size());
  std::transform(values.begin(), values.end(), out.pixels.begin(), [](float v) {
    return static_cast<std::uint8_t>(std::lround(255.0f * std::clamp(std::isnan(v) ? 0.0f : v, 0.0f, 1.0f)));
  });
  return out;
}

namespace {

constexpr int kGap = 4;  // between cells, and around the whole

// How often a pixel of images of this size is repeated.
int enlarged(const Shape& s) { return std::max<int>(1, 84 / static_cast<int>(std::max(s[1], s[2]))); }

void paste(const Image& cell, int scale, int left, int top, Image& out) {
  for (int y = 0; y < cell.height * scale; ++y)
    for (int x = 0; x < cell.width * scale; ++x)
      std::copy_n(cell.at(x / scale, y / scale), cell.channels, out.at(left + x, top + y));
}

}  // namespace

Image image_grid(const Tensor& images, int columns) {
  const Shape& s = images.shape();
  const int count = static_cast<int>(s[0]), scale = enlarged(s), cell_w = static_cast<int>(s[2]) * scale + kGap,
            cell_h = static_cast<int>(s[1]) * scale + kGap;
  Image out(std::min(columns, count) * cell_w + kGap, (count + columns - 1) / columns * cell_h + kGap,
            static_cast<int>(s[3]), 255);
  for (int i = 0; i < count; ++i)
    paste(image_of(images, i), scale, kGap + i % columns * cell_w, kGap + i / columns * cell_h, out);
  return out;
}

Image reconstruction_grid(const Tensor& originals, const Tensor& reconstructions, int columns) {
  SG_CHECK(originals.shape() == reconstructions.shape());
  const Shape& s = originals.shape();
  const int count = static_cast<int>(s[0]), scale = enlarged(s), cell_w = static_cast<int>(s[2]) * scale + kGap,
            cell_h = static_cast<int>(s[1]) * scale, pair_h = 2 * cell_h + kGap / 2 + 3 * kGap;
  Image out(columns * cell_w + kGap, (count + columns - 1) / columns * pair_h + kGap, static_cast<int>(s[3]), 255);
  for (int i = 0; i < count; ++i) {
    const int left = kGap + i % columns * cell_w, top = kGap + i / columns * pair_h;
    paste(image_of(originals, i), scale, left, top, out);
    paste(image_of(reconstructions, i), scale, left, top + cell_h + kGap / 2, out);
  }
  return out;
}

}  // namespace sg::tools
