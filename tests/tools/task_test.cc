// Models of the program's table: every one trains, resumes exactly, is sound, and has its own settings only.
#include <nlohmann/json.hpp>

#include "core/safetensors.h"
#include "models/init.h"
#include "tests/tools/cli.h"
#include "tests/tools/temp_folder.h"
#include "tools/files.h"
#include "tools/flow_report.h"
#include "tools/memory.h"
#include "tools/session.h"

namespace sg::test {
namespace {

using namespace tools;

// Sizes and data that the two autoencoders share with vqvae.
const std::string kTiny =
    " --data synthetic --limit 40 --image-size 8 --hidden 8 --residual-hidden 4 --residual-blocks 1 --batch 8 "
    "--threads 1 --log-every 1000 ";
std::string own_flags(const std::string& model) { return kTiny + (model == "ae" ? "--code-dim 4 " : "--codes 256 "); }

class Autoencoders : public testing::TestWithParam<const char*> {};

TEST_P(Autoencoders, ResumeIsExact) {
  const TempFolder folder;
  const std::string model = GetParam(), whole = (folder / "whole").string(), halves = (folder / "halves").string();
  const std::string train = "train " + model + own_flags(model) + "--steps 6 --schedule cosine --out ";
  ASSERT_EQ(stopgrad(train + whole).code, 0);
  ASSERT_EQ(stopgrad(train + halves + " --stop-after 3").code, 0);
  const Outcome out = stopgrad("train --resume " + halves);
  ASSERT_EQ(out.code, 0) << out.text;
  EXPECT_EQ(read_file(whole + "/checkpoint.safetensors"), read_file(halves + "/checkpoint.safetensors"));
  const auto a = read_metrics(whole + "/metrics.jsonl"), b = read_metrics(halves + "/metrics.jsonl");
  ASSERT_EQ(a.size(), 6u);
  ASSERT_EQ(b.size(), 6u);
  for (std::size_t i = 0; i < a.size(); ++i)
    for (const auto& [name, value] : a[i]) {
      if (name == "images_per_second") continue;
      EXPECT_EQ(metric(b[i], name), value) << name << " at step " << i + 1;
    }
}

TEST_P(Autoencoders, EvaluateLeavesOutWhatThereIsNot) {
  const TempFolder folder;
  const std::string model = GetParam(), run = (folder / "run").string();
  ASSERT_EQ(stopgrad("train " + model + own_flags(model) + "--steps 3 --out " + run).code, 0);
  EXPECT_TRUE(std::filesystem::exists(run + "/reconstructions.png"));
  EXPECT_TRUE(std::filesystem::exists(run + "/curves.png"));
  const Outcome out = stopgrad("evaluate " + run + " --json");
  ASSERT_EQ(out.code, 0) << out.text;
  const auto json = nlohmann::json::parse(out.text);
  EXPECT_EQ(json["images"], 40);
  EXPECT_GT(json["mse"].get<double>(), 0);
  const bool coded = model != "ae";
  for (const char* key : {"codes", "usage", "perplexity", "relative_error"})
    EXPECT_EQ(json.contains(key), coded) << key;
  const Metrics last = read_metrics(run + "/metrics.jsonl").back();
  EXPECT_EQ(std::isnan(metric(last, "usage")), !coded);
  EXPECT_TRUE(std::isnan(metric(last, "grad_commitment"))) << "there is no commitment";
}

TEST_P(Autoencoders, HelpAndSettingsAreTheModelsOwn) {
  const std::string model = GetParam();
  const Outcome help = stopgrad("train " + model + " --help");
  EXPECT_EQ(help.code, 0);
  SG_EXPECT_CONTAINS(help.text, "--hidden");
  const std::string flags = help.text.substr(0, help.text.find("Examples:"));
  for (const char* flag : {"--quantizer ", "--estimator", "--ema-decay", "--gamma"})
    EXPECT_FALSE(contains(flags, flag)) << flag;
  EXPECT_EQ(contains(flags, "--codes "), model == "fsq-ae");
  const TrainConfig config = default_config(model);
  EXPECT_FALSE(contains(to_toml(config), "quantizer ="));
  const TempFolder folder;
  const TrainConfig back = read_config(folder.write("c.toml", to_toml(config)), {});
  for (const ConfigField& field : config_fields()) EXPECT_EQ(text_of(back, field), text_of(config, field)) << field.key;
}

INSTANTIATE_TEST_SUITE_P(Models, Autoencoders, testing::Values("ae", "fsq-ae"),
                         [](const auto& info) { return std::string(info.param) == "ae" ? "ae" : "fsq_ae"; });

TEST(Tasks, RefuseSettingsThatTheModelHasNot) {
  const TempFolder folder;
  const std::string out = " --out " + (folder / "run").string();
  expect_fails("train ae --codes 16" + out, 2, "--codes: ae has no such setting; vqvae, ");
  expect_fails("train fsq-ae --estimator rotation" + out, 2, "--estimator: fsq-ae has no such setting; vqvae");
  expect_fails("train fsq-ae --data synthetic --limit 200 --codes 300" + out, 2, "no grid is known for 300 codes");
  expect_fails("train ae --config " + folder.write("a.toml", "model = \"ae\"\ncodes = 3\n").string() + out, 2,
               "ae has no setting 'codes', which is of vqvae");
  expect_fails("train ae --config " + folder.write("b.toml", "model = \"fsq-ae\"\n").string() + out, 2,
               "is of fsq-ae, not of ae");
  expect_fails("compare ae --vary quantizer=vq,fsq" + out, 2, "--quantizer: ae has no such setting");
  expect_fails("tape ae --part encode", 2, "ae has no part 'encode'");
  EXPECT_FALSE(std::filesystem::exists(folder / "run")) << "nothing may be written";
}

// Every row of the table, as it comes.
TEST(Tasks, AreSound) {
  for (const std::string& name : task_names()) {
    TaskSetup setup{default_config(name)};
    validate(setup.config);
    const ZeroInitialValues quick;
    const std::unique_ptr<Task> task = make_task(setup);
    Tape tape;
    const TaskStep step = task->record(tape, IfUnreachable::zero);
    EXPECT_EQ(step.metrics.at(0).name, "loss") << name;
    const FlowReport report = report_flow(audit(tape, step.terms, task->parameters(), task->state()), step.expected);
    EXPECT_TRUE(report.problems.empty()) << name << ": " << report.problems.front();
    EXPECT_TRUE(report.violations.empty()) << name << ": " << report.violations.front();
    std::vector<std::string> names;
    for (const Variable* v : task->checkpoint()) names.push_back(v->name());
    EXPECT_EQ(std::count(names.begin(), names.end(), task->step().name()), 1) << name;
    std::sort(names.begin(), names.end());
    EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end()) << name;
  }
}

TEST(Tasks, RevivalFollowsTheRule) {
  TrainConfig config;
  for (const std::string& rule : codebook_update_names()) {
    config.codebook = rule;
    const bool shared = rule == "simvq" || rule == "frozen";
    EXPECT_EQ(model_config(config, {28, 28, 1}).quantizer.revival, shared ? 0 : 1) << rule;
  }
  config.codebook = "ema", config.revive = 0;
  EXPECT_EQ(model_config(config, {28, 28, 1}).quantizer.revival, 0);
  config.revive = -0.5;
  SG_EXPECT_ERROR(usage, "--revive is -0.5", validate(config));
  const TempFolder folder;
  const Outcome out = stopgrad("train vqvae" + kSmall + "--codebook simvq --steps 2 --out " + (folder / "r").string());
  EXPECT_EQ(out.code, 0) << out.text;
}

TEST(Tasks, TooLittleMemoryIsAnErrorBeforeAnythingIsWritten) {
  const TempFolder folder;
  // 1.4 TB of weights, gradients and averages, none of which are made.
  expect_fails(
      "train vqvae --data synthetic --limit 200 --hidden 8192 --residual-hidden 8192 --residual-blocks 64 --out " +
          (folder / "run").string(),
      1, "vqvae: weights, optimizer state and gradients need 1");
  EXPECT_FALSE(std::filesystem::exists(folder / "run"));

  TaskSetup setup{default_config("vqvae")};
  setup.config.hidden = 32;
  EXPECT_GT(available_memory(), std::size_t{1} << 20);
  const std::unique_ptr<Task> task = make_task_that_fits(setup, available_memory());
  const Tensor made = task->parameters().front()->value();
  EXPECT_NE(made.at(0), 0) << "the initial values are those of a run";
  std::size_t bytes = 0;
  for (const Variable* v : task->checkpoint()) bytes += v->value().bytes();
  for (const Variable* v : task->parameters()) bytes += v->value().bytes();
  make_task_that_fits(setup, bytes);
  SG_EXPECT_ERROR(unsupported, "lower one of --hidden, --residual-hidden, --residual-blocks, --codes, --code-dim",
                  make_task_that_fits(setup, bytes - 1));
  ProgramStats stats;
  stats.arena_bytes = std::size_t{3} << 30;
  SG_EXPECT_ERROR(unsupported,
                  "(3.22 GB of them beside the weights), this machine has 3.00 GB available; lower one of "
                  "--batch, --hidden",
                  require_memory(*task, stats, 3000000000));
}

TEST(Tasks, ProbeSaysWhichModelItNeeds) {
  const TempFolder folder;
  for (const std::string model : {"ae", "fsq-ae", "vqgan"}) {
    const std::string run = (folder / model).string(), sizes = model == "vqgan" ? " --ch 8" : " --hidden 8";
    const Outcome out = stopgrad("train " + model + " --data synthetic --limit 40 --image-size 16 --batch 8 --steps 1" +
                                 sizes + " --threads 1 --out " + run);
    ASSERT_EQ(out.code, 0) << out.text;
    expect_fails("probe " + run, 2, "is a run of " + model + "; one of vqvae is needed");
  }
}

TEST(Tasks, CompareTakesModelsAndCodesAsAxes) {
  const TempFolder folder;
  const std::string out = (folder / "models").string();
  const Outcome models = stopgrad("compare" + kTiny + "--steps 3 --seeds 1 --vary model=ae,fsq-ae --out " + out);
  ASSERT_EQ(models.code, 0) << models.text;
  SG_EXPECT_CONTAINS(models.text, "| ae ");
  const std::vector<std::byte> bytes = read_file(out + "/results.json");
  const auto json = nlohmann::json::parse(reinterpret_cast<const char*>(bytes.data()),
                                          reinterpret_cast<const char*>(bytes.data()) + bytes.size());
  EXPECT_TRUE(json["arms"][0]["runs"][0]["usage"].is_null());
  EXPECT_GT(json["arms"][1]["runs"][0]["usage"].get<double>(), 0);
  const Outcome codes =
      stopgrad("compare" + kTiny + "--list --quantizers vq,fsq,lfq --codes 256,1024 --seeds 1 --out " +
               (folder / "codes").string());
  ASSERT_EQ(codes.code, 0) << codes.text;
  SG_EXPECT_CONTAINS(codes.text, "fsq  1024  seed 1");
  EXPECT_EQ(stopgrad("compare" + kTiny + "--list --codes 64 --seeds 1").code, 0);
}

}  // namespace
}  // namespace sg::test
