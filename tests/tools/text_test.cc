// Streams of tokens: what is held out, separators of rows, segments as a function of seed and step.
#include "tools/data/text.h"

#include <filesystem>
#include <fstream>
#include <set>

#include "tests/models/support.h"
#include "tools/npy.h"

namespace sg::tools {
namespace {

using models_test::expect_error;

class TextTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              ("sg_text_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string write(const char* name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return (folder_ / name).string();
  }
  std::filesystem::path folder_;
};

TEST_F(TextTest, LastTenthOfAFileIsHeldOut) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += static_cast<char>(i + 100);
  const TextData data = load_text(write("text", text));
  ASSERT_EQ(data.train.size(), 90u);
  ASSERT_EQ(data.test.size(), 10u);
  EXPECT_EQ(data.train.front(), 100);
  EXPECT_EQ(data.test.front(), 190) << "bytes above 127 are not negative";
  EXPECT_EQ(data.vocabulary, 256);
  EXPECT_EQ(load_text(write("text", text), "", 50).train.size(), 45u);
}

TEST_F(TextTest, RowsOfTokensFollowASeparator) {
  const auto path = folder_ / "tokens.npy";
  write_npy(path, Tensor::of<std::int32_t>({3, 2}, {0, 1, 2, 3, 4, 5}));
  const TextData data = load_text(path.string());
  EXPECT_EQ(data.train, (std::vector<std::int32_t>{6, 0, 1, 6, 2, 3}));
  EXPECT_EQ(data.test, (std::vector<std::int32_t>{6, 4, 5}));
  EXPECT_EQ(data.vocabulary, 7);
  EXPECT_EQ(data.unit, 3);
  EXPECT_FALSE(data.bytes);
}

TEST_F(TextTest, TheSeparatorOfARowSaysItsClass) {
  const auto path = folder_ / "tokens.npy";
  write_npy(path, Tensor::of<std::int32_t>({3, 2}, {0, 1, 2, 3, 4, 5}));
  expect_error(ErrorKind::usage, {"--conditional", "no classes"}, [&] { load_text(path.string(), "", 0, true); });
  write_npy(folder_ / "tokens.labels.npy", Tensor::of<std::int32_t>({3}, {2, 0, 1}));
  const TextData data = load_text(path.string(), "", 0, true);
  EXPECT_EQ(data.vocabulary, 9);
  EXPECT_EQ(data.contents(), 6);
  EXPECT_EQ(data.classes(), 3);
  EXPECT_EQ(data.train, (std::vector<std::int32_t>{8, 0, 1, 6, 2, 3}));
  EXPECT_EQ(data.test, (std::vector<std::int32_t>{7, 4, 5}));
  const TextData plain = load_text(path.string());
  EXPECT_EQ(plain.classes(), 0);
  EXPECT_EQ(plain.vocabulary, 7);

  const TextData images = load_text("synthetic", "", 2, true);
  EXPECT_GT(images.classes(), 1);
  EXPECT_EQ(images.contents(), 256);
  EXPECT_GE(images.train[785], 256);
  expect_error(ErrorKind::usage, {"one text", "no classes"},
               [&] { load_text(write("text", std::string(100, 'a')), "", 0, true); });
}

TEST_F(TextTest, ImagesAreRowsOfBytes) {
  const TextData data = load_text("synthetic", "", 2);
  EXPECT_EQ(data.unit, 28 * 28 + 1);
  EXPECT_EQ(data.train.size(), 2u * (28 * 28 + 1));
  EXPECT_EQ(data.train[785], 256);
  EXPECT_EQ(data.vocabulary, 257);
}

TEST_F(TextTest, SegmentsGoOnWithinASequenceAndDependOnSeedAndStep) {
  std::vector<std::int32_t> tokens;
  for (std::int32_t i = 0; i < 1000; ++i) tokens.push_back(i);
  const SegmentSizes sizes{3, 8, 24};
  const auto segment = [&](std::uint32_t seed, std::int64_t step, std::int64_t unit = 1) {
    Tensor t({DType::i32, {3, 9}});
    copy_segment(tokens, unit, sizes, seed, step, t);
    return t;
  };
  for (std::int64_t step = 0; step < 2; ++step)
    for (std::int64_t b = 0; b < 3; ++b) EXPECT_EQ(segment(1, step).at(b * 9 + 8), segment(1, step + 1).at(b * 9));
  EXPECT_NE(segment(1, 2).at(8), segment(1, 3).at(0)) << "a new sequence";
  models_test::expect_same_bits(segment(1, 7), segment(1, 7));
  EXPECT_NE(segment(1, 0).at(0), segment(2, 0).at(0));
  for (std::int64_t step = 0; step < 30; step += 3) EXPECT_EQ(std::int64_t(segment(1, step, 50).at(9)) % 50, 0);
  std::set<double> starts;
  for (std::int64_t step = 0; step < 300; step += 3) starts.insert(segment(1, step, 200).at(0));
  EXPECT_EQ(starts, (std::set<double>{0, 200, 400, 600, 800}));
}

TEST_F(TextTest, ErrorsSayWhatToDo) {
  expect_error(ErrorKind::io, {"no file 'nowhere'", "wordnet-base"}, [] { load_text("nowhere"); });
  expect_error(ErrorKind::io, {"3 bytes"}, [&] { load_text(write("short", "abc")); });
  expect_error(ErrorKind::io, {"sequence of 24"}, [] {
    Tensor t({DType::i32, {1, 9}});
    copy_segment(std::vector<std::int32_t>(20, 1), 1, {1, 8, 24}, 1, 0, t);
  });
  if (!std::filesystem::exists("/usr/share/wordnet/data.noun"))
    expect_error(ErrorKind::io, {"apt-get install wordnet-base"}, [] { load_text("wordnet"); });
}

}  // namespace
}  // namespace sg::tools
