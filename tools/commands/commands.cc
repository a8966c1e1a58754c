#include "tools/commands/commands.h"

#include <algorithm>
#include <cstdio>
#include <new>
#include <utility>

#include "core/error.h"

namespace sg::tools {
namespace {

// The parser writes a help text as it is: breaks it where a line would be too long beside the flags.
std::string wrapped(const std::string& text) {
  constexpr std::size_t kWidth = 90;
  std::string out;
  std::size_t length = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t space = text.find(' ', at);
    const std::string_view word = std::string_view(text).substr(at, space == std::string::npos ? space : space - at);
    if (length > 0) {
      const bool fits = length + 1 + word.size() <= kWidth;
      out += fits ? ' ' : '\n';
      length = fits ? length + 1 : 0;
    }
    out += word, length += word.size();
    at += word.size() + 1;
  }
  return out;
}

}  // namespace

ConfigFlags::ConfigFlags(CLI::App& command, std::vector<std::string_view> groups) {
  for (const ConfigField& field : config_fields()) {
    const std::string_view group = field.group.substr(0, field.group.find(" ("));
    if (field.key == "model" || std::find(groups.begin(), groups.end(), group) == groups.end()) continue;
    const std::string help = wrapped(field.full_help());
    CLI::Option* option = std::visit(
        [&](auto member) -> CLI::Option* {
          auto& value = values_.*member;
          using T = std::remove_reference_t<decltype(value)>;
          if constexpr (std::is_same_v<T, bool>)
            return command.add_flag(flag_of(field), value, help);
          else if constexpr (std::is_same_v<T, std::vector<std::int64_t>>)
            return command.add_option_function<std::string>(
                flag_of(field), [this, &field](const std::string& text) { set_from_text(values_, field, text); }, help);
          else
            return command.add_option(flag_of(field), value, help)->capture_default_str();
        },
        field.member);
    option->group(std::string(field.group));
    flags_.push_back({&field, option});
  }
}

bool ConfigFlags::given(std::string_view key) const {
  return std::any_of(flags_.begin(), flags_.end(),
                     [&](const Flag& f) { return f.field->key == key && f.option->count() > 0; });
}

std::vector<std::string_view> ConfigFlags::given_keys() const {
  std::vector<std::string_view> keys;
  for (const Flag& f : flags_)
    if (f.option->count() > 0) keys.push_back(f.field->key);
  return keys;
}

TrainConfig ConfigFlags::over(TrainConfig base) const {
  if (given("preset")) apply_preset(base, values_.preset);
  for (const Flag& f : flags_)
    if (f.option->count() > 0) std::visit([&](auto member) { base.*member = values_.*member; }, f.field->member);
  if (given("steps") && !given("epochs")) base.epochs = 0;
  return base;
}

Described describe(const std::string& what, const ConfigFlags& flags) {
  Described d{{}, {28, 28, 1}};
  std::error_code ec;
  if (std::filesystem::is_directory(what, ec)) {
    const RunFolder folder = RunFolder::open(what);
    d.config = read_config(folder.config(), {});
    d.images = read_checkpoint(folder.checkpoint()).images;
  } else {
    d.config.model = what;
    if (flags.given("preset")) {
      const VqVaeConfig sizes = vqvae_preset(flags.values().preset);
      d.images = {sizes.height, sizes.width, sizes.channels};
    }
  }
  d.config = flags.over(d.config);
  validate(d.config);
  return d;
}

int run_program(int argc, const char* const* argv) {
  CLI::App app("stopgrad: train and use vector-quantized autoencoders.", "stopgrad");
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
  add_tape(app);
  add_audit(app);
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
    fmt::print(stderr, "stopgrad: {}\nRun with --help for what can be given.\n", e.what());
    return 2;
  } catch (const Error& e) {
    std::fflush(stdout);
    fmt::print(stderr, "stopgrad: {}\n", e.message());
    return e.kind() == ErrorKind::usage ? 2 : 1;
  } catch (const std::bad_alloc&) {
    std::fflush(stdout);
    fmt::print(stderr, "stopgrad: out of memory: try a smaller --batch, --codes or --limit\n");
    return 1;
  } catch (const std::exception& e) {
    std::fflush(stdout);
    fmt::print(stderr, "stopgrad: {}\n", e.what());
    return 1;
  }
}

}  // namespace sg::tools
