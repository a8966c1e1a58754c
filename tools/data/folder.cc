// Folders of PNG and JPEG files.
#include <stb/stb_image.h>
#include <stb/stb_image_resize.h>

#include <algorithm>
#include <cctype>
#include <limits>
#include <memory>

#include "core/error.h"
#include "tools/data/dataset.h"
#include "tools/files.h"

namespace sg::tools {
namespace {

constexpr int kMaxSide = 1 << 15;

const stbi_uc* as_stb(const std::vector<std::byte>& bytes, const std::filesystem::path& path) {
  if (bytes.size() > static_cast<std::size_t>(std::numeric_limits<int>::max()))
    fail(ErrorKind::io, "{}: larger than 2 GiB", path.string());
  return reinterpret_cast<const stbi_uc*>(bytes.data());
}

// Channels as stored, after a check of the header.
int image_channels(const std::vector<std::byte>& bytes, const std::filesystem::path& path) {
  int width = 0, height = 0, channels = 0;
  if (bytes.empty()) fail(ErrorKind::io, "{}: empty file; a PNG or JPEG was expected", path.string());
  if (!stbi_info_from_memory(as_stb(bytes, path), static_cast<int>(bytes.size()), &width, &height, &channels))
    fail(ErrorKind::io, "{}: not a readable PNG or JPEG ({})", path.string(), stbi_failure_reason());
  if (width < 1 || height < 1 || width > kMaxSide || height > kMaxSide)
    fail(ErrorKind::io, "{}: {} x {} pixels; at most {} a side are supported", path.string(), width, height, kMaxSide);
  return channels;
}

}  // namespace

std::vector<std::filesystem::path> list_images(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code ec;
  using Walk = std::filesystem::recursive_directory_iterator;
  for (Walk it(folder, ec); !ec && it != Walk(); it.increment(ec)) {
    std::string extension = it->path().extension().string();
    std::transform(extension.begin(), extension.end(), extension.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    std::error_code ignored;
    if ((extension == ".png" || extension == ".jpg" || extension == ".jpeg") && it->is_regular_file(ignored))
      files.push_back(it->path());
  }
  if (ec) fail(ErrorKind::io, "cannot read the folder {}: {}", folder.string(), ec.message());
  std::sort(files.begin(), files.end());
  return files;
}

ImageSet read_images(const std::vector<std::filesystem::path>& files, std::int64_t size, std::int64_t channels) {
  if (channels == 0) {
    channels = 1;
    for (const auto& path : files)
      if (image_channels(read_file(path), path) > 2) {
        channels = 3;
        break;
      }
  }
  ImageSet set{static_cast<std::int64_t>(files.size()), size, size, channels, {}};
  set.pixels.resize(files.size() * set.image_bytes());
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::vector<std::byte> bytes = read_file(files[i]);
    image_channels(bytes, files[i]);
    int width = 0, height = 0, stored = 0;
    const std::unique_ptr<stbi_uc, void (*)(void*)> pixels(
        stbi_load_from_memory(as_stb(bytes, files[i]), static_cast<int>(bytes.size()), &width, &height, &stored,
                              static_cast<int>(channels)),
        &stbi_image_free);
    if (!pixels) fail(ErrorKind::io, "{}: corrupt image ({})", files[i].string(), stbi_failure_reason());
    const int side = std::min(width, height), left = (width - side) / 2, top = (height - side) / 2;
    const int stride = width * static_cast<int>(channels);
    const stbi_uc* corner =
        pixels.get() + static_cast<std::ptrdiff_t>(top) * stride + static_cast<std::ptrdiff_t>(left) * channels;
    std::uint8_t* to = set.pixels.data() + i * set.image_bytes();
    if (side == size) {  // a resampling filter would blur what already has the size
      const std::size_t row = static_cast<std::size_t>(size * channels);
      for (std::int64_t y = 0; y < size; ++y)
        std::copy_n(corner + y * stride, row, to + static_cast<std::size_t>(y) * row);
      continue;
    }
    if (!stbir_resize_uint8(corner, side, side, stride, to, static_cast<int>(size), static_cast<int>(size), 0,
                            static_cast<int>(channels)))
      fail(ErrorKind::io, "{}: cannot be resized to {} x {}", files[i].string(), size, size);
  }
  return set;
}

}  // namespace sg::tools
