// compare: what it plans, what it runs and keeps, what its table says.
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "core/safetensors.h"
#include "tests/support/expect.h"
#include "tests/tools/cli.h"
#include "tests/tools/temp_folder.h"
#include "tools/comparison_report.h"
#include "tools/run_folder.h"
#include "tools/session.h"

namespace sg::test {
namespace {

using namespace tools;
namespace fs = std::filesystem;

ComparisonSettings settings(std::vector<std::string> vary, std::int64_t seeds = 2) {
  ComparisonSettings s;
  s.base.data = "synthetic", s.base.limit = 40, s.base.image_size = 8, s.base.hidden = 8, s.base.residual_hidden = 4;
  s.base.residual_blocks = 1, s.base.codes = 16, s.base.code_dim = 4, s.base.batch = 8, s.base.window = 5;
  s.base.steps = 5, s.base.threads = 1;
  s.vary = std::move(vary), s.seeds = seeds;
  return s;
}

TEST(Compare, PlansEveryCombinationWithEverySeed) {
  const Comparison c =
      plan(settings({"estimator=ste,radius:0.5", "codebook=loss,ema+ema-decay=0.8,ema+ema_decay=0.9+revive=1e-2"}, 3),
           "out");
  ASSERT_EQ(c.arms.size(), 6u);
  ASSERT_EQ(c.runs.size(), 18u);
  EXPECT_EQ(c.arms[0].values, (std::vector<std::string>{"ste", "loss"}));
  EXPECT_EQ(c.arms[5].config.estimator, "radius:0.5");
  EXPECT_EQ(c.arms[4].config.ema_decay, 0.8);
  EXPECT_EQ(c.arms[5].config.ema_decay, 0.9);
  EXPECT_EQ(c.arms[5].config.revive, 0.01);
  EXPECT_EQ(c.runs[7].seed, 2);
  EXPECT_EQ(c.runs[7].config.seed, 2);
  EXPECT_EQ(c.runs[7].arm, 1u);
  EXPECT_EQ(c.runs[7].folder, fs::path("out") / "ste_ema-ema-decay-0.8" / "seed-2");
  EXPECT_EQ(plan(settings({"grid=8x5x5,8x8"}), "out").arms[0].config.grid, (std::vector<std::int64_t>{8, 5, 5}));
  EXPECT_EQ(plan(settings({}), "out").arms.size(), 1u);
}

TEST(Compare, RefusesAWrongPlan) {
  const auto refused = [](std::vector<std::string> vary, std::string_view why) {
    SG_EXPECT_ERROR(usage, why, plan(settings(std::move(vary)), "out"));
  };
  refused({"estimator"}, "a setting and its values are needed");
  refused({"estimator=ste,"}, "an empty value");
  refused({"colour=blue"}, "--vary colour: there is no such setting");
  refused({"seed=1,2"}, "every arm has the same seeds");
  refused({"estimator=ste,magic"}, "unknown estimator 'magic'");
  refused({"lr=fast"}, "--lr 'fast': a number is needed");
  refused({"estimator=ste,ste"}, "two arms have the name ste");
  refused({"estimator=ste", "estimator=rotation"}, "estimator is varied twice");
  refused({"codebook=ema+decay=0.8"}, "--vary decay: there is no such setting");
}

TEST(Compare, ItsSettingsAreReadBack) {
  const TempFolder folder;
  ComparisonSettings s = settings({"estimator=ste,rotation", "grid=8x5,5x5"}, 7);
  s.pictures = true;
  const ComparisonSettings back = read_comparison(folder.write("compare.toml", to_toml(s)));
  EXPECT_EQ(back.vary, s.vary);
  EXPECT_EQ(back.seeds, 7);
  EXPECT_TRUE(back.pictures);
  for (const ConfigField& field : config_fields()) EXPECT_EQ(text_of(back.base, field), text_of(s.base, field));
  SG_EXPECT_ERROR(usage, "[compare] has vary, seeds", read_comparison(folder.write("c.toml", "[compare]\narms = 3\n")));
  SG_EXPECT_ERROR(usage, "vary must be a list",
                  read_comparison(folder.write("c.toml", "[compare]\nvary = \"lr=1\"\n")));
}

TEST(Compare, IntervalIsStudents) {
  // mean 3, s = sqrt(2.5), t(0.975, 4) = 2.7764
  const Interval five = interval_of(std::vector<double>{1, 2, 3, 4, 5});
  EXPECT_NEAR(five.mean, 3, 1e-12);
  EXPECT_NEAR(five.half_width, 2.7764 * std::sqrt(2.5 / 5), 1e-4);
  std::vector<double> many(41);
  for (std::size_t i = 0; i < many.size(); ++i) many[i] = i % 2 == 0 ? 1 : -1;
  EXPECT_NEAR(interval_of(many).half_width * std::sqrt(41) / std::sqrt(40.9756 / 40), 2.0211, 1e-3);  // 40 degrees
  EXPECT_EQ(to_string(five), "3.0 ± 2.0");
  EXPECT_EQ(to_string(interval_of(std::vector<double>{0.012345})), "0.01235");
  EXPECT_EQ(to_string(interval_of({})), "-");
  EXPECT_EQ(to_string(interval_of(std::vector<double>{0.01230, 0.01232, 0.01234})), "0.012320 ± 0.000050");
}

// Same seed: same initial weights and same batches, whatever is varied.
TEST(Compare, ArmsOfASeedStartAlike) {
  const Comparison c = plan(settings({"estimator=ste,rotation", "codebook=loss,ema"}), "out");
  std::map<std::int64_t, std::map<std::string, Tensor>> first;
  for (const tools::Run& run : c.runs) {
    const VqVae model(model_config(run.config, {8, 8, 1}));
    for (const Variable* v : model.variables()) {
      if (v->name().ends_with("count")) continue;  // of the rules that have one
      const auto [known, added] = first[run.seed].emplace(v->name(), v->value());
      EXPECT_TRUE(added || same_bits(known->second, v->value())) << v->name();
    }
  }
  EXPECT_FALSE(same_bits(first[1].at("encoder.down1.weight"), first[2].at("encoder.down1.weight")));
}

TEST(Compare, RunsGoesOnAndReports) {
  const TempFolder folder;
  const std::string out = (folder / "c").string();
  const std::string flags =
      "compare" + kSmall + "--steps 5 --seeds 2 --estimators ste,rotation --vary codebook=loss --out " + out;
  const Outcome all = stopgrad(flags);
  ASSERT_EQ(all.code, 0) << all.text;
  for (const char* part : {"4 runs: 2 arms, 2 seeds", "[1/4] ste  loss  seed 1: 5 steps",
                           "[4/4] rotation  loss  seed 2", "| estimator ", "| step, ms"})
    SG_EXPECT_CONTAINS(all.text, part);
  for (const char* file : {"compare.toml", "results.json", "table.md", "curves.png", "ste_loss/seed-1/config.toml",
                           "rotation_loss/seed-2/checkpoint.safetensors"})
    EXPECT_TRUE(fs::exists(folder / "c" / file)) << file;
  EXPECT_FALSE(fs::exists(folder / "c/ste_loss/seed-1/curves.png")) << "pictures only where they are asked for";

  // The first step sees the same batch through the same weights: what is computed forward is equal.
  const auto run_of = [&](const char* arm, int seed) {
    return read_metrics(folder / "c" / arm / fmt::format("seed-{}", seed) / "metrics.jsonl");
  };
  for (const int seed : {1, 2})
    for (const char* name : {"reconstruction", "codebook", "usage", "norm_ratio"})
      EXPECT_EQ(metric(run_of("ste_loss", seed)[0], name), metric(run_of("rotation_loss", seed)[0], name)) << name;
  EXPECT_NE(metric(run_of("ste_loss", 1)[0], "reconstruction"), metric(run_of("ste_loss", 2)[0], "reconstruction"));
  EXPECT_NE(metric(run_of("ste_loss", 1)[4], "grad_norm"), metric(run_of("rotation_loss", 1)[4], "grad_norm"));

  // The table is of the runs' own results.
  const auto json = nlohmann::json::parse(slurp(folder / "c/results.json"));
  ASSERT_EQ(json["arms"].size(), 2u);
  for (const auto& arm : json["arms"]) {
    ASSERT_EQ(arm["runs"].size(), 2u);
    double mean = 0;
    for (const auto& run : arm["runs"]) {
      const auto own = nlohmann::json::parse(slurp(folder / "c" / arm["name"].get<std::string>() /
                                                   fmt::format("seed-{}", run["seed"].get<int>()) / "result.json"));
      EXPECT_EQ(own["mse"], run["mse"]);
      mean += own["mse"].get<double>() / 2;
    }
    EXPECT_NEAR(arm["summary"]["mse"]["mean"].get<double>(), mean, 1e-12);
    EXPECT_EQ(arm["summary"]["mse"]["n"], 2);
  }

  // `evaluate` finds the same error on the test set.
  const Outcome evaluated = stopgrad("evaluate " + out + "/ste_loss/seed-1 --json");
  ASSERT_EQ(evaluated.code, 0) << evaluated.text;
  EXPECT_NEAR(nlohmann::json::parse(evaluated.text)["mse"].get<double>(),
              json["arms"][0]["runs"][0]["mse"].get<double>(), 1e-9);

  // One run lost: it alone is trained again, to the same numbers.
  const std::string before = slurp(folder / "c/rotation_loss/seed-1/checkpoint.safetensors");
  fs::remove_all(folder / "c/rotation_loss/seed-1");
  const Outcome list = stopgrad("compare --list --config " + out + "/compare.toml");
  SG_EXPECT_CONTAINS(list.text, "to do        rotation  loss  seed 1");
  SG_EXPECT_CONTAINS(list.text, "done         ste  loss  seed 1");
  EXPECT_FALSE(fs::exists(folder / "c/rotation_loss/seed-1"));
  const Outcome again = stopgrad("compare --config " + out + "/compare.toml --jobs 2");
  ASSERT_EQ(again.code, 0) << again.text;
  SG_EXPECT_CONTAINS(again.text, "ste  loss  seed 1: done before");
  SG_EXPECT_CONTAINS(again.text, "rotation  loss  seed 1: 5 steps");
  SG_EXPECT_CONTAINS(again.text, "Step times are left out");
  EXPECT_TRUE(slurp(folder / "c/rotation_loss/seed-1/checkpoint.safetensors") == before);

  // An interrupted run goes on from its checkpoint; more steps are more of the same runs.
  const Outcome longer = stopgrad("compare --config " + out + "/compare.toml --steps 8");
  ASSERT_EQ(longer.code, 0) << longer.text;
  SG_EXPECT_CONTAINS(longer.text, "seed 2: 8 steps");
  EXPECT_EQ(run_of("ste_loss", 1).size(), 8u);
  const Outcome whole = stopgrad("compare" + kSmall +
                                 "--steps 8 --seeds 2 --estimators ste,rotation --codebooks loss --out " + out + "2");
  ASSERT_EQ(whole.code, 0) << whole.text;
  EXPECT_TRUE(slurp(folder / "c2/rotation_loss/seed-1/metrics.jsonl").substr(0, 60) ==
              slurp(folder / "c/rotation_loss/seed-1/metrics.jsonl").substr(0, 60));
  const StateFile a = load_safetensors(folder / "c/ste_loss/seed-1/checkpoint.safetensors"),
                  b = load_safetensors(folder / "c2/ste_loss/seed-1/checkpoint.safetensors");
  for (const NamedTensor& t : a.tensors) {
    ASSERT_NE(b.find(t.name), nullptr);
    EXPECT_TRUE(same_bits(t.value, *b.find(t.name))) << t.name;
  }

  expect_fails("compare --config " + out + "/compare.toml --lr 0.1", 1, "is of a run with --lr 0.0003, not 0.1");
}

// Ctrl-C saves the run that is trained, one or several, and ends the comparison.
TEST(Compare, CtrlCSavesAndStops) {
  for (const char* jobs : {"1", "2"}) {
    const TempFolder folder;
    const std::string out = (folder / "c").string();
    const Outcome stopped =
        shell("timeout --foreground -s INT 2 " SG_STOPGRAD_BINARY " compare" + kSmall +
              "--steps 100000000 --seeds 2 --estimators ste,rotation --jobs " + jobs + " --out " + out);
    SG_EXPECT_CONTAINS(stopped.text, "stopped at step ");
    SG_EXPECT_CONTAINS(stopped.text, "stopped; go on with: stopgrad compare --config ");
    EXPECT_EQ(stopgrad("evaluate " + out + "/ste/seed-1").code, 0);
    const Outcome list = stopgrad("compare --list --config " + out + "/compare.toml");
    SG_EXPECT_CONTAINS(list.text, "interrupted  ste  seed 1");
    SG_EXPECT_CONTAINS(list.text, jobs[0] == '1' ? "to do        rotation  seed 1" : "interrupted  rotation  seed 1");
    SG_EXPECT_CONTAINS(list.text, "to do        ste  seed 2");
  }
}

TEST(Compare, ADivergedArmIsReportedNotFatal) {
  const TempFolder folder;
  const Outcome out = stopgrad("compare" + kSmall + "--steps 60 --optimizer sgd --vary lr=1e-3,1e3 --seeds 1 --out " +
                               (folder / "c").string());
  EXPECT_EQ(out.code, 0) << out.text;
  SG_EXPECT_CONTAINS(out.text, "Not in the table:");
  SG_EXPECT_CONTAINS(out.text, "1e3, seed 1: diverged: the loss is");
  SG_EXPECT_CONTAINS(out.text, "step, ms");
  SG_EXPECT_CONTAINS(slurp(folder / "c/table.md"), "| 1e3  | -");
  const Outcome again = stopgrad("compare --config " + (folder / "c/compare.toml").string());
  SG_EXPECT_CONTAINS(again.text, "1e3  seed 1: diverged before");
  const Outcome untrained =
      stopgrad("compare" + kSmall + "--steps 2 --seeds 1 --vary codebook=loss+beta=0+revive=0,ema --out " +
               (folder / "d").string());
  EXPECT_EQ(untrained.code, 0) << untrained.text;
  SG_EXPECT_CONTAINS(untrained.text, "failed: this model would not be trained as a whole");
}

TEST(Compare, WrongUsageIsOneMessage) {
  const TempFolder folder;
  const std::string out = " --out " + (folder / "c").string();
  expect_fails("compare" + kSmall + "--estimators ste,magic" + out, 2, "unknown estimator 'magic'");
  expect_fails("compare" + kSmall + "--seeds 0" + out, 2, "--seeds");
  expect_fails("compare" + kSmall + "--jobs 0" + out, 2, "--jobs");
  expect_fails("compare" + kSmall + "--vary lr" + out, 2, "a setting and its values are needed");
  expect_fails("compare" + kSmall + "--vary batch=8,50" + out, 2, "batch is 50");
  expect_fails("compare --config " + (folder / "nothing.toml").string() + out, 1, "cannot open");
  EXPECT_FALSE(fs::exists(folder / "c")) << "nothing may be written";
}

}  // namespace
}  // namespace sg::test
