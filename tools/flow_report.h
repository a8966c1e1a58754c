// What a gradient-flow audit (core/audit.h) says about a model, for people and for programs.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "core/audit.h"

namespace sg::tools {

struct FlowReport {
  Audit audit;
  std::vector<std::string> problems;    // of the audit: the model is surely wrong
  std::vector<std::string> violations;  // of what the model expects
};
FlowReport report_flow(Audit audit, std::span<const FlowExpectation> expected);

// A line per loss term with the modules that it trains, and one on what is updated without gradients.
std::string short_text(const FlowReport& report);
std::string to_json(const FlowReport& report);

}  // namespace sg::tools
