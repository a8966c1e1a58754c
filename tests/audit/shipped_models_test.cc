// The clean set: no shipped training step raises an alarm. Steps are recorded, not run.
#include "core/audit.h"
#include "models/vqvae_training.h"
#include "tests/audit/toy.h"

namespace sg::test {
namespace {

VqVaeConfig small() {
  VqVaeConfig c;
  c.height = c.width = 16;
  c.hidden = 8, c.residual = 4, c.batch = 2, c.window = 3;
  c.quantizer.codes = 16, c.quantizer.dim = 8;
  return c;
}

Audit audit_of(const VqVaeConfig& config) {
  VqVae model(config);
  VqVaeTraining training(model);
  Tape tape;
  const TrainStep step = build_train_step(tape, training);
  std::vector<AuditTerm> terms{{"reconstruction", step.reconstruction}};
  for (const LossTerm& term : step.quantized.losses)
    if (term.weight != 0) terms.push_back({term.name, term.value});
  terms.push_back({"total", step.total});
  std::vector<Variable*> state;
  for (Variable* v : training.checkpoint()) {
    const auto parameters = training.optimizer().parameters();
    if (std::find(parameters.begin(), parameters.end(), v) == parameters.end()) state.push_back(v);
  }
  Audit result = audit(tape, terms, training.optimizer().parameters(), state);
  // Rows refer to variables that end with the model: what is needed is taken here.
  EXPECT_EQ(joined(result.problems()), "") << config.quantizer.quantizer << "\n" << result.to_string();
  EXPECT_EQ(joined(violations(result, std::vector<FlowExpectation>{{"total", "encoder.*", FlowIs::live},
                                                                   {"reconstruction", "decoder.*", FlowIs::live}})),
            "");
  return result;
}

TEST(ShippedModels, RaiseNoAlarmWithAnyEstimator) {
  int audited = 0;
  for (const std::string& name : estimator_names()) {
    if (estimator_by_name(name).def.needs_origin) continue;  // no quantizer keeps a running mean yet
    for (const CodebookUpdate update : {CodebookUpdate::loss, CodebookUpdate::ema}) {
      SCOPED_TRACE(name + ", " + std::string(to_string(update)));
      VqVaeConfig c = small();
      c.quantizer.estimator = estimator_by_name(name);
      c.quantizer.codebook = update;
      audit_of(c);
      ++audited;
    }
  }
  EXPECT_GT(audited, 10);
}

TEST(ShippedModels, RaiseNoAlarmWithAnyCodebookRule) {
  for (const CodebookUpdate update : {CodebookUpdate::loss, CodebookUpdate::ema})
    for (const double revival : {0.0, 0.1}) {
      SCOPED_TRACE(to_string(update));
      VqVaeConfig c = small();
      c.quantizer.codebook = update;
      c.quantizer.revival = revival;
      c.clip = 1;
      c.weight_decay = 1e-4;
      audit_of(c);
    }
}

TEST(ShippedModels, RaiseNoAlarmWithAnyQuantizer) {
  for (const std::string& name : quantizer_names()) {
    SCOPED_TRACE(name);
    VqVaeConfig c = small();
    c.quantizer.quantizer = name;
    c.quantizer.codes = 256;  // of the sizes that every quantizer has
    audit_of(c);
  }
}

TEST(ShippedModels, RaiseNoAlarmOnTapesWithoutATrainingStep) {
  const VqVae model(small());
  Tape tape;
  const Evaluation e = build_evaluation(tape, model, 2);
  const AuditTerm term[] = {{"error", e.squared_error}};
  const Audit audited = audit(tape, term, model.parameters(), model.state());
  for (const std::string& problem : audited.problems())  // evaluation does not look the codes up by a gradient
    SG_EXPECT_CONTAINS(problem, "'quantizer.codebook' gets no gradient");
}

}  // namespace
}  // namespace sg::test
