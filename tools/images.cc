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

Image reconstruction_grid(const Tensor& originals, const Tensor& reconstructions, int columns) {
  SG_CHECK(originals.shape() == reconstructions.shape());
  const Shape& s = originals.shape();
  const int count = static_cast<int>(s[0]), height = static_cast<int>(s[1]), width = static_cast<int>(s[2]),
            channels = static_cast<int>(s[3]);
  const int pairs = (count + columns - 1) / columns;
  const int scale = std::max(1, 84 / std::max(height, width));
  const int gap = 4, cell_w = width * scale + gap, cell_h = height * scale;
  const int pair_h = 2 * cell_h + gap / 2 + 3 * gap;
  Image out(columns * cell_w + gap, pairs * pair_h + gap, channels, 255);
  for (int i = 0; i < count; ++i)
    for (int below = 0; below < 2; ++below) {
      Image cell = image_of(below == 0 ? originals : reconstructions, i);
      const int left = gap + i % columns * cell_w, top = gap + i / columns * pair_h + below * (cell_h + gap / 2);
      for (int y = 0; y < cell_h; ++y)
        for (int x = 0; x < width * scale; ++x)
          std::copy_n(cell.at(x / scale, y / scale), channels, out.at(left + x, top + y));
    }
  return out;
}

}  // namespace sg::tools
