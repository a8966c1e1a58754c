// Codebook rules against PyTorch (tools/make_goldens.py writes codebook_rules.json): codes after each step, losses,
// gradients.
#include "core/autodiff.h"
#include "core/program.h"
#include "models/losses.h"
#include "models/quantizers/vector_quantizer.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tests/goldens/golden.h"

namespace sg::test {
namespace {

constexpr double kTolerance = 5e-6;  // of f32

QuantizerConfig config_of(const Json& c, std::string_view rule) {
  QuantizerConfig config;
  config.codes = 6;
  config.dim = 4;
  config.codebook = codebook_update_by_name(rule);
  config.metric = metric_by_name(c.value("metric", "euclidean"));
  config.ema_decay = 0.8;
  config.inner_rate = c.value("rate", 1.0);
  config.gamma = 0.25;
  return config;
}

// One that is trained, with a whole step on z on its tape.
struct Trained {
  Trained(const Json& c, std::string_view rule, const char* start) : quantizer(root, "vq", config_of(c, rule)) {
    quantizer.set_codebook(tensor(c.at(start), DType::f32));
  }
  Quantized step(Value z, Value mask) {
    const QuantizeContext context{
        .random = tape.constant(Tensor::of<std::int32_t>({2}, {1, 0})), .progress = {}, .mask = mask};
    const Quantized out = quantizer(z, context);
    StepUpdates updates(tape);
    quantizer.update(out, context, updates);
    updates.commit();
    return out;
  }
  Module root;
  VectorQuantizer quantizer;
  Tape tape;
};

void check_ema(const Json& c, std::string_view rule, std::string_view on) {
  Trained t(c, rule, "start");
  const Json& steps = c.at("steps");
  const Value z = t.tape.input("z", tensor(steps[0].at("z"), DType::f32).type());
  const Value mask = c.at("mask").is_null() ? Value() : t.tape.constant(tensor(c.at("mask"), DType::f32));
  const Quantized out = t.step(z, mask);
  const Value commitment = out.loss("commitment");
  Program program = compile(t.tape, {out.z_q, out.indices, commitment}, backend(on));
  Tape after;
  const Value codes = t.quantizer.decode(after.constant(Tensor::of<std::int32_t>({6}, {0, 1, 2, 3, 4, 5})));
  Program look_up = compile(after, {codes}, backend(on));
  for (const Json& step : steps) {
    program.feed(z, tensor(step.at("z"), DType::f32));
    program.run();
    look_up.run();
    expect_near(program.fetch(out.z_q), step.at("z_q"), kTolerance, 1, "z_q");
    if (!mask) expect_near(program.fetch(out.indices), step.at("indices"), 0, 0, "indices");
    EXPECT_NEAR(program.fetch_scalar(commitment), step.at("commitment").get<double>(), kTolerance);
    expect_near(look_up.fetch(codes), step.at("codes"), kTolerance, 1, "codes");
    expect_near(t.root.find("vq.count").value(), step.at("count"), kTolerance, 1, "count");
    expect_near(t.root.find("vq.sum").value(), step.at("sum"), kTolerance, 1, "sum");
  }
}

void check_simvq(const Json& c, std::string_view on) {
  Trained t(c, "simvq", "frozen");
  Variable& w = t.root.find("vq.transform");
  w.set(tensor(c.at("transform"), DType::f32));
  const Value z = t.tape.constant(tensor(c.at("z"), DType::f32)), g = t.tape.constant(tensor(c.at("g"), DType::f32));
  const Quantized out = t.step(z, {});
  const Value loss = out.total_loss();
  const std::vector<Value> grads = gradients(sum(g * out.z_q) + loss, {z, t.tape.read(w)});
  Program program = compile(t.tape, {out.z_q, out.indices, loss, grads[0], grads[1]}, backend(on));
  program.run();
  expect_near(program.fetch(out.z_q), c.at("z_q"), kTolerance, 1, "z_q");
  expect_near(program.fetch(out.indices), c.at("indices"), 0, 0, "indices");
  EXPECT_NEAR(program.fetch_scalar(loss), c.at("loss").get<double>(), kTolerance);
  expect_near(program.fetch(grads[0]), c.at("gradient_z"), kTolerance, 1, "gradient in z");
  expect_near(program.fetch(grads[1]), c.at("gradient_transform"), kTolerance, 1, "gradient in W");
}

void check_inner_step(const Json& c, std::string_view on) {
  Trained t(c, "alternating", "start");
  const Quantized out = t.step(t.tape.constant(tensor(c.at("z"), DType::f32)), {});
  Program program = compile(t.tape, {out.indices}, backend(on));
  program.run();
  expect_near(program.fetch(out.indices), c.at("indices"), 0, 0, "indices");
  expect_near(t.quantizer.codebook().value(), c.at("codes"), kTolerance, 1, "codes");
}

TEST(Goldens, CodebookRulesAgreeWithPyTorch) {
  const Json file = golden("codebook_rules.json");
  ASSERT_EQ(file.at("cases").size(), 5u);
  for (const Json& c : file.at("cases"))
    for (const std::string_view on : backend_names()) {
      SCOPED_TRACE(c.at("case").get<std::string>() + ", " + std::string(on));
      const std::string rule = c.at("rule");
      if (rule == "simvq") check_simvq(c, on);
      if (rule == "alternating") check_inner_step(c, on);
      if (rule != "ema") continue;
      check_ema(c, "ema", on);
      check_ema(c, "ema-loss", on);
    }
  for (const Setting& s : settings()) {
    Tape tape;
    const Value loss = orthogonal_loss(tape.constant(tensor(file.at("orthogonal").at("codes"), s.dtype)));
    EXPECT_NEAR(eval(loss, backend(s.backend)).item(), file.at("orthogonal").at("loss").get<double>(), s.tolerance);
  }
}

}  // namespace
}  // namespace sg::test
