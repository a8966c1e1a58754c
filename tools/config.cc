#include "tools/config.h"

#include <fmt/ranges.h>
#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/backend.h"
#include "core/error.h"
#include "core/recompute.h"
#include "models/optim.h"
#include "models/quantizers/quantizer.h"
#include "models/transformer_vq.h"
#include "ops/estimator_table.h"
#include "tools/files.h"
#include "tools/task.h"

namespace sg::tools {
namespace {

template <class... F>
struct Overload : F... {
  using F::operator()...;
};
template <class... F>
Overload(F...) -> Overload<F...>;

std::string toml_string(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      out += '\\', out += c;
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    else
      out += c;
  }
  return out + '"';
}

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  while (!text.empty()) {
    const std::size_t space = text.find(' ');
    words.push_back(text.substr(0, space));
    text = space == std::string_view::npos ? std::string_view{} : text.substr(space + 1);
  }
  return words;
}

void check_field(const TrainConfig& config, const ConfigField& field) {
  const auto out_of_range = [&](const auto& value) {
    fail(ErrorKind::usage, "{} is {}; it must be from {} to {}", flag_of(field), value, field.least, field.most);
  };
  std::visit(Overload{[&](std::string TrainConfig::*m) {
                        const std::string& value = config.*m;
                        if (field.check != nullptr) {
                          try {
                            field.check(value);
                          } catch (const Error& e) {
                            fail(ErrorKind::usage, "{}: {}", flag_of(field), e.message());
                          }
                        } else if (field.choices != nullptr) {
                          const std::vector<std::string> known = field.choices();
                          if (std::find(known.begin(), known.end(), value) == known.end())
                            fail(ErrorKind::usage, "{} '{}' is unknown; choose one of: {}", flag_of(field), value,
                                 fmt::join(known, ", "));
                        }
                      },
                      [&](std::int64_t TrainConfig::*m) {
                        const auto value = static_cast<double>(config.*m);
                        if (value < field.least || value > field.most) out_of_range(config.*m);
                      },
                      [&](double TrainConfig::*m) {
                        if (!(config.*m >= field.least && config.*m <= field.most)) out_of_range(config.*m);
                      },
                      [&](std::vector<std::int64_t> TrainConfig::*m) {
                        for (const std::int64_t value : config.*m)
                          if (!(static_cast<double>(value) >= field.least && static_cast<double>(value) <= field.most))
                            out_of_range(value);
                      },
                      [](bool TrainConfig::*) {}},
             field.member);
}

void set_from_toml(TrainConfig& config, const ConfigField& field, const toml::node& node, const std::string& file) {
  const auto wrong_type = [&](std::string_view wanted) {
    fail(ErrorKind::usage, "{}:{}: '{}' must be {}", file, node.source().begin.line, field.key, wanted);
  };
  std::visit(Overload{[&](std::string TrainConfig::*m) {
                        if (const auto v = node.value_exact<std::string>())
                          config.*m = *v;
                        else
                          wrong_type("text in quotes");
                      },
                      [&](std::int64_t TrainConfig::*m) {
                        if (const auto v = node.value_exact<std::int64_t>())
                          config.*m = *v;
                        else
                          wrong_type("a whole number");
                      },
                      [&](double TrainConfig::*m) {
                        if (const auto v = node.value_exact<double>())
                          config.*m = *v;
                        else if (const auto i = node.value_exact<std::int64_t>())
                          config.*m = static_cast<double>(*i);
                        else
                          wrong_type("a number");
                      },
                      [&](bool TrainConfig::*m) {
                        if (const auto v = node.value_exact<bool>())
                          config.*m = *v;
                        else
                          wrong_type("true or false");
                      },
                      [&](std::vector<std::int64_t> TrainConfig::*m) {
                        const toml::array* array = node.as_array();
                        if (array == nullptr) wrong_type("a list of whole numbers, as [8, 5, 5]");
                        (config.*m).clear();
                        for (const toml::node& element : *array) {
                          const auto v = element.value_exact<std::int64_t>();
                          if (!v) wrong_type("a list of whole numbers, as [8, 5, 5]");
                          (config.*m).push_back(*v);
                        }
                      }},
             field.member);
}

toml::table parse(const std::filesystem::path& path) {
  const std::vector<std::byte> bytes = read_file(path);
  try {
    return toml::parse(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()), path.string());
  } catch (const toml::parse_error& e) {
    fail(ErrorKind::usage, "{}:{}: not valid TOML: {}", path.string(), e.source().begin.line, e.description());
  }
}

