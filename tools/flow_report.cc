#include "tools/flow_report.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

namespace sg::tools {
namespace {

std::string_view to_string(GradientFlow::State state) {
  switch (state) {
    case GradientFlow::State::live:
      return "trains";
    case GradientFlow::State::blocked:
      return "blocked";
    case GradientFlow::State::zero:
      return "zero";
    case GradientFlow::State::unconnected:
      break;
  }
  return "unconnected";
}

std::string_view to_string(UpdateKind kind) {
  switch (kind) {
    case UpdateKind::itself:
      return "itself";
    case UpdateKind::gradient:
      return "gradient";
    case UpdateKind::rule:
      return "rule";
    case UpdateKind::none:
      break;
  }
  return "none";
}

// The variables of the rows that `chosen` holds for: a few by name, "encoder" for all of a module, "encoder (5 of 12)".
std::string modules_of(const Audit& audit, const std::function<bool(const AuditRow&)>& chosen) {
  struct Module {
    std::string name;
    std::vector<std::string> chosen;
    std::size_t all = 0;
  };
  std::vector<Module> modules;
  for (const AuditRow& row : audit.rows) {
    const std::string& name = row.variable->name();
    const std::string top = name.substr(0, name.find('.'));
    auto module = std::find_if(modules.begin(), modules.end(), [&](const Module& m) { return m.name == top; });
    if (module == modules.end()) module = modules.insert(modules.end(), {top, {}, 0});
    ++module->all;
    if (chosen(row)) module->chosen.push_back(name);
  }
  std::vector<std::string> parts;
  for (const Module& m : modules) {
    if (m.chosen.empty()) continue;
    if (m.chosen.size() == m.all && m.all > 4)
      parts.push_back(m.name);
    else if (m.chosen.size() <= 4)
      parts.insert(parts.end(), m.chosen.begin(), m.chosen.end());
    else
      parts.push_back(fmt::format("{} ({} of {})", m.name, m.chosen.size(), m.all));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace

FlowReport report_flow(Audit audit, std::span<const FlowExpectation> expected) {
  FlowReport report{std::move(audit), {}, {}};
  report.problems = report.audit.problems();
  report.violations = violations(report.audit, expected);
  return report;
}

std::string short_text(const FlowReport& report) {
  const Audit& audit = report.audit;
  std::size_t width = 0;
  for (const std::string& term : audit.terms) width = std::max(width, term.size());
  std::string out;
  for (std::size_t t = 0; t < audit.terms.size(); ++t) {
    const std::string trained = modules_of(
        audit, [&](const AuditRow& row) { return row.parameter && row.terms[t].state == GradientFlow::State::live; });
    out += fmt::format("  {:<{}} trains {}\n", audit.terms[t], width, trained.empty() ? "nothing" : trained);
  }
  const std::string rules =
      modules_of(audit, [](const AuditRow& row) { return !row.parameter && row.update == UpdateKind::rule; });
  if (!rules.empty()) out += fmt::format("  updated without gradients: {}\n", rules);
  const std::string untrained = modules_of(
      audit, [](const AuditRow& row) { return row.parameter && !row.trained() && row.update != UpdateKind::rule; });
  if (!untrained.empty()) out += fmt::format("  trained by nothing: {}\n", untrained);
  return out;
}

std::string to_json(const FlowReport& report) {
  const Audit& audit = report.audit;
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const AuditRow& row : audit.rows) {
    nlohmann::ordered_json terms = nlohmann::ordered_json::object();
    for (std::size_t t = 0; t < audit.terms.size(); ++t) {
      nlohmann::ordered_json cuts = nlohmann::ordered_json::array();
      for (const std::int32_t cut : row.terms[t].cuts) cuts.push_back(audit.cuts.at(cut));
      terms[audit.terms[t]] = {{"flow", to_string(row.terms[t].state)}, {"cuts", cuts}};
    }
    rows.push_back({{"variable", row.variable->name()},
                    {"parameter", row.parameter},
                    {"update", to_string(row.update)},
                    {"assigned_at", row.assigned_at},
                    {"terms", terms}});
  }
  const nlohmann::ordered_json all{
      {"terms", audit.terms}, {"variables", rows}, {"problems", report.problems}, {"violations", report.violations}};
  return all.dump(2) + "\n";
}

}  // namespace sg::tools
