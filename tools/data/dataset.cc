#include "tools/data/dataset.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <set>

#include "core/error.h"

namespace sg::tools {
namespace fs = std::filesystem;
namespace {

constexpr std::int64_t kSyntheticTrain = 20000, kSyntheticTest = 2000;
constexpr std::int64_t kMaxImageSize = 1024;

bool is_file(const fs::path& p) {
  std::error_code ec;
  return fs::is_regular_file(p, ec);
}
bool is_folder(const fs::path& p) {
  std::error_code ec;
  return fs::is_directory(p, ec);
}

// The file or its .gz, under either of the names in use ("train-images-idx3-ubyte", "train-images.idx3-ubyte").
fs::path find_file(const fs::path& folder, const std::string& stem, std::initializer_list<const char*> infixes) {
  for (const char* infix : infixes)
    for (const char* suffix : {"", ".gz"})
      if (fs::path p = folder / (stem + infix + suffix); is_file(p)) return p;
  return {};
}
fs::path find_idx(const fs::path& folder, const std::string& stem) {
  return find_file(folder, stem, {"-images-idx3-ubyte", "-images.idx3-ubyte", "-images-idx4-ubyte"});
}
bool has_idx(const fs::path& folder) { return !find_idx(folder, "train").empty(); }
bool has_cifar(const fs::path& folder) { return is_file(folder / "data_batch_1.bin"); }

// The labels beside the images, where there are any.
void load_idx_labels(const fs::path& folder, const std::string& stem, ImageSet& set) {
  const fs::path file = find_file(folder, stem, {"-labels-idx1-ubyte", "-labels.idx1-ubyte"});
  if (file.empty()) return;
  set.labels = read_idx_labels(file);
  if (static_cast<std::int64_t>(set.labels.size()) != set.count)
    fail(ErrorKind::io, "{}: {} labels for {} images", file.string(), set.labels.size(), set.count);
}

void load_idx(const fs::path& folder, Dataset& out) {
  const fs::path train = find_idx(folder, "train"), test = find_idx(folder, "t10k");
  if (test.empty())
    fail(ErrorKind::io, "{}: found {} but no test set (t10k-images-idx3-ubyte or its .gz)", folder.string(),
         train.filename().string());
  out.train = read_idx(train);
  out.test = read_idx(test);
  load_idx_labels(folder, "train", out.train);
  load_idx_labels(folder, "t10k", out.test);
}

void load_cifar(const fs::path& folder, Dataset& out) {
  std::vector<fs::path> files;
  for (int i = 1; i <= 5; ++i)
    if (fs::path p = folder / fmt::format("data_batch_{}.bin", i); is_file(p)) files.push_back(p);
  if (!is_file(folder / "test_batch.bin")) fail(ErrorKind::io, "{}: test_batch.bin is missing", folder.string());
  out.train = read_cifar10(files);
  out.test = read_cifar10({folder / "test_batch.bin"});
}

// The sub-folder of `root` that a file lies in, at any depth; "" for a file of root itself.
std::string class_of(const fs::path& file, const fs::path& root) {
  const fs::path inside = file.lexically_relative(root);
  return inside.has_parent_path() ? inside.begin()->string() : std::string();
}

// Numbers of the classes in the order of their names; empty where a file lies in no sub-folder or in an unknown one.
std::vector<std::int32_t> class_labels(const std::vector<fs::path>& files, const fs::path& root,
                                       const std::vector<std::string>& classes) {
  std::vector<std::int32_t> labels;
  for (const fs::path& file : files) {
    const auto at = std::lower_bound(classes.begin(), classes.end(), class_of(file, root));
    if (at == classes.end() || *at != class_of(file, root) || at->empty()) return {};
    labels.push_back(static_cast<std::int32_t>(at - classes.begin()));
  }
  return labels;
}

// Pictures are labelled by the sub-folder that they lie in. train/ and test/ where the folder has them, else every
// tenth file (in sorted order) is kept for testing.
void load_pictures(const fs::path& folder, const DataOptions& options, Dataset& out) {
  std::vector<fs::path> train, test;
  fs::path train_root = folder, test_root = folder;
  if (is_folder(folder / "train") && is_folder(folder / "test")) {
    train_root /= "train";
    test_root /= "test";
    train = list_images(train_root);
    test = list_images(test_root);
  } else {
    const std::vector<fs::path> all = list_images(folder);
    for (std::size_t i = 0; i < all.size(); ++i) (i % 10 == 9 ? test : train).push_back(all[i]);
    if (test.empty()) test = train;
  }
  if (train.empty() || test.empty())
    fail(ErrorKind::io,
         "{}: no images. A data folder holds PNG or JPEG files (any depth; train/ and test/ where it has them), "
         "IDX files (train-images-idx3-ubyte, t10k-images-idx3-ubyte, plain or .gz) or CIFAR-10 binary batches",
         folder.string());
  std::set<std::string> names;
  for (const fs::path& file : train) names.insert(class_of(file, train_root));
  const std::vector<std::string> classes(names.begin(), names.end());
  const std::int64_t size = options.image_size == 0 ? 32 : options.image_size;
  if (options.limit > 0) {
    train.resize(std::min(train.size(), static_cast<std::size_t>(options.limit)));
    test.resize(std::min(test.size(), static_cast<std::size_t>(options.limit)));
  }
  out.train = read_images(train, size, options.channels);
  out.test = read_images(test, size, out.train.channels);
  out.train.labels = class_labels(train, train_root, classes);
  out.test.labels = class_labels(test, test_root, classes);
  if (!out.train.labels.empty() && !out.test.labels.empty()) out.classes = std::ssize(classes);
}

void load_folder(const fs::path& folder, const DataOptions& options, Dataset& out) {
  if (has_idx(folder))
    load_idx(folder, out);
  else if (has_cifar(folder))
    load_cifar(folder, out);
  else
    load_pictures(folder, options, out);
  out.origin = folder.string();
}

struct NamedSet {
  std::string_view name;
  std::vector<std::string> folders;  // below each folder of the search list
  bool (*present)(const fs::path&);
  std::string_view advice;
};

const std::vector<NamedSet>& named_sets() {
  static const std::vector<NamedSet> sets = {
      {"fashion-mnist",
       {"fashion-mnist"},
       &has_idx,
       "install the Debian package dataset-fashion-mnist (sudo apt-get install dataset-fashion-mnist)"},
      {"mnist", {"mnist"}, &has_idx, "put train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz into one of them"},
      {"cifar10",
       {"cifar10", "cifar-10-batches-bin"},
       &has_cifar,
       "unpack cifar-10-binary.tar.gz (data_batch_1.bin to data_batch_5.bin, test_batch.bin) into one of them"},
  };
  return sets;
}

void load_named(const NamedSet& set, const DataOptions& options, Dataset& out) {
  std::vector<std::string> tried;
  const auto try_folder = [&](const fs::path& folder) {
    tried.push_back(folder.string());
    if (!set.present(folder)) return false;
    load_folder(folder, options, out);
    return true;
  };
  if (!options.folder.empty()) {
    if (try_folder(options.folder)) return;
  } else {
    for (const fs::path& root : data_search_path())
      for (const std::string& name : set.folders)
        if (try_folder(root / name)) return;
  }
  fail(ErrorKind::io,
       "data set '{}' was not found. Looked in: {}.\n  To get it: {}, name its folder with --data-dir or in "
       "STOPGRAD_DATA, "
       "or train on drawn shapes with --data synthetic",
       set.name, fmt::join(tried, ", "), set.advice);
}

void keep_first(ImageSet& set, std::int64_t limit) {
  if (limit == 0 || set.count <= limit) return;
  set.count = limit;
  set.pixels.resize(static_cast<std::size_t>(limit) * set.image_bytes());
  set.pixels.shrink_to_fit();
  if (!set.labels.empty()) set.labels.resize(static_cast<std::size_t>(limit));
}

}  // namespace

void require_labels(const Dataset& data) {
  if (data.classes == 0)
    fail(ErrorKind::io,
         "{} ({}): no labels for its {} images, which a classifier needs. They come from IDX label files beside the "
         "images (train-labels-idx1-ubyte, t10k-labels-idx1-ubyte, plain or .gz), from CIFAR-10 batches, or from the "
         "sub-folders that all the pictures of a folder lie in, one for each class",
         data.name, data.origin, data.train.labels.empty() ? "training" : "test");
}

std::vector<fs::path> data_search_path() {
  std::vector<fs::path> list;
  if (const char* env = std::getenv("STOPGRAD_DATA"))
    for (std::string_view rest = env; !rest.empty();) {
      const std::size_t colon = rest.find(':');
      if (const std::string_view entry = rest.substr(0, colon); !entry.empty()) list.emplace_back(entry);
      rest = colon == std::string_view::npos ? std::string_view{} : rest.substr(colon + 1);
    }
  for (const char* folder : {"/usr/share/datasets", "/usr/local/share/datasets", "data"}) list.emplace_back(folder);
  return list;
}

Dataset load_dataset(const DataOptions& options) {
  if (options.image_size < 0 || options.image_size > kMaxImageSize)
    fail(ErrorKind::usage, "image_size is {}; it must be from 1 to {}, or 0 for the usual size", options.image_size,
         kMaxImageSize);
  if (options.channels != 0 && options.channels != 1 && options.channels != 3)
    fail(ErrorKind::usage, "channels is {}; it must be 1 (grey), 3 (colour), or 0 to follow the data",
         options.channels);
  if (options.limit < 0) fail(ErrorKind::usage, "limit is {}; it must be 0 (all images) or more", options.limit);

  Dataset out;
  out.name = options.name;
  const NamedSet* named = nullptr;
  for (const NamedSet& set : named_sets())
    if (set.name == options.name) named = &set;
  if (named != nullptr) {
    load_named(*named, options, out);
  } else if (options.name == "synthetic") {
    const std::int64_t size = options.image_size == 0 ? 28 : options.image_size;
    const std::int64_t channels = options.channels == 0 ? 1 : options.channels;
    const auto capped = [&](std::int64_t n) { return options.limit == 0 ? n : std::min(n, options.limit); };
    out.train = draw_shapes(capped(kSyntheticTrain), size, channels, 1);
    out.test = draw_shapes(capped(kSyntheticTest), size, channels, 2);
    out.classes = kShapeKinds;
    out.origin = "shapes drawn by the program";
  } else if (is_folder(options.name)) {
    load_folder(options.name, options, out);
  } else {
    std::vector<std::string_view> names;
    for (const NamedSet& set : named_sets()) names.push_back(set.name);
    fail(ErrorKind::usage, "data: '{}' is neither a data set ({}, synthetic) nor a folder", options.name,
         fmt::join(names, ", "));
  }
  if (!out.train.labels.empty() && !out.test.labels.empty())
    for (const ImageSet* set : {&out.train, &out.test})
      out.classes = std::max<std::int64_t>(out.classes, 1 + *std::max_element(set->labels.begin(), set->labels.end()));
  keep_first(out.train, options.limit);
  keep_first(out.test, options.limit);
  if (out.train.height != out.test.height || out.train.width != out.test.width ||
      out.train.channels != out.test.channels)
    fail(ErrorKind::io, "{}: training images are {} x {} x {}, test images {} x {} x {}", out.origin, out.train.height,
         out.train.width, out.train.channels, out.test.height, out.test.width, out.test.channels);
  return out;
}

}  // namespace sg::tools
