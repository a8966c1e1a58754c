// The audit itself: cells, updates, the matrix as text, contracts on flows. Real bugs are in tests/audit.
#include "core/audit.h"

#include "backends/backends.h"
#include "core/program.h"
#include "models/optim.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/reduce.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

using State = GradientFlow::State;

struct Named {
  explicit Named(std::string name, Shape shape = {2}) : variable(std::move(name), Tensor({DType::f32, shape})) {}
  Variable variable;
  operator Variable*() { return &variable; }
};

TEST(GradientFlows, OfManyValuesAreThoseOfEach) {
  Tape tape;
  const Value a = tape.input("a", {DType::f32, {3}}), b = tape.input("b", {DType::f32, {3}}),
              c = tape.input("c", {DType::f32, {3}});
  const Value loss = sum(a * stop_gradient(b) + stop_gradient(a));
  const Value wrt[] = {a, b, c, loss};
  const auto flows = gradient_flows(loss, wrt);
  EXPECT_EQ(flows[0].state, State::live);
  EXPECT_EQ(flows[0].cuts.size(), 1u) << "the stopped path of a";
  EXPECT_EQ(flows[1].state, State::blocked);
  EXPECT_EQ(flows[2].state, State::unconnected);
  EXPECT_EQ(flows[3].state, State::live);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(gradient_flow(loss, wrt[i]).cuts, flows[i].cuts);
}

TEST(GradientFlows, AreZeroByAFactorOfZero) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {3}}), y = tape.input("y", {DType::f32, {3}});
  const Value zero = tape.constant(Tensor({DType::f32, {1, 3}}));
  EXPECT_EQ(gradient_flow(sum(0.0 * square(x) + y), x).state, State::zero);
  EXPECT_EQ(gradient_flow(sum(0.0 * square(x) + y), y).state, State::live);
  EXPECT_EQ(gradient_flow(sum(square(x) * (y * stop_gradient(zero))), x).state, State::zero) << "zero by way of others";
  EXPECT_EQ(gradient_flow(sum(0.0 * x + x), x).state, State::live);
  EXPECT_EQ(gradient_flow(sum(0.0 * stop_gradient(x)), x).state, State::blocked);
  const Value loss = sum(0.0 * square(x));
  const auto flow = gradient_flow(loss, x);
  ASSERT_EQ(flow.cuts.size(), 1u);
  EXPECT_EQ(op_def(tape.instrs()[static_cast<std::size_t>(flow.cuts[0])].op).name, "mul");
  SG_EXPECT_CONTAINS(explain_gradient(loss, x), "zero");
}

TEST(GradientFlows, AreZeroWherePathsCancel) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {3}}), q = tape.input("q", {DType::f32, {3}});
  EXPECT_EQ(gradient_flow(sum(square(x - (x + stop_gradient(q - x)))), x).state, State::zero);
  EXPECT_EQ(gradient_flow(sum(square(x - x)), x).state, State::zero);
  EXPECT_EQ(gradient_flow(sum(square((x + q) - (q + x))), q).state, State::zero);
  EXPECT_EQ(gradient_flow(sum(square(2.0 * x - x)), x).state, State::live);
  EXPECT_EQ(gradient_flow(sum(square(x + x)), x).state, State::live);
  EXPECT_EQ(gradient_flow(sum(square(x) - square(x)), x).state, State::live) << "equal to 0, but not by adding alone";
  const Value mean_x = mean(x);
  EXPECT_EQ(gradient_flow(sum(x - mean_x), mean_x).state, State::live) << "broadcast";
}

TEST(GradientFlows, OfCancellingPathsAreZeroInNumbersToo) {
  Tape tape;
  const Value x = tape.constant(Tensor::of<double>({2}, {1, 2})), y = tape.constant(Tensor::of<double>({2}, {3, 4}));
  const Value difference = x - ((x + y) - y + stop_gradient(y));
  const Value loss = sum(square(difference));
  ASSERT_EQ(gradient_flow(loss, x).state, State::zero);
  ASSERT_EQ(gradient_flow(loss, y).state, State::zero);
  expect_values(eval(gradient(loss, x), backend("reference")), {0, 0});
  expect_values(eval(gradient(loss, y), backend("reference")), {0, 0});
}

