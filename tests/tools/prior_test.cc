// Tokens of a trained model, a prior over them, and new images: the commands in the order in which a user gives them.
#include "tests/tools/cli.h"
#include "tests/tools/temp_folder.h"
#include "tools/files.h"
#include "tools/npy.h"

namespace sg::test {
namespace {

using namespace tools;

constexpr const char* kPrior =
    " --dim 16 --layers 1 --attention-heads 2 --batch 8 --warmup 2 --threads 1 --log-every 1000 ";

class Prior : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(stopgrad("train vqvae" + kSmall + " --steps 3 --out " + vqvae_).code, 0);
    ASSERT_EQ(stopgrad("tokenize " + vqvae_ + " --out " + tokens_).code, 0);
  }
  Outcome train(const std::string& flags) { return stopgrad("train prior --tokens " + tokens_ + kPrior + flags); }
  std::string at(const char* name) const { return (folder_ / name).string(); }

  const TempFolder folder_;
  const std::string vqvae_ = at("vqvae"), tokens_ = at("tokens.npy");
};

TEST_F(Prior, TokensAreThoseOfEncodeWithLabelsBeside) {
  const Tensor tokens = read_npy(tokens_), labels = read_npy(folder_ / "tokens.labels.npy");
  EXPECT_EQ(tokens.shape(), (Shape{40, 2, 2}));
  EXPECT_EQ(labels.shape(), Shape{40});
  EXPECT_EQ(read_npy(folder_ / "tokens.test.npy").shape()[0], read_npy(folder_ / "tokens.test.labels.npy").shape()[0]);
}

TEST_F(Prior, ResumesExactlyAndSamplesByClass) {
  for (const char* name : {"whole", "parts"}) {
    const std::string stop = std::string(name) == "parts" ? " --stop-after 3" : "";
    const Outcome out = train("--conditional --steps 8 --out " + at(name) + stop);
    ASSERT_EQ(out.code, 0) << out.text;
  }
  const Outcome resumed = stopgrad("train --resume " + at("parts"));
  ASSERT_EQ(resumed.code, 0) << resumed.text;
  SG_EXPECT_CONTAINS(resumed.text, "held-out likelihood");
  EXPECT_EQ(read_file(folder_ / "whole" / "checkpoint.safetensors"),
            read_file(folder_ / "parts" / "checkpoint.safetensors"));

  const std::string sample = "sample " + at("whole") + " " + vqvae_ + " --count 6 --columns 3 --out ";
  for (const char* picture : {"a.png", "b.png"}) ASSERT_EQ(stopgrad(sample + at(picture)).code, 0);
  EXPECT_EQ(read_file(folder_ / "a.png"), read_file(folder_ / "b.png"));
  ASSERT_EQ(stopgrad(sample + at("c.png") + " --sampling-seed 2").code, 0);
  EXPECT_NE(read_file(folder_ / "a.png"), read_file(folder_ / "c.png"));
  ASSERT_EQ(stopgrad(sample + at("d.png") + " --class 3 --temperature 0 --top-k 5 --top-p 0.9").code, 0);
  expect_fails(sample + at("e.png") + " --class 99", 2, "has classes 0 to");
  expect_fails(sample + at("e.png") + " --top-p 2", 2, "top-p is 2");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "e.png"));
}

TEST_F(Prior, TransformerVqIsAPriorToo) {
  const std::string train = "train transformer-vq --data " + tokens_ +
                            " --dim 16 --layers 1 --codes 8 --key-width 8 --block 5 --update 5 --sequence 5 --batch 8"
                            " --warmup 0 --threads 1 --log-every 1000 --steps 4 --out ";
  Outcome out = stopgrad(train + at("classes") + " --conditional");
  ASSERT_EQ(out.code, 0) << out.text;
  SG_EXPECT_CONTAINS(out.text, "held-out likelihood");
  ASSERT_EQ(stopgrad(train + at("plain")).code, 0);

  const std::string rest = " " + vqvae_ + " --count 6 --columns 3 --out ", sample = "sample " + at("classes") + rest;
  for (const char* picture : {"a.png", "b.png"}) {
    out = stopgrad(sample + at(picture));
    ASSERT_EQ(out.code, 0) << out.text;
    SG_EXPECT_CONTAINS(out.text, "6 images of 4 new tokens each");
    SG_EXPECT_CONTAINS(out.text, "a class per row");
  }
  EXPECT_EQ(read_file(folder_ / "a.png"), read_file(folder_ / "b.png"));
  ASSERT_EQ(stopgrad(sample + at("c.png") + " --sampling-seed 2 --top-k 5 --top-p 0.9 --class 1").code, 0);
  expect_fails(sample + at("e.png") + " --class 99", 2, "has classes 0 to");
  ASSERT_EQ(stopgrad("sample " + at("plain") + rest + at("d.png")).code, 0);
  expect_fails("sample " + at("plain") + rest + at("e.png") + " --class 1", 2, "has no classes");

  const std::string generate = "generate " + at("classes") + " --length 4 --out " + at("row.npy");
  ASSERT_EQ(stopgrad(generate + " --class 1").code, 0);
  EXPECT_EQ(read_npy(folder_ / "row.npy").shape(), (Shape{1, 4}));
  expect_fails(generate, 2, "--class is needed");
  expect_fails(generate + " --class 99", 2, "--class 99");
  expect_fails("generate " + at("plain") + " --class 0 --length 4 --out " + at("row.npy"), 2, "no classes");
}

TEST_F(Prior, SaysWhatDoesNotGoTogether) {
  expect_fails("train prior", 2, "--tokens FILE.npy is needed");
  expect_fails("train prior --tokens " + at("none.npy"), 1, "none.npy");
  expect_fails("train prior --codes 5", 2, "--codes: prior has no such setting");
  expect_fails("train prior --tokens " + tokens_ + " --batch 8 --warmup 0 --attention-heads 3", 2, "3 heads");
  expect_fails("tokenize " + vqvae_ + " --out " + at("tokens.bin"), 2, "ends with .npy");
  ASSERT_EQ(train("--steps 3 --out " + at("prior")).code, 0);
  expect_fails("tokenize " + at("prior") + " --out " + at("x.npy"), 2, "makes no tokens of images");
  expect_fails("sample " + vqvae_ + " " + vqvae_ + " --out " + at("x.png"), 2, "makes no tokens");
  expect_fails("sample " + at("prior") + " " + vqvae_ + " --class 1 --out " + at("x.png"), 2, "has no classes");
  ASSERT_EQ(
      stopgrad(
          "train vqvae --data synthetic --limit 40 --image-size 8 --hidden 8 --codes 32 --batch 8 --steps 3 --out " +
          at("other"))
          .code,
      0);
  expect_fails("sample " + at("prior") + " " + at("other") + " --out " + at("x.png"), 2, "another model's tokens");
  std::filesystem::remove(folder_ / "tokens.labels.npy");
  write_npy(tokens_, Tensor::of<std::int32_t>({2, 4}, {0, 1, 2, 3, 4, 5, 6, 99}));
  expect_fails("train prior --tokens " + tokens_ + " --steps 3", 1, "token 7 is 99");
}

}  // namespace
}  // namespace sg::test
