// Tuned convolutions: right with every algorithm, chosen once, kept in a file; a broken, foreign or unwritable file is
// no failure. The settings of the cpu backend by name.
#include "backends/cpu/tune.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "backends/backends.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/row_jit.h"
#include "core/program.h"
#include "ops/conv.h"
#include "tests/conformance/cases.h"
#include "tests/support/expect.h"
#include "tests/tools/temp_folder.h"

namespace sg::test {
namespace {

class Tune : public testing::Test {
 protected:
  void SetUp() override { use_folder(folder_.path()); }
  void TearDown() override {
    set_cpu_options({});
    cpu::forget_tuning();
    had_ ? setenv("XDG_CACHE_HOME", before_.c_str(), 1) : unsetenv("XDG_CACHE_HOME");
  }
  void use_folder(const std::filesystem::path& path) {
    setenv("XDG_CACHE_HOME", path.c_str(), 1);
    cpu::forget_tuning();
  }
  // The three convolutions of one layer.
  std::vector<Tensor> run() {
    Rng rng(1);
    const Tensor x = normal_reals({4, 8, 8, 32})(rng), w = normal_reals({3, 3, 32, 32}, 0.1)(rng),
                 y = normal_reals({4, 8, 8, 32})(rng);
    const ConvOptions options = ConvOptions::square(1, 1);
    Tape tape;
    const Value xv = tape.input("x", x.type()), wv = tape.input("w", w.type()), yv = tape.input("y", y.type());
    const std::vector<Value> fetches{conv2d(xv, wv, options), conv2d_transpose(yv, wv, options, {8, 8}),
                                     conv2d_weight_grad(xv, yv, {3, 3}, options)};
    Program program = compile(tape, fetches, cpu_backend());
    program.feed(xv, x), program.feed(wv, w), program.feed(yv, y);
    program.run();
    std::vector<Tensor> values;
    for (const Value& v : fetches) values.push_back(program.fetch(v));
    return values;
  }
  static void expect_close(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
    for (std::size_t k = 0; k < a.size(); ++k)
      for (std::int64_t i = 0; i < a[k].elements(); ++i) ASSERT_NEAR(a[k].at(i), b[k].at(i), 2e-4) << k << " at " << i;
  }
  std::filesystem::path file() const { return tuning_file(); }

  TempFolder folder_;
  bool had_ = std::getenv("XDG_CACHE_HOME") != nullptr;
  std::string before_ = had_ ? std::getenv("XDG_CACHE_HOME") : "";
};

TEST_F(Tune, OffAndCachedWriteNothing) {
  const std::vector<Tensor> want = run();
  EXPECT_EQ(cpu::tuning_note(), "");
  set_cpu_options({.tune = "cached"});
  const std::vector<Tensor> got = run();
  for (std::size_t k = 0; k < want.size(); ++k) EXPECT_TRUE(same_bits(got[k], want[k]));
  EXPECT_FALSE(std::filesystem::exists(file()));
}

TEST_F(Tune, TriesOnceAndKeepsTheResults) {
  const std::vector<Tensor> want = run();
  set_cpu_options({.tune = "on"});
  const std::vector<Tensor> tuned = run();
  expect_close(tuned, want);
  const auto kept = nlohmann::json::parse(slurp(file()));
  ASSERT_EQ(kept.at("machines").size(), 1u);
  EXPECT_EQ(kept.at("machines").begin()->size(), 3u);
  SG_EXPECT_CONTAINS(kept.at("machines").begin().key(), isa_name());
  SG_EXPECT_CONTAINS(cpu_backend().describe(), "3 tuned convolutions");
  // Another process, as it were: the same algorithms, so the same bits.
  const std::string written = slurp(file());
  cpu::forget_tuning();
  set_cpu_options({.tune = "cached"});
  const std::vector<Tensor> again = run();
  for (std::size_t k = 0; k < tuned.size(); ++k) EXPECT_TRUE(same_bits(again[k], tuned[k])) << k;
  EXPECT_EQ(slurp(file()), written);
}

TEST_F(Tune, EachAlgorithmOfTheFileIsRight) {
  const std::vector<Tensor> want = run();
  set_cpu_options({.tune = "on"});
  run();
  const auto kept = nlohmann::json::parse(slurp(file()));
  set_cpu_options({.tune = "cached"});
  for (const char* name : {"direct", "automatic", "winograd", "columns", "windows", "tiles", "formula", "nonsense"}) {
    auto changed = kept;
    for (auto& shapes : changed.at("machines"))
      for (auto& [shape, algorithm] : shapes.items()) algorithm = name;
    folder_.write("stopgrad/convolutions.json", changed.dump());
    cpu::forget_tuning();
    SCOPED_TRACE(name);
    expect_close(run(), want);
  }
}

TEST_F(Tune, BrokenFileIsIgnoredAndReplaced) {
  for (const char* text : {"", "{", "[1,2]", R"({"format":"of tomorrow","machines":{}})",
                           R"({"format":"stopgrad convolutions 1","machines":{"m":7}})"}) {
    folder_.write("stopgrad/convolutions.json", text);
    cpu::forget_tuning();
    set_cpu_options({.tune = "cached"});
    run();
    SG_EXPECT_CONTAINS(cpu::tuning_note(), "was ignored");
    set_cpu_options({.tune = "on"});
    run();
    EXPECT_EQ(nlohmann::json::parse(slurp(file())).at("machines").begin()->size(), 3u) << text;
  }
}

TEST_F(Tune, UnwritableFolderIsNoFailure) {
  folder_.write("plain", "a file where a folder must be made");
  use_folder(folder_ / "plain");
  set_cpu_options({.tune = "on"});
  run();
  SG_EXPECT_CONTAINS(cpu::tuning_note(), "cannot be written");
}

TEST_F(Tune, OptionsByName) {
  SG_EXPECT_ERROR(usage, isa_names().back(), set_cpu_options({.isa = "mmx"}));
  SG_EXPECT_ERROR(usage, "auto, on, off", set_cpu_options({.winograd = "sometimes"}));
  SG_EXPECT_ERROR(usage, "off, cached, on", set_cpu_options({.tune = "maybe"}));
  set_cpu_options({.isa = "generic", .winograd = "off"});
  EXPECT_EQ(isa_name(), "generic");
  EXPECT_FALSE(cpu::code_generation());
  SG_EXPECT_CONTAINS(cpu_backend().describe(), "winograd off");
  set_cpu_options({});
  EXPECT_EQ(isa_name(), isa_names().front());
  EXPECT_TRUE(cpu::code_generation());
}

}  // namespace
}  // namespace sg::test
