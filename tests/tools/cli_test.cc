// The built program, run as a user runs it: exit codes, messages, what is left behind.
#include "tests/tools/cli.h"

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/safetensors.h"
#include "tests/support/expect.h"
#include "tests/tools/temp_folder.h"
#include "tools/images.h"
#include "tools/npy.h"
#include "tools/run_folder.h"

extern char** environ;

namespace sg::test {
namespace {

using namespace tools;

std::string trained(const TempFolder& folder, const std::string& name, const std::string& flags) {
  const std::string run = (folder / name).string();
  const Outcome out = stopgrad("train vqvae" + kSmall + flags + " --out " + run);
  EXPECT_EQ(out.code, 0) << out.text;
  return run;
}

TEST(Cli, HelpHasExamplesForEachCommand) {
  for (const char* command : {"train", "evaluate", "encode", "decode", "tape", "audit", "compare", "info", "bench"}) {
    const Outcome out = stopgrad(std::string(command) + " --help");
    EXPECT_EQ(out.code, 0);
    SG_EXPECT_CONTAINS(out.text, "Examples:");
    SG_EXPECT_CONTAINS(out.text, std::string("stopgrad ") + command);
  }
  EXPECT_EQ(stopgrad("--version").code, 0);
  EXPECT_EQ(stopgrad("").code, 2);
}

TEST(Cli, WrongUsageIsOneMessageAndCodeTwo) {
  const TempFolder folder;
  const std::string out = " --out " + (folder / "run").string();
  expect_fails("train vqvae --colour blue" + out, 2, "--colour");
  expect_fails("paint", 2, "paint");
  expect_fails("train" + out, 2, "which model");
  expect_fails("train vq-gan" + out, 2, "model 'vq-gan' is unknown; choose one of: vqvae");
  expect_fails("train vqvae --estimator magic" + out, 2, "--estimator: unknown estimator 'magic'; there are: ste");
  expect_fails("train vqvae --backend abacus" + out, 2, "--backend 'abacus' is unknown; choose one of:");
  expect_fails("train vqvae --codes 0" + out, 2, "--codes is 0");
  expect_fails("train vqvae --codes many" + out, 2, "--codes");
  expect_fails("train vqvae --lr nan" + out, 2, "--lr");
  expect_fails("train vqvae --data nosuchset" + out, 2, "neither a data set");
  expect_fails("train vqvae --data synthetic --limit 5 --batch 6" + out, 2, "the training set has only 5 images");
  expect_fails("train vqvae --data synthetic --limit 5 --batch 2 --image-size 30" + out, 2, "divisible by 4");
  expect_fails("train vqvae --data synthetic --limit 5 --batch 2 --steps 3 --warmup 3" + out, 2, "--warmup");
  expect_fails("train --resume x --out y", 2, "--out cannot be given");
  expect_fails("train --config " + folder.write("c.toml", "coeds = 3\n").string() + out, 2, "unknown setting 'coeds'");
  expect_fails("encode " + folder.path().string(), 2, "IMAGES");
  expect_fails("tape vqvae --format pdf", 2, "pdf");
  expect_fails("bench step --repeats 0", 2, "--repeats");
  EXPECT_FALSE(std::filesystem::exists(folder / "run")) << "nothing may be written";
}

TEST(Cli, BadDataIsOneMessageAndCodeOne) {
  const TempFolder folder;
  const std::string out = " --out " + (folder / "run").string();
  const auto train_on = [&](const std::string& data) { return "train vqvae --batch 2 --steps 1 --data " + data + out; };
  expect_fails("train vqvae --data fashion-mnist --data-dir " + folder.path().string() + out, 1,
               "dataset-fashion-mnist");
  folder.write("empty/readme.txt", "");
  expect_fails(train_on((folder / "empty").string()), 1, "no images");
  folder.write("idx/train-images-idx3-ubyte", std::string("\0\0\x08\x03\0\0\0\x05\0\0\0\x08\0\0\0\x08", 16) + "short");
  folder.write("idx/t10k-images-idx3-ubyte", "");
  expect_fails(train_on((folder / "idx").string()), 1, "truncated");
  folder.write("gz/train-images-idx3-ubyte.gz", "\x1f\x8b\x08 and then garbage");
  folder.write("gz/t10k-images-idx3-ubyte.gz", "");
  expect_fails(train_on((folder / "gz").string()), 1, "train-images-idx3-ubyte.gz");
  folder.write("cifar/data_batch_1.bin", std::string(100, '\0'));
  folder.write("cifar/test_batch.bin", std::string(100, '\0'));
  expect_fails(train_on((folder / "cifar").string()), 1, "CIFAR-10 records");
  folder.write("png/a.png", "not a picture");
  expect_fails(train_on((folder / "png").string()), 1, "not a readable PNG or JPEG");
  EXPECT_FALSE(std::filesystem::exists(folder / "run")) << "nothing may be written";
  folder.write("full/file", "x");
  expect_fails("train vqvae" + kSmall + "--steps 1 --out " + (folder / "full").string(), 1, "is not empty");
  expect_fails("train vqvae" + kSmall + "--steps 1 --out " + (folder / "full/file/run").string(), 1,
               "cannot make the folder");
}

TEST(Cli, TrainLeavesARunFolderThatTheOthersUse) {
  const TempFolder folder;
  const std::string run = trained(folder, "run", "--steps 4");
  for (const char* file :
       {"config.toml", "metrics.jsonl", "checkpoint.safetensors", "reconstructions.png", "curves.png"})
    EXPECT_GT(std::filesystem::file_size(folder / "run" / file), 0u) << file;
  const auto metrics = read_metrics(folder / "run" / "metrics.jsonl");
  ASSERT_EQ(metrics.size(), 4u);
  for (const char* name :
       {"loss", "reconstruction", "codebook", "commitment", "usage", "perplexity", "usage_window", "perplexity_window",
        "relative_error", "norm_ratio", "norm_ratio_p5", "norm_ratio_p95", "angle", "angle_p5", "angle_p95",
        "grad_reconstruction", "grad_commitment", "lr", "images_per_second"})
    EXPECT_TRUE(std::isfinite(metric(metrics[3], name))) << name;

  const Outcome evaluated = stopgrad("evaluate " + run + " --json");
  ASSERT_EQ(evaluated.code, 0) << evaluated.text;
  const auto json = nlohmann::json::parse(evaluated.text);
  EXPECT_EQ(json["images"], 40);
  EXPECT_NEAR(json["psnr"].get<double>(), -10 * std::log10(json["mse"].get<double>()), 1e-9);

  for (int i = 0; i < 11; ++i) {
    Image image(9 + i, 12, 1, static_cast<std::uint8_t>(20 * i));
    save_png(folder / fmt::format("in{:02}.png", i), image);
  }
  const std::string tokens = (folder / "tokens.npy").string();
  const Outcome encoded = stopgrad("encode " + run + " " + folder.path().string() + "/in*.png --out " + tokens);
  ASSERT_EQ(encoded.code, 0) << encoded.text;
  EXPECT_EQ(read_npy(tokens).type(), (TensorType{DType::i32, {11, 2, 2}}));
  const Outcome decoded = stopgrad("decode " + run + " " + tokens + " --out " + (folder / "decoded").string());
  ASSERT_EQ(decoded.code, 0) << decoded.text;
  SG_EXPECT_CONTAINS(decoded.text, "gives the same 44 tokens");
  EXPECT_TRUE(std::filesystem::exists(folder / "decoded" / "00010.png"));
}

TEST(Cli, DecodeRefusesTokensOfAnotherRun) {
  const TempFolder folder;
  const std::string run = trained(folder, "run", "--steps 1");
  const auto refused = [&](const Tensor& tokens, std::string_view why) {
    write_npy(folder / "t.npy", tokens);
    expect_fails("decode " + run + " " + (folder / "t.npy").string() + " --out " + (folder / "out").string(), 1, why);
  };
  refused(Tensor({DType::i32, {3, 4, 4}}), "i32[N,2,2]");
  refused(Tensor({DType::f32, {3, 2, 2}}), "i32[N,2,2]");
  refused(Tensor::of<std::int32_t>({1, 2, 2}, {0, 16, 0, 0}), "token 1 is 16; this model has codes");
  refused(Tensor::of<std::int32_t>({1, 2, 2}, {0, -1, 0, 0}), "token 1 is -1");
  expect_fails(
      "decode " + run + " " + folder.write("bad.npy", "nonsense").string() + " --out " + (folder / "out").string(), 1,
      "is not a .npy file");
  EXPECT_FALSE(std::filesystem::exists(folder / "out")) << "nothing may be written";
  expect_fails(
      "encode " + run + " " + folder.write("bad.png", "nonsense").string() + " --out " + (folder / "o.npy").string(), 1,
      "bad.png");
  EXPECT_FALSE(std::filesystem::exists(folder / "o.npy"));
}

std::map<std::string, std::string> checkpoint_bytes(const std::string& run) {
  std::map<std::string, std::string> out;
  for (const NamedTensor& t : load_safetensors(std::filesystem::path(run) / "checkpoint.safetensors").tensors)
    out[t.name] =
        to_string(t.value.type()) + std::string(reinterpret_cast<const char*>(t.value.data()), t.value.bytes());
  return out;
}

class CliResume : public testing::TestWithParam<std::string> {};

// N steps = N/2 + resume + N/2, bit for bit, over the end of an epoch, with every kind of state in use.
TEST_P(CliResume, IsExact) {
  const TempFolder folder;
  const std::string flags =
      "--steps 12 --codebook ema --revive 0.2 --init kmeans --schedule cosine --warmup 2 --clip 1 --estimator rotation "
      "--backend " +
      GetParam();
  const std::string whole = trained(folder, "whole", flags),
                    halves = trained(folder, "halves", flags + " --stop-after 6");
  EXPECT_NE(checkpoint_bytes(whole), checkpoint_bytes(halves));
  const Outcome out = stopgrad("train --resume " + halves);
  ASSERT_EQ(out.code, 0) << out.text;
  const auto expected = checkpoint_bytes(whole), got = checkpoint_bytes(halves);
  ASSERT_EQ(got.size(), expected.size());
  for (const auto& [name, bytes] : expected) EXPECT_TRUE(got.at(name) == bytes) << name;
  const auto a = read_metrics(whole + "/metrics.jsonl"), b = read_metrics(halves + "/metrics.jsonl");
  ASSERT_EQ(b.size(), 12u);
  for (std::size_t i = 0; i < a.size(); ++i)
    for (const auto& [name, value] : a[i]) {
      if (name == "images_per_second") continue;
      EXPECT_EQ(metric(b[i], name), value) << "step " << i + 1 << " " << name;
    }
}
INSTANTIATE_TEST_SUITE_P(Backends, CliResume, testing::Values("cpu", "reference"),
                         [](const auto& info) { return info.param; });

TEST(Cli, ResumeRefusesAnotherModelOrSetting) {
  const TempFolder folder;
  const std::string run = trained(folder, "run", "--steps 2");
  expect_fails("train --resume " + run, 2, "has done all of its 2 steps");
  expect_fails("train --resume " + run + " --steps 4 --lr 0.1", 2, "--lr is 0.0003 in");
  expect_fails("train --resume " + (folder / "nowhere").string(), 1, "no such folder");

  // The config of another size: the first tensor that disagrees is named.
  const std::string config = slurp(run + "/config.toml");
  std::string other = config;
  other.replace(other.find("codes = 16"), 10, "codes = 32");
  folder.write("run/config.toml", other);
  expect_fails("train --resume " + run + " --steps 4", 1,
               "tensor 'quantizer.codebook' is f32[16,4], this model's is f32[32,4]");
  expect_fails("evaluate " + run, 1, "tensor 'quantizer.codebook' is f32[16,4], this model's is f32[32,4]");
  folder.write("run/config.toml", config);

  StateFile state = load_safetensors(run + "/checkpoint.safetensors");
  for (NamedTensor& t : state.tensors)
    if (t.name == "encoder.down1.weight") t.value.set(0, std::nan(""));
  save_safetensors(run + "/checkpoint.safetensors", state);
  expect_fails("evaluate " + run, 1, "tensor 'encoder.down1.weight' holds a NaN");
  folder.write("run/checkpoint.safetensors", "garbage");
  expect_fails("evaluate " + run, 1, "checkpoint.safetensors");
}

TEST(Cli, FullDiskKeepsTheOldCheckpoint) {
  const TempFolder folder;
  const std::string run = trained(folder, "run", "--steps 2");
  const std::string before = slurp(run + "/checkpoint.safetensors");
  // A file-size limit makes writes fail as a full disk does.
  const Outcome out =
      shell("trap '' XFSZ; ulimit -f 8; exec " SG_STOPGRAD_BINARY " train --resume " + run + " --steps 4");
  EXPECT_EQ(out.code, 1) << out.text;
  EXPECT_TRUE(slurp(run + "/checkpoint.safetensors") == before);
  EXPECT_EQ(stopgrad("evaluate " + run).code, 0);
}

pid_t start_training(const std::string& run, const std::string& flags) {
  const std::string command =
      "exec " SG_STOPGRAD_BINARY " train vqvae" + kSmall + flags + " --out " + run + " > " + run + ".log 2>&1";
  std::string sh = "sh", c = "-c", text = command;
  char* const argv[] = {sh.data(), c.data(), text.data(), nullptr};
  pid_t child = 0;
  EXPECT_EQ(posix_spawnp(&child, "sh", nullptr, nullptr, argv, environ), 0);
  return child;
}

void wait_for(const std::filesystem::path& file) {
  for (int i = 0; i < 3000 && !std::filesystem::exists(file); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ASSERT_TRUE(std::filesystem::exists(file));
}

// Killed while it does little else than saving: what lies there must load, and go on.
TEST(Cli, KilledWhileSavingLeavesACheckpointThatLoads) {
  const TempFolder folder;
  for (int attempt = 0; attempt < 4; ++attempt) {
    const std::string run = (folder / fmt::format("run{}", attempt)).string();
    const pid_t child = start_training(run, "--steps 1000000 --checkpoint-every 1");
    wait_for(run + "/checkpoint.safetensors");
    std::this_thread::sleep_for(std::chrono::milliseconds(37 * attempt + 11));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << slurp(run + ".log");
    const Outcome out = stopgrad("evaluate " + run);
    EXPECT_EQ(out.code, 0) << out.text;
    if (attempt == 0) {
      const double step = load_safetensors(run + "/checkpoint.safetensors").find("training.step")->item();
      const Outcome more = stopgrad(fmt::format("train --resume {} --stop-after {:.0f}", run, step + 2));
      EXPECT_EQ(more.code, 0) << more.text;
    }
  }
}

TEST(Cli, CtrlCSavesAndStops) {
  const TempFolder folder;
  const std::string run = (folder / "run").string();
  const pid_t child = start_training(run, "--steps 1000000 --checkpoint-every 3");
  wait_for(run + "/checkpoint.safetensors");
  kill(child, SIGINT);
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  SG_EXPECT_CONTAINS(slurp(run + ".log"), "train --resume");
  const double step = load_safetensors(run + "/checkpoint.safetensors").find("training.step")->item();
  EXPECT_EQ(read_metrics(run + "/metrics.jsonl").size(), static_cast<std::size_t>(step));
  EXPECT_TRUE(std::filesystem::exists(run + "/curves.png"));
}

TEST(Cli, DivergingRunStopsAndNamesTheStep) {
  const TempFolder folder;
  const Outcome out =
      stopgrad("train vqvae" + kSmall + "--steps 400 --optimizer sgd --lr 1000 --out " + (folder / "again").string());
  EXPECT_EQ(out.code, 1);
  SG_EXPECT_CONTAINS(out.text, "the loss is");
  SG_EXPECT_CONTAINS(out.text, "--check-finite");
  const Outcome checked =
      stopgrad("train vqvae" + kSmall + "--steps 400 --optimizer sgd --lr 1000 --check-finite --out " +
               (folder / "checked").string());
  EXPECT_EQ(checked.code, 1);
  SG_EXPECT_CONTAINS(checked.text, "stopgrad: step ");
  SG_EXPECT_CONTAINS(checked.text, "first made by");
}

TEST(Cli, TrainSaysWhatIsTrainedAndRefusesWhatIsNot) {
  const TempFolder folder;
  const std::string out = " --steps 2 --out " + (folder / "run").string();
  const Outcome fine = stopgrad("train vqvae" + kSmall + out);
  EXPECT_EQ(fine.code, 0) << fine.text;
  SG_EXPECT_CONTAINS(fine.text, "vq: 16 codes of 4 by ema, estimator ste\n  reconstruction trains encoder, decoder\n");
  SG_EXPECT_CONTAINS(fine.text, "  commitment     trains encoder\n  updated without gradients: quantizer.codebook");

  // Nothing trains the codes: their loss has no weight, and they are no averages.
  const std::string dead =
      "train vqvae" + kSmall + "--codebook loss --beta 0 --revive 0 --steps 2 --out " + (folder / "dead").string();
  expect_fails(dead, 1, "parameter 'quantizer.codebook' gets no gradient from any loss term");
  EXPECT_FALSE(std::filesystem::exists(folder / "dead")) << "nothing may be written";
  const Outcome allowed = stopgrad(dead + " --allow-untrained");
  EXPECT_EQ(allowed.code, 0) << allowed.text;
  SG_EXPECT_CONTAINS(allowed.text, "trained by nothing: quantizer.codebook");
  SG_EXPECT_CONTAINS(allowed.text, "warning: parameter 'quantizer.codebook'");
}

TEST(Cli, TrainDescribesQuantizersWithoutACodebook) {
  const TempFolder folder;
  const Outcome out =
      stopgrad("train vqvae" + kSmall + "--quantizer fsq --grid 8,5,5 --estimator rotation --steps 2 --out " +
               (folder / "run").string());
  EXPECT_EQ(out.code, 0) << out.text;
  SG_EXPECT_CONTAINS(out.text, "  fsq: grid 8x5x5 of 200 codes\n");
  SG_EXPECT_CONTAINS(out.text, "fsq has a gradient of its own; --estimator rotation is not used");
  EXPECT_FALSE(contains(out.text, "by ema")) << out.text;
  EXPECT_EQ(stopgrad("evaluate " + (folder / "run").string()).code, 0);
}

TEST(Cli, AuditPrintsTheMatrix) {
  const Outcome sound = stopgrad("audit vqvae --hidden 8 --codes 16 --codebook loss --estimator rotation");
  EXPECT_EQ(sound.code, 0) << sound.text;
  for (const char* part : {"encoder.* (16)", "reconstruction", "stop_gradient", "no problems"})
    SG_EXPECT_CONTAINS(sound.text, part);
  const Outcome dead = stopgrad("audit vqvae --hidden 8 --codes 16 --codebook loss --beta 0 --revive 0 --json");
  EXPECT_EQ(dead.code, 1) << dead.text;
  const auto json = nlohmann::json::parse(dead.text.substr(0, dead.text.rfind("}\n") + 2));
  EXPECT_EQ(json["problems"].size(), 1u);
  EXPECT_EQ(json["terms"], (std::vector<std::string>{"reconstruction", "commitment"}));
  for (const auto& row : json["variables"])
    if (row["variable"] == "quantizer.codebook") {
      EXPECT_EQ(row["terms"]["commitment"]["flow"], "blocked");
      EXPECT_FALSE(row["terms"]["commitment"]["cuts"].empty());
    }
  const TempFolder folder;
  const std::string run = trained(folder, "run", "--steps 1");
  EXPECT_EQ(stopgrad("audit " + run).code, 0);
  expect_fails("audit nowhere", 2, "model 'nowhere' is unknown");
}

TEST(Cli, TapeDrawsStopGradientsApart) {
  const Outcome text = stopgrad("tape vqvae --hidden 8 --codes 16");
  EXPECT_EQ(text.code, 0);
  SG_EXPECT_CONTAINS(text.text, "stop_gradient");
  const Outcome dot = stopgrad("tape vqvae --hidden 8 --codes 16 --format dot");
  EXPECT_EQ(dot.code, 0);
  SG_EXPECT_CONTAINS(dot.text, "shape=octagon");
  SG_EXPECT_CONTAINS(dot.text, "style=dashed, color=\"#c62828\"");
  const Outcome step = stopgrad("tape vqvae --hidden 8 --codes 16 --part step");
  EXPECT_GT(step.text.size(), text.text.size());
  const Outcome no_dot = shell("PATH=/nowhere " SG_STOPGRAD_BINARY " tape vqvae --format svg");
  EXPECT_EQ(no_dot.code, 1);
  SG_EXPECT_CONTAINS(no_dot.text, "apt-get install graphviz");
}

TEST(Cli, InfoAndBenchReport) {
  const Outcome info = stopgrad("info");
  EXPECT_EQ(info.code, 0);
  for (const char* part : {"stopgrad 0.", "reference", "cpu", "threads"}) SG_EXPECT_CONTAINS(info.text, part);
  const Outcome bench =
      stopgrad("bench step --json - --repeats 2 --warm 0 --hidden 8 --residual-hidden 4 --codes 16 --code-dim 4 --batch 4");
  ASSERT_EQ(bench.code, 0) << bench.text;
  const auto json = nlohmann::json::parse(bench.text);
  EXPECT_GT(json["median_ms"].get<double>(), 0);
  EXPECT_GT(json["peak_rss_mb"].get<double>(), 1);
  EXPECT_GT(json["arena_bytes"].get<double>(), 0);
  const Outcome estimators = stopgrad("info --estimators --quantizers");
  EXPECT_EQ(estimators.code, 0);
  for (const char* part : {"rotation", "dz_q/dz", "2410.06424", "vq  "}) SG_EXPECT_CONTAINS(estimators.text, part);
}

}  // namespace
}  // namespace sg::test