TrainConfig config_of(const toml::table& table, const std::string& file, const TrainConfig& base) {
  TrainConfig config = base;
  const auto set = [&](std::string_view key) {
    const toml::node* node = table.get(key);
    if (node != nullptr) set_from_toml(config, *find_field(key), *node, file);
    return node != nullptr;
  };
  if (set("model") && config.model != base.model) config = default_config(config.model);
  if (set("preset")) apply_preset(config, std::string(config.preset));
  for (const auto& [key, node] : table) {
    const ConfigField* field = find_field(key.str());
    if (field == nullptr)
      fail(ErrorKind::usage, "{}:{}: unknown setting '{}' (`stopgrad train --help` lists them, '-' written as '_')",
           file, key.source().begin.line, key.str());
    if (!has_field(config.model, *field))
      fail(ErrorKind::usage, "{}:{}: {} has no setting '{}', which is of {}", file, key.source().begin.line,
           config.model, key.str(), fmt::join(models_with(*field), ", "));
    set_from_toml(config, *field, node, file);
  }
  return config;
}

// The fields, group by group.
std::string fields_to_toml(const TrainConfig& config) {
  std::string out;
  std::string_view group;
  for (const ConfigField& field : config_fields()) {
    if (!has_field(config.model, field)) continue;
    if (field.group != group) out += fmt::format("\n# {}\n", group = field.group);
    const std::string setting = fmt::format("{} = {}", field.key, text_of(config, field));
    out += fmt::format("{:<32} # {}\n", setting, field.full_help());
  }
  return out;
}

}  // namespace

const ConfigField* find_field(std::string_view key) {
  for (const ConfigField& field : config_fields())
    if (field.key == key) return &field;
  return nullptr;
}

std::string ConfigField::full_help() const {
  return std::string(help) + (choices == nullptr ? "" : fmt::format(": {}", fmt::join(choices(), ", ")));
}

std::string flag_of(const ConfigField& field) {
  if (field.key == "model") return "model";
  std::string flag = "--" + std::string(field.key);
  std::replace(flag.begin() + 2, flag.end(), '_', '-');
  return flag;
}

std::string text_of(const TrainConfig& config, const ConfigField& field) {
  return std::visit(Overload{[&](std::string TrainConfig::*m) { return toml_string(config.*m); },
                             [&](std::int64_t TrainConfig::*m) { return std::to_string(config.*m); },
                             [&](double TrainConfig::*m) {
                               // The shortest text that reads back as the same number; TOML wants a point or an
                               // exponent.
                               std::string text = fmt::format("{}", config.*m);
                               if (text.find_first_of(".en") == std::string::npos) text += ".0";
                               return text;
                             },
                             [&](bool TrainConfig::*m) { return std::string(config.*m ? "true" : "false"); },
                             [&](std::vector<std::int64_t> TrainConfig::*m) {
                               return fmt::format("[{}]", fmt::join(config.*m, ", "));
                             }},
                    field.member);
}

void set_from_text(TrainConfig& config, const ConfigField& field, const std::string& text) {
  const auto parse = [&](std::string_view part, auto& out, std::string_view wanted) {
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), out);
    if (part.empty() || error != std::errc{} || end != part.data() + part.size())
      fail(ErrorKind::usage, "{} '{}': {} is needed", flag_of(field), text, wanted);
  };
  std::visit(Overload{[&](std::string TrainConfig::*m) { config.*m = text; },
                      [&](std::int64_t TrainConfig::*m) { parse(text, config.*m, "a whole number"); },
                      [&](double TrainConfig::*m) { parse(text, config.*m, "a number"); },
                      [&](bool TrainConfig::*m) {
                        if (text != "true" && text != "false")
                          fail(ErrorKind::usage, "{} '{}': true or false is needed", flag_of(field), text);
                        config.*m = text == "true";
                      },
                      [&](std::vector<std::int64_t> TrainConfig::*m) {
                        (config.*m).clear();
                        for (std::string_view rest = text; !rest.empty();) {
                          const std::size_t comma = rest.find_first_of(",x");
                          parse(rest.substr(0, comma), (config.*m).emplace_back(), "a list as 8,5,5");
                          rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
                        }
                      }},
             field.member);
}

bool has_field(std::string_view model, const ConfigField& field) {
  const TaskDef& def = task_def(model);
  if (field.key == "preset") return !def.presets.empty();
  if (field.has.empty()) return true;
  for (const std::string_view word : words_of(field.has)) {
    if (word == def.name) return true;
    for (const std::string_view own : words_of(def.has))
      if (word == own) return true;
  }
  return false;
}

