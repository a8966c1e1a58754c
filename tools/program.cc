#include "tools/program.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <new>
#include <utility>

#include "core/error.h"
#include "tools/commands/commands.h"

namespace sg::tools {
namespace {

std::string& running_name() {
  static std::string name = "stopgrad";
  return name;
}

}  // namespace

const std::string& program_name() { return running_name(); }

int run_program(int argc, const char* const* argv) {
  if (argc > 0) running_name() = std::filesystem::path(argv[0]).filename().string();
  CLI::App app("stopgrad: train and use vector-quantized autoencoders.", program_name());
  app.set_version_flag("--version", std::string("stopgrad ") + SG_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 done, 1 failed, 2 wrong command line or setting.\n"
      "Examples:\n"
      "  stopgrad train vqvae --data fashion-mnist --out runs/first\n"
      "  stopgrad evaluate runs/first\n"
      "  stopgrad COMMAND --help");
  add_train(app);
  add_evaluate(app);
  add_encode(app);
  add_decode(app);
  add_tokenize(app);
  add_sample(app);
  add_generate(app);
  add_tape(app);
  add_audit(app);
  add_compare(app);
  add_info(app);
  add_bench(app);
  add_probe(app);
  add_toy(app);
  try {
    if (argc > 1 && argv[1][0] != '-') {
      std::vector<std::string> names;
      for (const CLI::App* command : std::as_const(app).get_subcommands([](const CLI::App*) { return true; }))
        names.push_back(command->get_name());
      if (std::find(names.begin(), names.end(), argv[1]) == names.end())
        fail(ErrorKind::usage, "'{}' is no command; choose one of: {}", argv[1], CLI::detail::join(names, ", "));
    }
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(e);
    fmt::print(stderr, "{}: {}\nRun with --help for what can be given.\n", program_name(), e.what());
    return 2;
  } catch (const Error& e) {
    std::fflush(stdout);
    fmt::print(stderr, "{}: {}\n", program_name(), e.message());
    return e.kind() == ErrorKind::usage ? 2 : 1;
  } catch (const std::bad_alloc&) {
    std::fflush(stdout);
    fmt::print(stderr, "{}: out of memory: try a smaller --batch, --codes or --limit\n", program_name());
    return 1;
  } catch (const std::exception& e) {
    std::fflush(stdout);
    fmt::print(stderr, "{}: {}\n", program_name(), e.what());
    return 1;
  }
}

}  // namespace sg::tools
