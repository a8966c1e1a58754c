// The program's commands with --backend cuda: in this process, so that they run on the emulated device too.
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/cuda/support.h"
#include "tests/tools/cli.h"
#include "tests/tools/temp_folder.h"
#include "tools/program.h"

namespace sg::test {
namespace {

class CudaCommands : public CudaTest {
 protected:
  void TearDown() override { set_threads(before_); }
  const int before_ = threads();  // what commands set is the process's
};

// As a shell would split it; no quotes.
int run_here(const std::string& arguments, std::string* printed = nullptr) {
  std::vector<std::string> words{"stopgrad"};
  std::istringstream in(arguments);
  for (std::string word; in >> word;) words.push_back(word);
  std::vector<const char*> argv;
  for (const std::string& word : words) argv.push_back(word.c_str());
  testing::internal::CaptureStdout();
  const int code = tools::run_program(static_cast<int>(argv.size()), argv.data());
  const std::string text = testing::internal::GetCapturedStdout();
  if (printed != nullptr) *printed = text;
  return code;
}

std::vector<double> losses_of(const std::string& run) {
  std::ifstream file(run + "/metrics.jsonl");
  std::vector<double> losses;
  for (std::string line; std::getline(file, line);)
    if (const auto json = nlohmann::json::parse(line); json.contains("loss")) losses.push_back(json["loss"]);
  return losses;
}

TEST_F(CudaCommands, ARunGoesFromCpuToCudaAndBack) {
  const TempFolder folder;
  const std::string flags =
      "train vqvae" + kSmall + "--estimator rotation --codebook ema --init kmeans --steps 9 --out ";
  const std::string whole = (folder / "whole").string(), moved = (folder / "moved").string();
  ASSERT_EQ(run_here(flags + whole), 0);
  ASSERT_EQ(run_here(flags + moved + " --stop-after 3"), 0);
  std::string text;
  ASSERT_EQ(run_here("train --resume " + moved + " --backend cuda --stop-after 6", &text), 0);
  SG_EXPECT_CONTAINS(text, "backend cuda");
  ASSERT_EQ(run_here("train --resume " + moved + " --backend cpu"), 0);
  const std::vector<double> wanted = losses_of(whole), got = losses_of(moved);
  ASSERT_EQ(wanted.size(), 9u);
  ASSERT_EQ(got.size(), wanted.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(got[i], wanted[i], 1e-4 * wanted[i]) << "step " << i + 1;
}

// Every other model: three steps as on the CPU.
TEST_F(CudaCommands, EveryModelTrainsAsOnTheCpu) {
  const TempFolder folder;
  std::string text;
  for (int i = 0; i < 60; ++i) text += "the quick brown fox jumps over the lazy dog. ";
  const std::string file = folder.write("text.txt", text).string();
  const std::string image = " --data synthetic --limit 40 --image-size 8 --batch 4 --threads 1 --log-every 1000";
  const std::string network = " --hidden 8 --residual-hidden 4 --residual-blocks 1 --code-dim 4";
  const std::vector<std::pair<std::string, std::string>> models = {
      {"ae", "ae" + image + network},
      {"fsq-ae", "fsq-ae" + image + " --hidden 8 --residual-hidden 4 --residual-blocks 1 --grid 5,3"},
      {"vqgan",
       "vqgan --data synthetic --limit 40 --image-size 16 --batch 4 --threads 1 --log-every 1000 --ch 8 --latent 8 "
       "--ndf 8 --disc-layers 2 --disc-start 1 --disc-warmup 1"},
      {"classifier", "classifier" + image + " --hidden 8"},
      {"transformer-vq",
       "transformer-vq --dim 16 --layers 1 --codes 8 --key-width 8 --block 8 --update 16 --sequence 32 --batch 4 "
       "--threads 1 --data " +
           file},
      {"bf16", "vqvae" + kSmall + "--dtype bf16"},
  };
  for (const auto& [name, arguments] : models) {
    SCOPED_TRACE(name);
    const std::string on_cuda = (folder / (name + "-cuda")).string(), on_cpu = (folder / (name + "-cpu")).string();
    ASSERT_EQ(run_here("train " + arguments + " --steps 3 --warmup 0 --backend cuda --out " + on_cuda), 0);
    const std::string same = name == "bf16" ? " --emulate-bf16" : "";
    ASSERT_EQ(run_here("train " + arguments + " --steps 3 --warmup 0 --backend cpu --out " + on_cpu + same), 0);
    const std::vector<double> wanted = losses_of(on_cpu), got = losses_of(on_cuda);
    ASSERT_EQ(wanted.size(), 3u);
    ASSERT_EQ(got.size(), 3u);
    const double tolerance = name == "bf16" ? 2e-2 : 2e-3;
    for (std::size_t i = 0; i < 3; ++i)
      EXPECT_NEAR(got[i], wanted[i], tolerance * std::abs(wanted[i])) << "step " << i + 1;
  }
}

}  // namespace
}  // namespace sg::test
