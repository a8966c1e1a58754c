// Attrs: the static parameters of an instruction (axes, strides, ...), a few named values, comparable and printable.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace sg {

using AttrValue = std::variant<std::int64_t, double, std::vector<std::int64_t>, std::vector<double>, std::string>;

class Attrs {
 public:
  Attrs() = default;
  // Keys are string literals (they are kept as views): Attrs{{"axes", axes}, {"keep", std::int64_t{1}}}.
  Attrs(std::initializer_list<std::pair<std::string_view, AttrValue>> items) : items_(items) {}

  bool has(std::string_view key) const { return find(key) != nullptr; }
  // Each getter fails as an internal error where the key is missing or of another type.
  std::int64_t i(std::string_view key) const;
  double d(std::string_view key) const;
  const std::vector<std::int64_t>& ints(std::string_view key) const;
  const std::vector<double>& reals(std::string_view key) const;
  const std::string& str(std::string_view key) const;
  void set(std::string_view key, AttrValue value);

  bool empty() const { return items_.empty(); }
  auto begin() const { return items_.begin(); }
  auto end() const { return items_.end(); }
  bool operator==(const Attrs&) const = default;

 private:
  const AttrValue* find(std::string_view key) const;
  std::vector<std::pair<std::string_view, AttrValue>> items_;
};

std::string to_string(const Attrs&);  // "{axes=[0,1] keep=1}"; "" when empty

}  // namespace sg
