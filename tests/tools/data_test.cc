#include <algorithm>
#include <cstdlib>
#include <set>

#include "tests/support/expect.h"
#include "tests/tools/temp_folder.h"
#include "tools/data/loader.h"
#include "tools/files.h"
#include "tools/images.h"

namespace sg::test {
namespace {

using namespace tools;

std::string idx_header(std::initializer_list<int> extents, char type = 0x08) {
  std::string bytes{'\0', '\0', type, static_cast<char>(extents.size())};
  for (const int e : extents)
    for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(e >> shift & 0xff);
  return bytes;
}

DataOptions named(std::string name, std::string folder = {}, std::int64_t image_size = 0) {
  DataOptions options;
  options.name = std::move(name);
  options.folder = std::move(folder);
  options.image_size = image_size;
  return options;
}

std::string ramp(std::size_t n) {
  std::string bytes(n, '\0');
  for (std::size_t i = 0; i < n; ++i) bytes[i] = static_cast<char>(i % 251);
  return bytes;
}

std::string gzipped(const TempFolder& folder, const std::string& bytes) {
  const auto plain = folder.write("to_zip", bytes);
  EXPECT_EQ(std::system(("gzip -kf " + plain.string()).c_str()), 0);
  return slurp(plain.string() + ".gz");
}

TEST(Idx, ReadsPlainAndGzipAlike) {
  const TempFolder folder;
  const std::string bytes = idx_header({3, 4, 5}) + ramp(60);
  for (const std::string& content : {bytes, gzipped(folder, bytes)}) {
    const ImageSet set = read_idx(folder.write("images", content));
    EXPECT_EQ(set.count, 3);
    EXPECT_EQ(set.height, 4);
    EXPECT_EQ(set.width, 5);
    EXPECT_EQ(set.channels, 1);
    ASSERT_EQ(set.pixels.size(), 60u);
    EXPECT_EQ(set.image(2)[7], 47);
  }
  EXPECT_EQ(read_idx(folder.write("color", idx_header({2, 2, 2, 3}) + ramp(24))).channels, 3);
}

TEST(Idx, RefusesBadFiles) {
  const TempFolder folder;
  const std::string good = idx_header({3, 4, 5}) + ramp(60);
  const auto refused = [&](const std::string& content, std::string_view why) {
    SG_EXPECT_ERROR(io, why, read_idx(folder.write("bad", content)));
  };
  SG_EXPECT_ERROR(io, "cannot open", read_idx(folder / "missing"));
  SG_EXPECT_ERROR(io, "is a folder", read_idx(folder.path()));
  refused("", "truncated");
  refused(good.substr(0, 9), "truncated in the IDX header");
  refused(good.substr(0, 40), "truncated: the header says 3 images (60 bytes), the file has 24 bytes");
  refused(good + "x", "longer than its header says");
  refused("PK" + good.substr(2), "is not an IDX file");
  refused(idx_header({3, 4, 5}, 0x0d) + ramp(240), "element type 0x0d");
  refused(idx_header({60}) + ramp(60), "1 axes");
  refused(idx_header({0, 4, 5}), "0 images");
  // 2^31 - 1 images of 16384 x 16384: must neither allocate nor overflow.
  refused(idx_header({0x7fffffff, 1 << 14, 1 << 14}) + ramp(60), "truncated");
}

TEST(Idx, RefusesDamagedGzip) {
  const TempFolder folder;
  const std::string good = gzipped(folder, idx_header({30, 40, 50}) + ramp(60000));
  SG_EXPECT_ERROR(io, "the gzip data is truncated", read_idx(folder.write("bad", good.substr(0, good.size() / 2))));
  SG_EXPECT_ERROR(io, "the gzip data is truncated", read_idx(folder.write("bad", good.substr(0, good.size() - 4))));
  std::string flipped = good;
  flipped[flipped.size() - 6] = static_cast<char>(flipped[flipped.size() - 6] ^ 0x55);  // its checksum
  SG_EXPECT_ERROR(io, "the gzip data is corrupt", read_idx(folder.write("bad", flipped)));
}

TEST(Cifar, ReadsPlanesAsChannels) {
  const TempFolder folder;
  std::string record(3073, '\0');
  record[0] = 9;
  record[1 + 33] = 10, record[1 + 1024 + 33] = 20, record[1 + 2048 + 33] = 30;  // y 1, x 1
  const ImageSet set = read_cifar10({folder.write("a", record + record), folder.write("b", record)});
  EXPECT_EQ(set.count, 3);
  const auto pixel = set.image(2).subspan(33 * 3, 3);
  EXPECT_EQ((std::vector<int>(pixel.begin(), pixel.end())), (std::vector<int>{10, 20, 30}));
}

TEST(Cifar, RefusesBadFiles) {
  const TempFolder folder;
  SG_EXPECT_ERROR(io, "truncated", read_cifar10({folder.write("bad", std::string(3072, '\0'))}));
  SG_EXPECT_ERROR(io, "0 bytes", read_cifar10({folder.write("bad", "")}));
  SG_EXPECT_ERROR(io, "record 0 has label 77", read_cifar10({folder.write("bad", std::string(3073, 77))}));
  SG_EXPECT_ERROR(io, "cannot open", read_cifar10({folder / "missing"}));
}

Image checkered(int width, int height, int channels) {
  Image image(width, height, channels, 0);
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < channels; ++c)
        image.at(x, y)[c] = static_cast<std::uint8_t>((x / 8 + y / 8) % 2 * 200 + 20 * c);
  return image;
}

TEST(Folder, ResizesAnySizeAndFindsChannels) {
  const TempFolder folder;
  save_png(folder / "a.png", checkered(50, 30, 1));
  save_png(folder / "b.png", checkered(7, 90, 1));
  const auto files = list_images(folder.path());
  ASSERT_EQ(files.size(), 2u);
  const ImageSet grey = read_images(files, 16, 0);
  EXPECT_EQ(grey.channels, 1);
  EXPECT_EQ(grey.height, 16);
  save_png(folder / "c.PNG", checkered(16, 16, 3));
  folder.write("notes.txt", "no image");
  const ImageSet mixed = read_images(list_images(folder.path()), 16, 0);
  EXPECT_EQ(mixed.channels, 3);
  EXPECT_EQ(mixed.count, 3);
  // The same size is copied as it is.
  EXPECT_TRUE(std::ranges::equal(mixed.image(2), checkered(16, 16, 3).pixels));
}

TEST(Folder, SplitsByTestFolderOrEveryTenth) {
  const TempFolder folder;
  for (int i = 0; i < 20; ++i) save_png(folder / fmt::format("{:02}.png", i), checkered(8 + i, 8, 1));
  const Dataset every_tenth = load_dataset(named(folder.path().string(), "", 8));
  EXPECT_EQ(every_tenth.train.count, 18);
  EXPECT_EQ(every_tenth.test.count, 2);
  for (const char* part : {"train", "test"}) {
    std::filesystem::create_directory(folder / part);
    save_png(folder / part / "x.png", checkered(8, 8, 1));
  }
  const Dataset by_folder = load_dataset(named(folder.path().string(), "", 8));
  EXPECT_EQ(by_folder.train.count, 1);
  EXPECT_EQ(by_folder.test.count, 1);
}

TEST(Folder, RefusesBadImages) {
  const TempFolder folder;
  SG_EXPECT_ERROR(io, "no images", load_dataset(named(folder.path().string())));
  save_png(folder / "good.png", checkered(64, 64, 3));
  const std::string png = slurp(folder / "good.png");
  SG_EXPECT_ERROR(io, "corrupt image", read_images({folder.write("bad.png", png.substr(0, png.size() / 2))}, 16, 3));
  SG_EXPECT_ERROR(io, "not a readable PNG or JPEG", read_images({folder.write("bad.png", "hello")}, 16, 3));
  SG_EXPECT_ERROR(io, "empty file", read_images({folder.write("bad.png", "")}, 16, 3));
  std::string flipped = png;
  for (std::size_t i = 60; i < 90; ++i) flipped[i] = static_cast<char>(flipped[i] ^ 0x5a);
  SG_EXPECT_ERROR(io, "bad.png", read_images({folder.write("bad.png", flipped)}, 16, 3));
}

TEST(Dataset, NamesWhatIsMissing) {
  const TempFolder folder;
  const auto missing = error_of([&] { load_dataset(named("fashion-mnist", folder.path().string())); });
  ASSERT_TRUE(missing);
  SG_EXPECT_CONTAINS(missing->message(), "dataset-fashion-mnist");
  SG_EXPECT_CONTAINS(missing->message(), folder.path().string());
  SG_EXPECT_CONTAINS(missing->message(), "--data synthetic");
  SG_EXPECT_ERROR(usage, "neither a data set (fashion-mnist, mnist, cifar10, synthetic) nor a folder",
                  load_dataset(named("imagenet")));
  folder.write("train-images-idx3-ubyte", idx_header({3, 4, 4}) + ramp(48));
  SG_EXPECT_ERROR(io, "no test set", load_dataset(named("mnist", folder.path().string())));
  folder.write("t10k-images-idx3-ubyte", idx_header({1, 8, 4}) + ramp(32));
  SG_EXPECT_ERROR(io, "training images are 4 x 4 x 1, test images 8 x 4 x 1",
                  load_dataset(named(folder.path().string())));
}

TEST(Synthetic, DependsOnSeedAndIndexOnly) {
  const ImageSet a = draw_shapes(5, 28, 1, 7), b = draw_shapes(9, 28, 1, 7), other = draw_shapes(5, 28, 1, 8);
  EXPECT_TRUE(std::ranges::equal(a.pixels, std::span(b.pixels).first(a.pixels.size())));
  EXPECT_FALSE(std::ranges::equal(a.pixels, other.pixels));
  const auto [low, high] = std::ranges::minmax(b.pixels);
  EXPECT_GT(high - low, 100);
  const ImageSet color = draw_shapes(1, 32, 3, 1);
  EXPECT_EQ(color.pixels.size(), 32u * 32u * 3u);
}

TEST(BatchOrder, EachEpochIsAPermutation) {
  BatchOrder order(10, 3, 1);
  EXPECT_EQ(order.steps_per_epoch(), 3);
  std::vector<std::vector<std::int32_t>> epochs;
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<std::int32_t> seen;
    for (std::int64_t step = 0; step < 3; ++step)
      for (const auto i : order.indices(3 * epoch + step)) seen.push_back(i);
    EXPECT_EQ(std::set<std::int32_t>(seen.begin(), seen.end()).size(), 9u);
    epochs.push_back(seen);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  const auto again = BatchOrder(10, 3, 1).indices(0).front();
  EXPECT_EQ(again, epochs[0][0]);
  SG_EXPECT_ERROR(usage, "the training set has only 10 images", BatchOrder(10, 11, 1));
  SG_EXPECT_ERROR(usage, "at least 1", BatchOrder(10, 0, 1));
}

TEST(Loader, GivesTheOrdersBatchesFromAnyStep) {
  const ImageSet set = draw_shapes(20, 8, 1, 3);
  BatchOrder order(20, 6, 5);
  Tensor expected({DType::f32, {6, 8, 8, 1}});
  for (const std::int64_t first : {0, 2, 7}) {
    Loader loader(set, 6, 5, first);
    for (std::int64_t step = first; step < first + 8; ++step) {
      const Tensor& batch = loader.next();
      copy_images(set, order.indices(step), expected);
      ASSERT_TRUE(same_bits(batch, expected)) << "step " << step;
    }
  }
}

TEST(Loader, ScalesBytesToUnitRange) {
  ImageSet set{1, 1, 3, 1, {0, 51, 255}};
  Tensor batch({DType::f32, {1, 1, 3, 1}});
  const std::int32_t index = 0;
  copy_images(set, {&index, 1}, batch);
  expect_values(batch, {0, 51.0f / 255.0f, 1});
}

}  // namespace
}  // namespace sg::test
