// audit: which loss term of a model trains which variable, found on the recorded training step.
#include "core/error.h"
#include "tools/commands/commands.h"
#include "tools/flow_report.h"
#include "tools/session.h"

namespace sg::tools {
namespace {

struct AuditArguments {
  std::string what;
  bool json = false;
  std::unique_ptr<ConfigFlags> flags;
};

void show_audit(const AuditArguments& a) {
  const std::unique_ptr<Task> task = describe(a.what, *a.flags);
  Tape tape;
  const TaskStep step = task->record(tape, IfUnreachable::zero);
  const FlowReport report = report_flow(audit(tape, step.terms, task->parameters(), task->state()), step.expected);
  if (a.json) {
    fmt::print("{}", to_json(report));
  } else {
    fmt::print("{}\n", report.audit.to_string());
    for (const std::string& problem : report.problems) fmt::print("problem: {}\n", problem);
    for (const std::string& violation : report.violations) fmt::print("against the contract: {}\n", violation);
    if (report.problems.empty() && report.violations.empty())
      fmt::print("no problems: each parameter is trained, and each term trains what it is to train\n");
  }
  if (!report.problems.empty() || !report.violations.empty())
    fail(ErrorKind::contract, "audit: {} problem(s), {} flow(s) against the model's contract", report.problems.size(),
         report.violations.size());
}

}  // namespace

void add_audit(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "audit", "Say which loss term trains which variable, and what cuts the others off. Nothing is run.");
  const auto a = std::make_shared<AuditArguments>();
  command->add_option("WHAT", a->what, fmt::format("model ({}) or run folder", model_list()))->required();
  command->add_flag("--json", a->json, "for programs");
  a->flags =
      std::make_unique<ConfigFlags>(*command, std::vector<std::string_view>{"Model", "Quantizer", "Training"}, "WHAT");
  command->footer(
      "Exit code 1 where a parameter is surely not trained as it should be, or a term trains what it must not.\n"
      "Examples:\n"
      "  stopgrad audit vqvae --estimator rotation --codebook loss\n"
      "  stopgrad audit runs/first --json");
  command->callback([a] { show_audit(*a); });
}

}  // namespace sg::tools
