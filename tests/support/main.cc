// Entry of stopgrad_tests: gtest's flags and those of Flags. A selection that matches nothing fails, so does an unknown
// backend; backends that the build lacks are counted as skipped, and --require-backend makes an absent one a failure.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <sstream>

#include "backends/backends.h"
#include "tests/conformance/conformance.h"
#include "tests/support/flags.h"

#ifdef SG_CUDA
#include "backends/cuda/cuda_backend.h"
#include "tests/cuda_emulator/emulated_driver.h"
#endif

namespace sg::test {

Flags& flags() {
  static Flags instance;
  return instance;
}

namespace {

constexpr const char* kUsage =
    "stopgrad_tests [gtest flags] [--backend=NAME,...] [--config=NAME,...] [--seed=N] [--op=NAME] [--case=NAME]\n"
    "               [--coverage] [--require-backend=NAME] [--cuda=emulated|checked|device]\n"
    "--cuda: what the backend cuda and its tests run on; without it, on the machine's own driver where it has one.\n";
constexpr int kSkipped = 77;  // of ctest's SKIP_RETURN_CODE

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

std::string join(const std::vector<std::string>& parts) {
  std::string text;
  for (const auto& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorKind::usage, message); }

// Every fault and every refused call is a failure of the test that made it, whatever else the test looks at.
#ifdef SG_CUDA
class FailOnReport : public testing::EmptyTestEventListener {
  void OnTestEnd(const testing::TestInfo&) override {
    if (const std::string report = cuda::emulated_report(); !report.empty()) ADD_FAILURE() << report;
    cuda::clear_emulated_failure();
  }
};
#endif

// Before any backend is asked for.
void choose_cuda(const std::string& value) {
  if (value != "emulated" && value != "checked" && value != "device")
    refuse("--cuda=" + value + ": it is emulated, checked or device");
  flags().cuda = value;
#ifdef SG_CUDA
  if (value == "device") return;
  const bool checked = value == "checked";
  cuda::set_cuda_tables(
      cuda::emulated_tables({.seed = flags().seed, .check_races = checked, .check_initialised = checked}));
  testing::UnitTest::GetInstance()->listeners().Append(new FailOnReport);
#endif
}

std::string why_absent(const std::string& name) {
  try {
    backend(name);
  } catch (const Error& e) {
    return e.message();
  }
  return "";
}

// Why nothing that was asked for can run; nothing where it can.
std::string missing_cuda() {
  if (flags().cuda.empty()) return "";
#ifdef SG_CUDA
  return cuda::no_cuda();
#else
  return "this build was made without CUDA";
#endif
}

class SkipAll : public testing::Environment {
  void SetUp() override { GTEST_SKIP() << missing_cuda(); }
};

void parse(int argc, char** argv) {
  Flags& f = flags();
  const auto of = [&](std::string_view name, const auto& take) {
    for (int i = 1; i < argc; ++i)
      if (const std::string_view argument = argv[i]; argument.starts_with(name))
        take(std::string(argument.substr(name.size())));
  };
  of("--seed=", [&](const std::string& value) { f.seed = static_cast<std::uint32_t>(std::stoul(value)); });
  of("--cuda=", choose_cuda);
  if (!missing_cuda().empty()) return;
  for (const auto name : backend_names()) f.backends.emplace_back(name);
  for (const auto& config : configs()) f.configs.push_back(config.name);
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : argument.substr(equals + 1);
    if (name == "--backend") {
      f.backends = split(value);
      for (const auto& b : f.backends) backend(b);
    } else if (name == "--require-backend") {
      backend(value);
    } else if (name == "--config") {
      f.configs = split(value);
      for (const auto& wanted : f.configs) {
        const auto all = configs();
        if (std::none_of(all.begin(), all.end(), [&](const Config& c) { return c.name == wanted; })) {
          std::vector<std::string> names;
          for (const auto& c : all) names.push_back(c.name);
          refuse("unknown config '" + wanted + "'; there are: " + join(names));
        }
      }
    } else if (name == "--seed" || name == "--cuda") {
      continue;  // above
    } else if (name == "--op") {
      f.op = value;
    } else if (name == "--case") {
      f.case_name = value;
    } else if (name == "--coverage") {
      f.coverage = true;
    } else {
      refuse("unknown flag " + argument + "\n" + kUsage);
    }
  }
  if (f.backends.empty() || f.configs.empty()) refuse("no backend or no config was selected");
  if (!f.op.empty() || !f.case_name.empty()) {
    if (selected_cases().empty()) refuse("no case matches --op=" + f.op + " --case=" + f.case_name);
    if (GTEST_FLAG_GET(filter) == "*") GTEST_FLAG_SET(filter, "Conformance.*:Gradcheck.*");
  }
}

int run(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  parse(argc, argv);
  if (const std::string why = missing_cuda(); !why.empty()) {
    register_case_tests();
    testing::AddGlobalTestEnvironment(new SkipAll);
    if (RUN_ALL_TESTS() != 0) return 1;
    std::cout << "SKIPPED " << testing::UnitTest::GetInstance()->test_to_run_count()
              << " tests of --cuda=" << flags().cuda << ": " << why << "\n";
    return kSkipped;
  }
  if (flags().coverage) return print_coverage() ? 0 : 1;
  register_case_tests();
  const int status = RUN_ALL_TESTS();
  if (GTEST_FLAG_GET(list_tests)) return status;
  const auto& unit = *testing::UnitTest::GetInstance();
  for (const auto& known : kKnownBackends) {
    const auto have = backend_names();
    if (std::find(have.begin(), have.end(), known) == have.end())
      std::cout << "SKIPPED backend " << known << " (" << selected_cases().size() << " cases): " << why_absent(known)
                << "\n";
  }
  if (unit.test_to_run_count() == 0) {
    std::cerr << "FAILED: no test matches --gtest_filter=" << GTEST_FLAG_GET(filter) << "\n";
    return 1;
  }
  std::cout << unit.successful_test_count() << " passed, " << unit.failed_test_count() << " failed, "
            << unit.skipped_test_count() << " skipped\n";
  return status;
}

}  // namespace
}  // namespace sg::test

int main(int argc, char** argv) {
  try {
    return sg::test::run(argc, argv);
  } catch (const std::exception& e) {
    std::cerr << "stopgrad_tests: " << e.what() << "\n";
    return 2;
  }
}