TEST(Audit, FillsACellForEachTermAndVariable) {
  Named a("a"), b("b"), unused("unused"), counter("counter");
  Tape tape;
  const Value x = tape.read(a.variable), y = tape.read(b.variable);
  const AuditTerm terms[] = {{"first", sum(x * stop_gradient(y))}, {"second", sum(y)}};
  Variable* const parameters[] = {a, b};
  Variable* const state[] = {unused, counter};
  const Audit found = audit(tape, terms, parameters, state);
  ASSERT_EQ(found.rows.size(), 4u);
  EXPECT_EQ(found.rows[0].terms[0].state, State::live);
  EXPECT_EQ(found.rows[0].terms[1].state, State::unconnected);
  EXPECT_EQ(found.rows[1].terms[0].state, State::blocked);
  EXPECT_EQ(found.rows[1].terms[1].state, State::live);
  EXPECT_TRUE(found.rows[1].trained());
  EXPECT_FALSE(found.rows[2].read);
  EXPECT_FALSE(found.rows[2].parameter);
  EXPECT_TRUE(found.problems().empty()) << "no step is recorded yet";
}

TEST(Audit, TellsWhereAnUpdateComesFrom) {
  Named gradient_trained("w"), average("average"), decayed("decayed"), kept("kept"), counter("counter", {}),
      follower("follower");
  Tape tape;
  const Value data = tape.input("data", {DType::f32, {2}}), rate = tape.input("rate", {DType::f32, {}});
  const Value w = tape.read(gradient_trained.variable), loss = sum(square(w - data));
  tape.assign(gradient_trained.variable, w - rate * gradient(loss, w));
  tape.assign(average.variable, 0.9 * tape.read(average.variable) + 0.1 * data);
  tape.assign(decayed.variable, (1.0 - 0.01 * rate) * tape.read(decayed.variable));
  tape.assign(kept.variable, tape.read(kept.variable));
  tape.assign(counter.variable, tape.read(counter.variable) + 1.0);
  tape.assign(follower.variable, tape.read(follower.variable) + tape.read(average.variable));
  const AuditTerm terms[] = {{"loss", loss}};
  Variable* const parameters[] = {gradient_trained, average, decayed, kept};
  Variable* const state[] = {counter, follower};
  const Audit found = audit(tape, terms, parameters, state);
  const UpdateKind wanted[] = {UpdateKind::gradient, UpdateKind::rule,   UpdateKind::itself,
                               UpdateKind::none,     UpdateKind::itself, UpdateKind::rule};
  for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(found.rows[i].update, wanted[i]) << found.rows[i].variable->name();
  EXPECT_FALSE(found.rows[3].updated());
  const auto problems = found.problems();
  ASSERT_EQ(problems.size(), 2u) << problems[0];
  SG_EXPECT_CONTAINS(problems[0], "'decayed'");
  SG_EXPECT_CONTAINS(problems[0], "audit_test.cc:");
  SG_EXPECT_CONTAINS(problems[0], "loss: does not depend on it");
  SG_EXPECT_CONTAINS(problems[1], "'kept'");
}

TEST(Audit, FindsAStoppedOptimizerBehindAdamsMoments) {
  Named w("w"), frozen("frozen");
  Tape tape;
  const Value data = tape.input("data", {DType::f32, {2}});
  const Value loss = sum(square(tape.read(w.variable) * stop_gradient(tape.read(frozen.variable)) - data));
  const Value wrt[] = {tape.read(w.variable), tape.read(frozen.variable)};
  Adam adam({w, frozen});
  adam.apply(tape, gradients(loss, wrt, IfUnreachable::zero), tape.input("rate", {DType::f32, {}}));
  const AuditTerm terms[] = {{"loss", loss}};
  Variable* const parameters[] = {w, frozen};
  const Audit found = audit(tape, terms, parameters, adam.state());
  EXPECT_EQ(found.rows[0].update, UpdateKind::gradient);
  EXPECT_EQ(found.rows[1].update, UpdateKind::itself);
  EXPECT_EQ(found.problems().size(), 1u);
}

