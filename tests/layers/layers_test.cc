// Includes run one way: core <- ops <- models <- tools; backends -> core and the op ids; tests see all, nobody sees
// tests.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>

namespace sg::test {
namespace {

namespace fs = std::filesystem;

const std::map<std::string, std::set<std::string>> kMayInclude{
    {"core", {"core"}},
    {"ops", {"core", "ops"}},
    {"backends", {"core", "backends"}},
    {"models", {"core", "ops", "models"}},
    {"tools", {"core", "ops", "models", "backends", "tools"}},
};

// What is wrong with a line of a file of a layer; empty where nothing is.
std::string wrong_include(const std::string& layer, const std::string& line) {
  static const std::regex include(R"re(^\s*#\s*include\s*"(\w+)/([^"]+)")re");
  std::smatch m;
  if (!std::regex_search(line, m, include)) return {};
  const std::string target = m[1];
  if (!kMayInclude.contains(target) && target != "tests") return {};  // a folder of its own layer
  if (layer == "backends" && target == "ops" && m[2] == "op_ids.h") return {};
  if (kMayInclude.at(layer).contains(target)) return {};
  return layer + " must not include " + target + ": " + line;
}

TEST(Layers, IncludesRunOneWay) {
  int files = 0;
  for (const auto& [layer, allowed] : kMayInclude) {
    const fs::path root = fs::path(SG_SOURCE_DIR) / layer;
    if (!fs::exists(root)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cc" && extension != ".inc") continue;
      ++files;
      std::ifstream in(entry.path());
      int n = 0;
      for (std::string line; ++n, std::getline(in, line);) {
        const std::string wrong = wrong_include(layer, line);
        EXPECT_EQ(wrong, "") << fs::relative(entry.path(), SG_SOURCE_DIR).string() << ":" << n;
      }
    }
  }
  EXPECT_GT(files, 50) << "the sources were not found under " << SG_SOURCE_DIR;
}

TEST(Layers, TheCheckNoticesWrongIncludes) {
  EXPECT_NE(wrong_include("core", "#include \"ops/elementwise.h\""), "");
  EXPECT_NE(wrong_include("ops", "  # include \"models/layers.h\""), "");
  EXPECT_NE(wrong_include("backends", "#include \"ops/elementwise.h\""), "");
  EXPECT_NE(wrong_include("tools", "#include \"tests/support/flags.h\""), "");
  EXPECT_EQ(wrong_include("backends", "#include \"ops/op_ids.h\""), "");
  EXPECT_EQ(wrong_include("models", "#include \"ops/elementwise.h\""), "");
  EXPECT_EQ(wrong_include("core", "#include <vector>"), "");
}

TEST(Layers, NoGlobalRegistrars) {
  // Ops and backends are explicit tables: a linker may drop an object that only registers itself.
  for (const char* folder : {"core", "ops", "backends", "models"}) {
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(SG_SOURCE_DIR) / folder)) {
      if (entry.path().extension() != ".cc") continue;
      std::ifstream in(entry.path());
      const std::string text{std::istreambuf_iterator<char>(in), {}};
      EXPECT_FALSE(std::regex_search(text, std::regex("__attribute__\\(\\(constructor|REGISTER_[A-Z]+\\(")))
          << fs::relative(entry.path(), SG_SOURCE_DIR).string();
    }
  }
}

}  // namespace
}  // namespace sg::test
