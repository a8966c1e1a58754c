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

void expect_no_alarm(const VqVaeConfig& config) {
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
  const Audit result = audit(tape, terms, training.optimizer().parameters(), state);
  EXPECT_EQ(joined(result.problems()), "") << config.quantizer.quantizer << "\n" << result.to_string();
  EXPECT_EQ(joined(violations(result, std::vector<FlowExpectation>{{"total", "encoder.*", FlowIs::live},
                                                                   {"reconstruction", "decoder.*", FlowIs::live}})),
            "");
}

TEST(ShippedModels, RaiseNoAlarmWithAnyEstimator) {
  int audited = 0;
  for (const std::string& name : estimator_names()) {
    for (const CodebookUpdate update : {CodebookUpdate::loss, CodebookUpdate::ema}) {
      SCOPED_TRACE(name + ", " + std::string(to_string(update)));
      VqVaeConfig c = small();
      c.quantizer.estimator = estimator_by_name(name);
      c.quantizer.codebook = update;
      expect_no_alarm(c);
      ++audited;
    }
  }
  EXPECT_GT(audited, 10);
}

// With clipping and weight decay, where every update depends on every gradient and on itself.
TEST(ShippedModels, RaiseNoAlarmWithAnyCodebookRule) {
  for (const std::string& name : codebook_update_names()) {
    SCOPED_TRACE(name);
    VqVaeConfig c = small();
    c.quantizer.codebook = codebook_update_by_name(name);
    c.clip = 1;
    c.weight_decay = 1e-4;
    expect_no_alarm(c);
  }
}

TEST(ShippedModels, RaiseNoAlarmWithAnyRevival) {
  for (const std::string& name : revival_names())
    for (const CodebookUpdate update : {CodebookUpdate::loss, CodebookUpdate::ema}) {
      SCOPED_TRACE(name + ", " + std::string(to_string(update)));
      VqVaeConfig c = small();
      c.quantizer.codebook = update;
      c.quantizer.revival_policy = revival_by_name(name);
      c.quantizer.revival = 2;
      expect_no_alarm(c);
    }
}

TEST(ShippedModels, RaiseNoAlarmWithAnyQuantizer) {
  for (const std::string& name : quantizer_names()) {
    SCOPED_TRACE(name);
    VqVaeConfig c = small();
    c.quantizer.quantizer = name;
    c.quantizer.codes = 256;  // of the sizes that every quantizer has
    expect_no_alarm(c);
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