TEST(Audit, PrintsOneLineForAlikeRowsOfAModule) {
  Named parts[] = {Named("encoder.in.w"), Named("encoder.in.b"), Named("encoder.out.w"),
                   Named("codebook"),     Named("decoder.w"),    Named("decoder.b")};
  Tape tape;
  Value z = tape.input("x", {DType::f32, {2}});
  for (int i = 0; i < 3; ++i) z = z * tape.read(parts[i].variable);
  const unsigned line = __LINE__ + 1;
  const Value z_q = z + stop_gradient(tape.read(parts[3].variable) - z);
  const AuditTerm terms[] = {{"reconstruction", sum(z_q * tape.read(parts[4].variable) + tape.read(parts[5].variable))},
                             {"codebook", sum(square(tape.read(parts[3].variable)))}};
  std::vector<Variable*> parameters;
  for (Named& p : parts) parameters.push_back(p);
  const std::string text = audit(tape, terms, parameters).to_string();
  SG_EXPECT_CONTAINS(text, "               reconstruction  codebook\n");
  SG_EXPECT_CONTAINS(text, "encoder.* (3)  trains          -\n");
  SG_EXPECT_CONTAINS(text, "codebook       blocked [1]     trains\n");
  SG_EXPECT_CONTAINS(text, "decoder.* (2)  trains          -\n");
  SG_EXPECT_CONTAINS(text, "cuts\n  [1] %");
  SG_EXPECT_CONTAINS(text, "audit_test.cc:" + std::to_string(line));
}

TEST(Audit, RefusesTermsThatAreNoLosses) {
  Named w("w");
  Tape tape, another;
  Variable* const parameters[] = {w};
  const Value x = tape.read(w.variable);
  const auto with = [&](std::vector<AuditTerm> terms) { audit(tape, terms, parameters); };
  SG_EXPECT_ERROR(shape, "'rows'", with({{"rows", x}}));
  SG_EXPECT_ERROR(usage, "'lost'", with({{"lost", Value{}}}));
  SG_EXPECT_ERROR(usage, "another tape", with({{"far", another.constant(1, {DType::f32, {}})}}));
  SG_EXPECT_ERROR(usage, "two terms", with({{"twin", sum(x)}, {"twin", sum(x)}}));
}

TEST(FlowExpectations, MatchNamesByPattern) {
  Named a("encoder.w"), b("decoder.w");
  Tape tape;
  const Value x = tape.read(a.variable), y = tape.read(b.variable);
  const AuditTerm terms[] = {{"one", sum(x)}, {"two", sum(stop_gradient(x) + 0.0 * y)}};
  Variable* const parameters[] = {a, b};
  const Audit found = audit(tape, terms, parameters);
  const auto broken = [&](std::string term, std::string variable, FlowIs is) {
    const FlowExpectation e{std::move(term), std::move(variable), is};
    return violations(found, std::span(&e, 1));
  };
  EXPECT_TRUE(broken("one", "encoder.*", FlowIs::live).empty());
  EXPECT_TRUE(broken("one", "d*.w", FlowIs::unconnected).empty());
  EXPECT_TRUE(broken("two", "encoder.w", FlowIs::blocked).empty());
  EXPECT_TRUE(broken("two", "decoder.*", FlowIs::zero).empty());
  EXPECT_TRUE(broken("two", "*", FlowIs::not_live).empty());
  EXPECT_EQ(broken("*", "*", FlowIs::live).size(), 3u);
  EXPECT_EQ(broken("*", "*", FlowIs::not_live).size(), 1u);
  EXPECT_EQ(broken("two", "encoder.w", FlowIs::zero).size(), 1u);
  SG_EXPECT_CONTAINS(broken("nosuch", "*", FlowIs::live).at(0), "no loss term is named 'nosuch'");
  SG_EXPECT_CONTAINS(broken("one", "quantizer.*", FlowIs::not_live).at(0), "no variable is named 'quantizer.*'");
  SG_EXPECT_CONTAINS(broken("two", "encoder.w", FlowIs::live).at(0), "is blocked by\n  %");
}

}  // namespace
}  // namespace sg::test
