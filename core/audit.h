// Gradient-flow audit: which loss term trains which variable, what cuts the others off and where, and what else assigns
// a variable. Decided on the tape: nothing runs and nothing is recorded. Works on a tape with the losses only, and says
// more on one that holds the whole training step.
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/autodiff.h"
#include "core/tape.h"

namespace sg {

struct AuditTerm {
  std::string name;
  Value loss;  // a real scalar, weighted or not
};

// Where the value comes from that a variable is assigned at the end of the step.
enum class UpdateKind : std::uint8_t {
  none,      // it is not assigned, or is assigned its own value
  itself,    // from itself and numbers alone: weight decay, a counter, an optimizer that was given a zero gradient
  gradient,  // from a gradient recorded on the tape
  rule,      // from data or other variables, without any gradient: an average, a copy
};

struct AuditRow {
  const Variable* variable = nullptr;  // must outlive the audit
  bool parameter = false;              // else state
  bool read = false;                   // whether the tape reads it
  std::vector<GradientFlow> terms;     // one per term
  UpdateKind update = UpdateKind::none;
  std::int32_t assigned_by = -1;  // the assign instruction; -1: none
  std::string assigned_at;        // its line and scope; "" for none
  bool updated() const { return update != UpdateKind::none; }
  bool trained() const;  // whether some term's gradient reaches it
};

struct Audit {
  std::vector<std::string> terms;
  std::vector<AuditRow> rows;                // parameters, then state, in the order given
  std::map<std::int32_t, std::string> cuts;  // every instruction that some cell names, described with line and scope

  // A matrix, terms as columns, variables as rows (runs of equal rows of one module as one: "encoder.* (12)"), and the
  // list of cuts that its cells refer to by number. Cells: trains; blocked [cuts]; zero [cuts]; - for unconnected.
  std::string to_string() const;

  // What is surely wrong, one message each with the lines to look at; empty for a sound model:
  // - a parameter that no term's gradient reaches, or only as zero, and that nothing but itself updates;
  // - a parameter that a term trains but that is never assigned, on a tape that assigns others from gradients;
  // - a parameter that a term trains but that is overwritten by a value without any gradient in it;
  // - state that the whole step neither reads nor assigns, on a tape that assigns parameters from gradients.
  std::vector<std::string> problems() const;
};

// parameters: those that this step is to train (a step of one of two players lists its own only).
Audit audit(const Tape& tape, std::span<const AuditTerm> terms, std::span<Variable* const> parameters,
            std::span<Variable* const> state = {});

// A contract on flows: which term is to train which variable. '*' in a name stands for any characters.
enum class FlowIs : std::uint8_t { live, blocked, unconnected, zero, not_live };
struct FlowExpectation {
  std::string term, variable;
  FlowIs expected = FlowIs::live;
};
// One message per pair of term and variable that is not as expected, and per name that matches nothing.
std::vector<std::string> violations(const Audit& audit, std::span<const FlowExpectation> expectations);

}  // namespace sg
