#include "tools/data/tokens.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/tools/temp_folder.h"
#include "tools/files.h"
#include "tools/npy.h"

namespace sg::tools {
namespace {

Tensor ints(Shape shape, const std::vector<std::int32_t>& v) { return Tensor::of<std::int32_t>(shape, v); }

TokenData example() {
  TokenData d;
  d.train = {ints({3, 2, 2}, {0, 1, 2, 3, 4, 5, 6, 7, 7, 6, 5, 4}), {2, 0, 1}};
  d.test = {ints({1, 2, 2}, {1, 1, 1, 1}), {2}};
  d.vocabulary = 16;
  d.classes = 3;
  d.origin = "runs/x";
  return d;
}

template <class F>
void expect_io_error(const std::string& part, F f) {
  try {
    f();
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io) << e.message();
    EXPECT_NE(e.message().find(part), std::string::npos) << e.message();
  }
}

TEST(Tokens, AreReadAsTheyWereWritten) {
  const test::TempFolder folder;
  const auto path = folder / "tokens.npy";
  write_token_files(path, example());
  const TokenData d = read_token_files(path);
  const TokenData e = example();
  EXPECT_EQ(d.vocabulary, 16);
  EXPECT_EQ(d.classes, 3);
  EXPECT_EQ(d.origin, "runs/x");
  EXPECT_EQ(d.train.length(), 4);
  EXPECT_EQ(d.train.tokens.type(), e.train.tokens.type());
  EXPECT_TRUE(std::ranges::equal(d.train.tokens.span<std::int32_t>(), e.train.tokens.span<std::int32_t>()));
  EXPECT_EQ(d.train.labels, e.train.labels);
  EXPECT_EQ(d.test.labels, e.test.labels);

  Tensor batch({DType::i32, {2, 4}}), classes({DType::i32, {2}});
  copy_tokens(d.train, std::vector<std::int32_t>{2, 0}, batch, &classes);
  EXPECT_TRUE(std::ranges::equal(batch.span<std::int32_t>(), std::vector<std::int32_t>{7, 6, 5, 4, 0, 1, 2, 3}));
  EXPECT_TRUE(std::ranges::equal(classes.span<std::int32_t>(), std::vector<std::int32_t>{1, 2}));
}

TEST(Tokens, ALaterSetWithoutLabelsLeavesNoneBehind) {
  const test::TempFolder folder;
  TokenData d = example();
  write_token_files(folder / "t.npy", d);
  d.train.labels.clear();
  d.test.labels.clear();
  d.classes = 0;
  write_token_files(folder / "t.npy", d);
  EXPECT_EQ(read_token_files(folder / "t.npy").classes, 0);
}

TEST(Tokens, OneFileAloneIsSplitAndCounted) {
  const test::TempFolder folder;
  const auto path = folder / "mine.npy";
  write_npy(path, ints({4, 2}, {0, 1, 2, 3, 4, 8, 6, 7}));
  const TokenData d = read_token_files(path);
  EXPECT_EQ(d.vocabulary, 9);
  EXPECT_EQ(d.classes, 0);
  EXPECT_EQ(d.train.count(), 3);
  EXPECT_EQ(d.test.count(), 1);
  EXPECT_EQ(d.test.tokens.at(1), 7);
}

TEST(Tokens, WhatDisagreesIsNamed) {
  const test::TempFolder folder;
  const auto path = folder / "t.npy";
  expect_io_error("t.npy", [&] { read_token_files(path); });
  write_npy(path, ints({4}, {0, 1, 2, 3}));
  expect_io_error("sequences, tokens of each", [&] { read_token_files(path); });
  write_npy(path, ints({1, 2}, {0, 1}));
  expect_io_error("one is held out", [&] { read_token_files(path); });

  write_token_files(path, example());
  write_text_atomically(folder / "t.json", "{\"vocabulary\": 5, \"classes\": 3}");
  expect_io_error("token 5 is 5", [&] { read_token_files(path); });
  write_text_atomically(folder / "t.json", "{\"vocabulary\": 16, \"classes\": 2}");
  expect_io_error("label 0 is 2", [&] { read_token_files(path); });
  write_text_atomically(folder / "t.json", "[]");
  expect_io_error("does not say", [&] { read_token_files(path); });
  write_npy(folder / "t.labels.npy", ints({2}, {0, 1}));
  expect_io_error("2 labels", [&] { read_token_files(path); });
  write_npy(folder / "t.test.npy", ints({1, 3}, {0, 1, 2}));
  std::filesystem::remove(folder / "t.labels.npy");
  std::filesystem::remove(folder / "t.test.labels.npy");
  expect_io_error("of 4 tokens", [&] { read_token_files(path); });
}

}  // namespace
}  // namespace sg::tools
