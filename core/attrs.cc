#include "core/attrs.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"

namespace sg {
namespace {

template <class T>
const T& get(const AttrValue* value, std::string_view key) {
  SG_CHECK(value != nullptr, "attribute '{}' is missing", key);
  const T* typed = std::get_if<T>(value);
  SG_CHECK(typed != nullptr, "attribute '{}' has another type", key);
  return *typed;
}

}  // namespace

const AttrValue* Attrs::find(std::string_view key) const {
  const auto it = std::find_if(items_.begin(), items_.end(), [&](const auto& item) { return item.first == key; });
  return it == items_.end() ? nullptr : &it->second;
}

std::int64_t Attrs::i(std::string_view key) const { return get<std::int64_t>(find(key), key); }
double Attrs::d(std::string_view key) const { return get<double>(find(key), key); }
const std::vector<std::int64_t>& Attrs::ints(std::string_view key) const {
  return get<std::vector<std::int64_t>>(find(key), key);
}
const std::vector<double>& Attrs::reals(std::string_view key) const { return get<std::vector<double>>(find(key), key); }
const std::string& Attrs::str(std::string_view key) const { return get<std::string>(find(key), key); }

void Attrs::set(std::string_view key, AttrValue value) {
  for (auto& item : items_)
    if (item.first == key) {
      item.second = std::move(value);
      return;
    }
  items_.emplace_back(key, std::move(value));
}

std::string to_string(const Attrs& attrs) {
  struct Print {
    std::string operator()(std::int64_t v) const { return fmt::format("{}", v); }
    std::string operator()(double v) const { return fmt::format("{}", v); }
    std::string operator()(const std::vector<std::int64_t>& v) const { return fmt::format("[{}]", fmt::join(v, ",")); }
    std::string operator()(const std::vector<double>& v) const { return fmt::format("[{}]", fmt::join(v, ",")); }
    std::string operator()(const std::string& v) const { return fmt::format("'{}'", v); }
  };
  std::string text;
  for (const auto& [key, value] : attrs)
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", key, std::visit(Print{}, value));
  return text.empty() ? text : "{" + text + "}";
}

}  // namespace sg
