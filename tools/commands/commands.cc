#include "tools/commands/commands.h"

#include <fmt/ranges.h>

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

// The model is known when the command line was parsed, which is before the help text is made.
class ModelFormatter : public CLI::Formatter {
 public:
  ModelFormatter(const ConfigFlags& flags, std::string model_option)
      : flags_(flags), model_option_(std::move(model_option)) {}
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override {
    const std::vector<std::string>& given = app->get_option(model_option_)->results();
    const std::vector<std::string> known = task_names();
    if (!given.empty() && std::find(known.begin(), known.end(), given.front()) != known.end())
      flags_.show_only(given.front());
    return CLI::Formatter::make_help(app, std::move(name), mode);
  }

 private:
  const ConfigFlags& flags_;
  std::string model_option_;
};

}  // namespace

ConfigFlags::ConfigFlags(CLI::App& command, std::vector<std::string_view> groups, const std::string& model_option,
                         std::vector<std::string_view> except) {
  if (!model_option.empty()) command.formatter(std::make_shared<ModelFormatter>(*this, model_option));
  for (const ConfigField& field : config_fields()) {
    const std::string_view group = field.group.substr(0, field.group.find(" ("));
    if (field.key == "model" || std::find(groups.begin(), groups.end(), group) == groups.end()) continue;
    if (std::find(except.begin(), except.end(), field.key) != except.end()) continue;
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

void ConfigFlags::show_only(std::string_view model) const {
  const TrainConfig usual = default_config(model);
  for (const Flag& f : flags_)
    if (!has_field(model, *f.field)) {
      f.option->group("");
    } else if (!f.option->get_default_str().empty()) {
      std::string text = text_of(usual, *f.field);
      std::erase(text, '"');
      f.option->default_str(text);
    }
}

TrainConfig ConfigFlags::over(TrainConfig base) const {
  for (const Flag& f : flags_)
    if (f.option->count() > 0) require_field(base.model, *f.field);
  if (given("preset")) apply_preset(base, values_.preset);
  for (const Flag& f : flags_)
    if (f.option->count() > 0) std::visit([&](auto member) { base.*member = values_.*member; }, f.field->member);
  if (given("steps") && !given("epochs")) base.epochs = 0;
  return base;
}

std::unique_ptr<Task> describe(const std::string& what, const ConfigFlags& flags) {
  TaskSetup setup;
  std::error_code ec;
  if (std::filesystem::is_directory(what, ec)) {
    const RunFolder folder = RunFolder::open(what);
    setup.config = read_config(folder.config(), {});
    setup.data_shape = read_checkpoint(folder.checkpoint()).data_shape;
  } else {
    setup.config = default_config(what);
  }
  setup.config = flags.over(setup.config);
  validate(setup.config);
  return make_task(setup);
}

std::string model_list() { return fmt::format("{}", fmt::join(task_names(), ", ")); }

}  // namespace sg::tools
