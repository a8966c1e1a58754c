// What a gradient-flow audit (core/audit.h) says about a model, for people and for programs.
#pragma once
#include <string>
#include <vector>

#include "models/vqvae_training.h"

namespace sg::tools {

struct FlowReport {
  Audit audit;
  std::vector<std::string> problems;    // of the audit: the model is surely wrong
  std::vector<std::string> violations;  // of the model's own contract (flow_contract)
};
FlowReport report_flow(const Tape& tape, const TrainStep& step, const VqVaeTraining& training);

// A line per loss term with the modules that it trains, and one on what is updated without gradients.
std::string short_text(const FlowReport& report);
std::string to_json(const FlowReport& report);

}  // namespace sg::tools
