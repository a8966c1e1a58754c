// Image data sets. Pixels are read once and kept as bytes; batches are converted to f32 in [0,1] as they are needed.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace sg::tools {

// count images of height x width x channels, one after the other, channels innermost (NHWC).
struct ImageSet {
  std::int64_t count = 0, height = 0, width = 0, channels = 0;
  std::vector<std::uint8_t> pixels;
  std::vector<std::int32_t> labels = {};  // what is on each image, from 0 on; empty: not known

  std::size_t image_bytes() const { return static_cast<std::size_t>(height * width * channels); }
  std::span<const std::uint8_t> image(std::int64_t i) const {
    return std::span(pixels).subspan(static_cast<std::size_t>(i) * image_bytes(), image_bytes());
  }
};

struct Dataset {
  std::string name;    // "fashion-mnist", "synthetic", or the folder
  std::string origin;  // where it came from, for the first lines of `train`
  ImageSet train, test;
  std::int64_t classes = 0;  // labels are 0 to classes - 1; 0: the set has no labels
};

// Error{io} saying where labels would come from, where `data` has none for its training or its test images.
void require_labels(const Dataset& data);

struct DataOptions {
  std::string name = "fashion-mnist";  // fashion-mnist, mnist, cifar10, synthetic, or a folder
  std::string folder = {};             // where the files of a named set lie; empty: the search list
  std::int64_t image_size = 0;         // side of images from folders (0: 32) and of drawn ones (0: 28)
  std::int64_t channels = 0;  // 1 or 3, for folders (0: 1 where every file is grey, else 3) and drawn images (0: 1)
  std::int64_t limit = 0;     // keep only the first `limit` training and test images; 0: all
};

// Error{io}: files missing (saying where they were looked for and what to install), truncated, corrupt or empty.
// Error{usage}: a name that is neither a known set nor a folder.
Dataset load_dataset(const DataOptions& options);

// Folders in which named sets are looked for: each entry of $STOPGRAD_DATA (separated by ':'), then the usual ones.
std::vector<std::filesystem::path> data_search_path();

// An IDX file of unsigned bytes with 3 axes (N,H,W) or 4 (N,H,W,C), plain or gzip. Error{io} where it is truncated,
// longer than its header says, of another type, or not gzip-intact.
ImageSet read_idx(const std::filesystem::path& path);
// An IDX file of unsigned bytes with 1 axis, as above.
std::vector<std::int32_t> read_idx_labels(const std::filesystem::path& path);

// CIFAR-10 binary batches: records of a label byte and 3 planes of 32 x 32, with labels. Error{io}.
ImageSet read_cifar10(const std::vector<std::filesystem::path>& files);

// PNG and JPEG files, centre-cropped to a square and resized. channels 0: 1 where every file is grey, else 3.
// Error{io}.
ImageSet read_images(const std::vector<std::filesystem::path>& files, std::int64_t size, std::int64_t channels);
// The PNG and JPEG files below a folder, sorted by path. Error{io} where the folder cannot be read.
std::vector<std::filesystem::path> list_images(const std::filesystem::path& folder);

// Antialiased discs, rings, polygons, stars, crosses and stripes of random place, size, angle and shade on a shaded
// ground. Image i depends on (seed, i) only. Its label is the kind (of kShapeKinds) of its largest shape.
inline constexpr std::int64_t kShapeKinds = 8;
ImageSet draw_shapes(std::int64_t count, std::int64_t size, std::int64_t channels, std::uint32_t seed);

}  // namespace sg::tools
