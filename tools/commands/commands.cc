#include "tools/commands/commands.h"

#include <algorithm>

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

}  // namespace sg::tools
