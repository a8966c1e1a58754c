// train --dtype bf16 as a user runs it.
#include "backends/cpu/bf16.h"
#include "tests/support/expect.h"
#include "tests/tools/cli.h"
#include "tests/tools/temp_folder.h"

namespace sg::test {
namespace {

TEST(CliBf16, NeedsTheProcessorOrEmulation) {
  if (cpu::has_bf16()) GTEST_SKIP() << "this processor has avx512_bf16";
  const TempFolder folder;
  expect_fails("train vqvae" + kSmall + "--dtype bf16 --out " + (folder / "run").string(), 1, "lacks avx512_bf16");
  EXPECT_FALSE(std::filesystem::exists(folder / "run" / "checkpoint.safetensors"));
}

TEST(CliBf16, ARunRecordsItsTypeAndIsEvaluatedInIt) {
  const TempFolder folder;
  const std::string run = (folder / "run").string();
  const Outcome trained = stopgrad("train vqvae" + kSmall + "--dtype bf16 --emulate-bf16 --steps 3 --out " + run);
  EXPECT_EQ(trained.code, 0) << trained.text;
  SG_EXPECT_CONTAINS(slurp(folder / "run" / "config.toml"), "dtype = \"bf16\"");
  const Outcome evaluated = stopgrad("evaluate " + run);
  EXPECT_EQ(evaluated.code, 0) << evaluated.text;
}

}  // namespace
}  // namespace sg::test
