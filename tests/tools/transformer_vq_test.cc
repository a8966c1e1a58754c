// Transformer-VQ from the command line: train, resume, evaluate, generate, on text and on rows of tokens.
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/safetensors.h"
#include "tests/support/expect.h"
#include "tests/tools/cli.h"
#include "tests/tools/temp_folder.h"
#include "tools/files.h"
#include "tools/npy.h"

namespace sg::test {
namespace {

using namespace tools;

constexpr const char* kTiny =
    " --dim 16 --layers 1 --codes 8 --key-width 8 --block 8 --update 16 --sequence 32 --batch 4 --warmup 0 --lr 1e-2"
    " --threads 1";

std::string text_file(const TempFolder& folder) {
  std::string text;
  for (int i = 0; i < 120; ++i) text += "the cat sat on the mat. ";
  return folder.write("cats.txt", text).string();
}

TEST(TransformerVqProgram, TrainsEvaluatesAndGeneratesText) {
  const TempFolder folder;
  const std::string run = (folder / "run").string(), data = " --data " + text_file(folder);
  const Outcome trained = stopgrad("train transformer-vq --steps 150" + std::string(kTiny) + data + " --out " + run);
  ASSERT_EQ(trained.code, 0) << trained.text;
  SG_EXPECT_CONTAINS(trained.text, "2592 training and 288 held-out tokens");

  const Outcome evaluated = stopgrad("evaluate " + run + " --json");
  ASSERT_EQ(evaluated.code, 0) << evaluated.text;
  const auto figures = nlohmann::json::parse(evaluated.text);
  EXPECT_EQ(figures.at("tokens"), 287) << "all but the first";
  EXPECT_LT(figures.at("bits_per_byte").get<double>(), 2.0) << "8 bits before training";
  EXPECT_GT(figures.at("usage_min").get<double>(), 0);
  EXPECT_LE(figures.at("perplexity").get<double>(), 8);

  const std::string generate = "generate " + run + " --prompt 'the cat sat on the mat. the' --length 24";
  const Outcome first = stopgrad(generate + " --seed 5"), again = stopgrad(generate + " --seed 5"),
                greedy = stopgrad(generate + " --temperature 0"), one = stopgrad(generate + " --top-k 1");
  ASSERT_EQ(first.code, 0) << first.text;
  EXPECT_EQ(first.text, again.text);
  EXPECT_EQ(greedy.text, one.text) << "the likeliest of one";
  SG_EXPECT_CONTAINS(greedy.text, "the cat sat on the mat. the ");
  EXPECT_EQ(greedy.text.size(), 27u + 24 + 1);
  expect_fails("generate " + run + " --temperature -1", 2, "temperature");
  expect_fails("evaluate " + run + " --limit 3", 1, "3 bytes");
}

TEST(TransformerVqProgram, ResumeIsExact) {
  const TempFolder folder;
  const std::string data = " --data " + text_file(folder), whole = (folder / "whole").string(),
                    part = (folder / "part").string();
  const std::string train = "train transformer-vq --dropout 0.1" + std::string(kTiny) + data;
  ASSERT_EQ(stopgrad(train + " --steps 7 --out " + whole).code, 0);
  ASSERT_EQ(stopgrad(train + " --steps 3 --schedule constant --out " + part).code, 0);
  const std::string constant = (folder / "constant").string();
  ASSERT_EQ(stopgrad(train + " --steps 7 --schedule constant --out " + constant).code, 0);
  const Outcome resumed = stopgrad("train --resume " + part + " --steps 7");
  ASSERT_EQ(resumed.code, 0) << resumed.text;
  EXPECT_EQ(read_file(part + "/checkpoint.safetensors"), read_file(constant + "/checkpoint.safetensors"));
  EXPECT_NE(read_file(whole + "/checkpoint.safetensors"), read_file(constant + "/checkpoint.safetensors"));
}

TEST(TransformerVqProgram, RowsOfTokensAndDenseAttention) {
  const TempFolder folder;
  Tensor tokens({DType::i32, {40, 9}});
  for (std::int64_t i = 0; i < tokens.elements(); ++i) tokens.set(i, static_cast<double>(i % 9 % 5));
  write_npy(folder / "tokens.npy", tokens);
  const std::string run = (folder / "run").string(), data = " --data " + (folder / "tokens.npy").string();
  const Outcome trained = stopgrad("train transformer-vq --steps 60" + std::string(kTiny) + data + " --out " + run);
  ASSERT_EQ(trained.code, 0) << trained.text;
  const auto figures = nlohmann::json::parse(stopgrad("evaluate " + run + " --json").text);
  EXPECT_EQ(figures.at("tokens"), 36) << "four rows; separators do not count";
  EXPECT_LT(figures.at("bits_per_token").get<double>(), 1.5);
  expect_fails("generate " + run, 2, "--out FILE.npy");
  const std::string out = (folder / "new.npy").string();
  ASSERT_EQ(stopgrad("generate " + run + " --length 9 --out " + out).code, 0);
  EXPECT_EQ(read_npy(out).shape(), (Shape{1, 9}));

  const std::string dense = (folder / "dense").string();
  const std::string flags =
      " --attention dense --dim 16 --layers 1 --key-width 8 --update 16 --sequence 16 --batch 4 --warmup 0 --steps 3";
  ASSERT_EQ(stopgrad("train transformer-vq" + data + flags + " --out " + dense).code, 0);
  EXPECT_EQ(stopgrad("evaluate " + dense).code, 0);
  expect_fails("generate " + dense + " --out " + out, 2, "keeps no memory");
}

TEST(TransformerVqProgram, WrongSettingsNameTheFlag) {
  const TempFolder folder;
  const std::string bare = "train transformer-vq --out " + (folder / "run").string(),
                    train = bare + " --data " + text_file(folder);
  expect_fails(train + " --update 100 --block 64", 2, "update of 100");
  expect_fails(train + " --attention linear", 2, "--attention");
  expect_fails(train + " --optimizer sgd", 2, "adamw");
  expect_fails(train + " --hidden 3", 2, "--hidden");
  expect_fails(bare + " --data nowhere.txt", 1, "nowhere.txt");
  EXPECT_EQ(stopgrad("audit transformer-vq").code, 0);
  EXPECT_EQ(stopgrad("tape transformer-vq --part generate --dim 16 --layers 1 --codes 8").code, 0);
}

}  // namespace
}  // namespace sg::test
