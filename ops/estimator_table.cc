#include "ops/estimator_table.h"

#include <algorithm>
#include <charconv>

#include "core/error.h"
#include "ops/estimator_rows.h"

namespace sg {
namespace {

std::vector<EstimatorDef>& table() {
  static std::vector<EstimatorDef> rows = built_in_estimators();
  return rows;
}

double argument(const EstimatorDef& def, const EstimatorParameter& parameter, std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size())
    fail(ErrorKind::usage, "estimator {}: {} is '{}', a number is needed", def.name, parameter.name, text);
  return value;
}

void check_argument(const EstimatorDef& def, const EstimatorParameter& parameter, double value) {
  if (!(value >= parameter.least && value <= parameter.most))
    fail(ErrorKind::usage, "estimator {}: {} is {}; it must be from {} to {}", def.name, parameter.name, value,
         parameter.least, parameter.most);
}

}  // namespace

BoundEstimator BoundEstimator::from_function(Estimator function, std::string name) {
  EstimatorDef def;
  def.name = std::move(name);
  if (function) def.estimate = [f = std::move(function)](const Lookup& l) { return f(l.z, l.q); };
  def.rows_only = true;
  return {std::move(def), {}};
}

BoundEstimator::BoundEstimator(EstimatorDef row, std::vector<double> values)
    : def(std::move(row)), arguments(std::move(values)) {
  if (arguments.size() != def.parameters.size())
    fail(ErrorKind::usage, "estimator {}: {} arguments, it has {} parameters", def.name, arguments.size(),
         def.parameters.size());
  for (std::size_t i = 0; i < arguments.size(); ++i) check_argument(def, def.parameters[i], arguments[i]);
  if (def.exact_forward_if) def.exact_forward = def.exact_forward_if(arguments);
}

BoundEstimator::BoundEstimator(std::string_view text) : BoundEstimator(estimator_by_name(text)) {}

std::string BoundEstimator::text() const {
  std::string out = def.name;
  for (const double a : arguments) out += fmt::format(":{}", a);
  return out;
}

Value BoundEstimator::operator()(Value z, Value q) const {
  if (!def.rows_only)
    fail(ErrorKind::usage, "estimator {} needs more than z and q: give it a Lookup through def.estimate", def.name);
  Lookup lookup;
  lookup.z = z;
  lookup.q = q;
  lookup.arguments = arguments;
  return def.estimate(lookup);
}

void register_estimator(EstimatorDef def) {
  if (def.name.empty() || def.name.find_first_of(":, ") != std::string::npos)
    fail(ErrorKind::usage, "register_estimator: '{}' is no name: it must not be empty or hold ':', ',' or a space",
         def.name);
  if (!def.estimate) fail(ErrorKind::usage, "register_estimator: '{}' has no function", def.name);
  for (const EstimatorDef& row : table())
    if (row.name == def.name)
      fail(ErrorKind::usage, "register_estimator: there is an estimator '{}' already", def.name);
  for (const EstimatorParameter& p : def.parameters) check_argument(def, p, p.value);
  table().push_back(std::move(def));
}

void register_estimator(std::string name, Estimator function, std::string formula, std::string jacobian) {
  BoundEstimator bound(std::move(function), std::move(name));
  bound.def.formula = std::move(formula);
  bound.def.jacobian = std::move(jacobian);
  register_estimator(std::move(bound.def));
}

BoundEstimator estimator_by_name(std::string_view text) {
  const std::string_view name = text.substr(0, text.find(':'));
  std::string known;
  for (const EstimatorDef& row : table()) {
    known += (known.empty() ? "" : ", ") + row.name;
    if (row.name != name) continue;
    std::vector<double> values;
    for (const EstimatorParameter& p : row.parameters) values.push_back(p.value);
    std::string_view rest = text.substr(name.size());
    for (std::size_t i = 0; !rest.empty(); ++i) {
      rest.remove_prefix(1);
      const std::string_view one = rest.substr(0, rest.find(':'));
      if (i >= values.size())
        fail(ErrorKind::usage, "estimator '{}': {} takes {} argument{}", text, row.name, values.size(),
             values.size() == 1 ? "" : "s");
      values[i] = argument(row, row.parameters[i], one);
      rest.remove_prefix(one.size());
    }
    return {row, std::move(values)};
  }
  fail(ErrorKind::usage, "unknown estimator '{}'; there are: {}", text, known);
}

std::vector<std::string> estimator_names() {
  std::vector<std::string> names;
  for (const EstimatorDef& e : table()) names.push_back(e.name);
  return names;
}

std::vector<std::string> rows_only_estimator_names() {
  std::vector<std::string> names;
  for (const EstimatorDef& e : table())
    if (e.rows_only) names.push_back(e.name);
  return names;
}

const std::vector<EstimatorDef>& estimator_table() { return table(); }

}  // namespace sg
