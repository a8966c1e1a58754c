// The audit of the shipped model: sound with every estimator, rule and quantizer; and what it says of broken ones.
#include "models/vqvae_training.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "tests/support/expect.h"
#include "tools/flow_report.h"

namespace sg::test {
namespace {

using namespace tools;

VqVaeConfig small_model() {
  VqVaeConfig c;
  c.height = c.width = 8, c.hidden = 8, c.residual = 4, c.residual_blocks = 1, c.batch = 4, c.window = 5, c.steps = 10;
  c.quantizer.codes = 16, c.quantizer.dim = 8, c.quantizer.code_dim = 4;
  return c;
}

struct Reported {
  std::vector<std::string> problems, violations;
  std::string text;
};
Reported report_of(const VqVaeConfig& config) {
  VqVae model(config);
  VqVaeTraining training(model);
  Tape tape;
  const TrainStep step = build_train_step(tape, training, IfUnreachable::zero);
  const FlowReport report = report_flow(audit_step(tape, step, training), flow_contract(step, training.model()));
  return {report.problems, report.violations, short_text(report)};
}

// False where the library refuses the combination.
bool is_sound(const VqVaeConfig& config, const std::string& what, std::string* refusal = nullptr) {
  try {
    const Reported report = report_of(config);
    EXPECT_TRUE(report.problems.empty()) << what << ": " << report.problems.front();
    EXPECT_TRUE(report.violations.empty()) << what << ": " << report.violations.front();
    return true;
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::usage) << what << ": " << e.message();
    if (refusal != nullptr) *refusal = e.message();
    return false;
  }
}

TEST(Flow, EveryEstimatorIsSound) {
  for (const std::string& name : estimator_names()) {
    VqVaeConfig config = small_model();
    config.quantizer.estimator = name;
    for (const CodebookUpdate update : {CodebookUpdate::loss, CodebookUpdate::ema}) {
      config.quantizer.codebook = update;
      EXPECT_TRUE(is_sound(config, fmt::format("{} with {}", name, to_string(update)))) << name;
    }
    config.balance_commitment = true;
    EXPECT_TRUE(is_sound(config, name + ", balanced")) << name;
  }
}

TEST(Flow, EveryQuantizerAndRuleIsSound) {
  for (const std::string& name : quantizer_names()) {
    int rules = 0;
    std::string refusal;
    for (const std::string& rule : codebook_update_names())
      for (const char* estimator : {"ste", "rotation"}) {
        VqVaeConfig config = small_model();
        config.quantizer.quantizer = name;
        config.quantizer.codes = 256;  // of the sizes that every quantizer has
        config.quantizer.codebook = codebook_update_by_name(rule);
        config.quantizer.estimator = estimator;
        config.quantizer.orthogonal = config.quantizer.entropy = config.quantizer.diversity = 0.1;
        bool sound = is_sound(config, fmt::format("{}, {}, {}", name, rule, estimator));
        config.quantizer.orthogonal = config.quantizer.entropy = config.quantizer.diversity = 0;
        sound = is_sound(config, fmt::format("{}, {}, {}", name, rule, estimator), &refusal) || sound;
        rules += sound ? 1 : 0;
      }
    EXPECT_GT(rules, 0) << name << " is refused with every rule: " << refusal;
  }
}

Value detached(Value, Value q) { return stop_gradient(q); }
Value to_the_codes(Value z, Value q) { return q + stop_gradient(0.0 * z); }

// An estimator that passes nothing: the commitment still trains the encoder, so this is against the contract, and with
// gamma = 0 nothing trains it.
TEST(Flow, AnEstimatorThatPassesNothingIsNamed) {
  VqVaeConfig config = small_model();
  config.quantizer.estimator = BoundEstimator(detached, "detached");
  const Reported held = report_of(config);
  EXPECT_TRUE(held.problems.empty());
  ASSERT_FALSE(held.violations.empty());
  SG_EXPECT_CONTAINS(held.violations.front(), "term 'reconstruction' is to train 'encoder.");
  SG_EXPECT_CONTAINS(held.violations.front(), "but is blocked by");
  SG_EXPECT_CONTAINS(held.text, "  reconstruction trains decoder\n");

  config.quantizer.gamma = 0;
  const Reported lost = report_of(config);
  ASSERT_FALSE(lost.problems.empty());
  for (const std::string& problem : lost.problems) SG_EXPECT_CONTAINS(problem, "parameter 'encoder.");
  SG_EXPECT_CONTAINS(lost.text, "trained by nothing: encoder");
}

TEST(Flow, AnEstimatorThatTrainsTheCodesUnsaidIsNamed) {
  VqVaeConfig config = small_model();
  config.quantizer.estimator = BoundEstimator(to_the_codes, "to-the-codes");
  const Reported report = report_of(config);
  bool named = false;
  for (const std::string& violation : report.violations)
    named = named || contains(violation, "term 'reconstruction' is not to train 'quantizer.codebook'");
  EXPECT_TRUE(named);
}

}  // namespace
}  // namespace sg::test