std::vector<std::string> models_with(const ConfigField& field) {
  std::vector<std::string> names = task_names();
  std::erase_if(names, [&](const std::string& name) { return !has_field(name, field); });
  return names;
}

void require_field(std::string_view model, const ConfigField& field) {
  if (!has_field(model, field))
    fail(ErrorKind::usage, "{}: {} has no such setting; {} have it", flag_of(field), model,
         fmt::join(models_with(field), ", "));
}

void apply_preset(TrainConfig& config, std::string_view name) {
  std::vector<std::string_view> known;
  for (const TaskDef::Preset& preset : task_def(config.model).presets) {
    known.push_back(preset.name);
    if (preset.name != name) continue;
    preset.apply(config);
    config.preset = name;
    return;
  }
  fail(ErrorKind::usage, "--preset '{}' is unknown; {} has: {}", name, config.model,
       known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", ")));
}

TrainConfig default_config(std::string_view model) {
  TrainConfig config;
  config.model = model;
  const TaskDef& def = task_def(model);
  if (!def.presets.empty()) apply_preset(config, def.presets.front().name);
  return config;
}

TrainConfig with_model(const TrainConfig& config, std::string_view model) {
  TrainConfig changed = default_config(model);
  const TrainConfig usual = default_config(config.model);
  for (const ConfigField& field : config_fields())
    if (field.key != "model" && has_field(config.model, field) && has_field(model, field) &&
        text_of(config, field) != text_of(usual, field))
      std::visit([&](auto member) { changed.*member = config.*member; }, field.member);
  return changed;
}

void validate(const TrainConfig& config) {
  for (const ConfigField& field : config_fields())
    if (field.key == "model" || has_field(config.model, field)) check_field(config, field);
  if (config.lr <= 0) fail(ErrorKind::usage, "--lr is {}; it must be above 0", config.lr);
  const TaskDef& def = task_def(config.model);
  if (!def.presets.empty()) {
    TrainConfig copy = config;
    apply_preset(copy, config.preset);
  }
  if (def.check) def.check(config);
}

TrainConfig read_config(const std::filesystem::path& path, const TrainConfig& base) {
  return config_of(parse(path), path.string(), base);
}

ComparisonSettings read_comparison(const std::filesystem::path& path) {
  toml::table table = parse(path);
  const std::string file = path.string();
  ComparisonSettings settings;
  if (const toml::node* node = table.get("compare")) {
    const toml::table* own = node->as_table();
    const auto check = [&](bool ok, std::string_view what) {
      if (!ok) fail(ErrorKind::usage, "{}: [compare] {}", file, what);
    };
    check(own != nullptr, "must be a table of vary, seeds and pictures");
    for (const auto& [key, value] : *own) {
      if (key == "vary") {
        check(value.is_array(), "vary must be a list of texts, as \"estimator=ste,rotation\"");
        for (const toml::node& axis : *value.as_array()) {
          check(axis.is_string(), "vary must be a list of texts, as \"estimator=ste,rotation\"");
          settings.vary.push_back(*axis.value<std::string>());
        }
      } else if (key == "seeds") {
        check(value.is_integer(), "seeds must be a whole number");
        settings.seeds = *value.value<std::int64_t>();
      } else {
        check(key == "pictures" && value.is_boolean(), "has vary, seeds, and pictures, which is true or false");
        settings.pictures = *value.value<bool>();
      }
    }
    table.erase("compare");
  }
  settings.base = config_of(table, file, {});
  return settings;
}

std::string to_toml(const TrainConfig& config) {
  return "# Settings of one training run. `stopgrad train --config FILE` runs it again.\n" + fields_to_toml(config);
}

std::string to_toml(const ComparisonSettings& settings) {
  std::string axes;
  for (const std::string& axis : settings.vary) axes += (axes.empty() ? "" : ", ") + toml_string(axis);
  return "# Settings of a comparison. `stopgrad compare --config FILE` runs it again, or goes on with it.\n" +
         fields_to_toml(settings.base) +
         fmt::format(
             "\n[compare]\nvary = [{}]  # each combination of these values, over the settings above\n"
             "seeds = {}  # runs of each, with the seed above, the next, ...\npictures = {}  # of each run\n",
             axes, settings.seeds, settings.pictures);
}

}  // namespace sg::tools
