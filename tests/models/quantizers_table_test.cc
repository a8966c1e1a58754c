// What every row of the quantizer table promises (models/quantizers/quantizer.h), asserted for each by its name: rows
// that are added later are tested without another line here.
#include <cmath>
#include <map>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "models/init.h"
#include "models/quantizers/quantizer.h"
#include "models/vqvae_training.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/models/support.h"

namespace sg {
namespace {

using namespace models_test;

QuantizerConfig small(const std::string& name) {
  QuantizerConfig c;
  c.quantizer = name;
  c.codes = 16;
  c.dim = 8;
  c.heads = 2;
  c.levels = 3;
  c.code_dim = 4;
  c.side = 4;
  c.grid = {4, 4};
  c.init = CodebookInit::normal;
  c.normal_deviation = 0.5;
  return c;
}

// A quantizer of the row and a batch for it.
struct Fixture {
  explicit Fixture(const std::string& name) : Fixture(small(name)) {}
  explicit Fixture(const QuantizerConfig& config) : quantizer(make_quantizer(root, "quantizer", config)) {}
  Value input(Tape& tape, std::vector<std::int64_t> leading) {
    leading.push_back(quantizer->dim());
    return tape.input("z", {DType::f32, Shape(leading)});
  }
  Module root{5};
  std::unique_ptr<Quantizer> quantizer;
};

QuantizeContext training(Tape& tape, Value mask = {}) {
  return {.random = tape.constant(Tensor::of<std::int32_t>({2}, {3, 0})), .progress = {}, .mask = mask};
}

Tensor rows_of(const Shape& shape, std::uint32_t seed = 1) { return normal_init(shape, 0, 1, seed, "rows"); }

// Leading extents of z: rows, sequences, maps, volumes. A row of the table whose definition knows square maps only gets
// those.
std::vector<std::vector<std::int64_t>> maps(const std::string& name) {
  if (name == "multi-scale") return {{2, 4, 4}};
  return {{6}, {2, 5}, {2, 4, 4}, {2, 2, 3, 2}};
}

TEST(QuantizerTable, IndicesAndOutputsHaveTheirShapesAndRanges) {
  for (const std::string& name : quantizer_names())
    for (const auto& leading : maps(name)) {
      SCOPED_TRACE(name + " " + to_string(Shape(leading)));
      Fixture f(name);
      Tape tape;
      const Value z = f.input(tape, leading);
      const Quantized out = (*f.quantizer)(z);
      EXPECT_EQ(out.z_q.type(), z.type());
      ASSERT_EQ(out.indices.type(), (TensorType{DType::i32, f.quantizer->index_shape(z.shape())}));
      EXPECT_EQ(out.z.type(), out.q.type());
      ASSERT_EQ(out.z.shape().rank(), 2);
      EXPECT_EQ(out.z.shape()[0] % leading[0], 0);
      EXPECT_GT(f.quantizer->bits_per_row(), 0);
      std::map<std::string, int> names;
      for (const LossTerm& term : out.losses) EXPECT_EQ(++names[term.name], 1) << term.name;
      const Tensor indices = run_once(tape, {out.indices}, {{z, rows_of(z.shape())}})[0];
      for (const double i : numbers(indices)) {
        EXPECT_GE(i, 0);
        EXPECT_LT(i, f.quantizer->codes());
      }
    }
}

TEST(QuantizerTable, RowsOfAnotherWidthAreRefused) {
  for (const std::string& name : quantizer_names()) {
    SCOPED_TRACE(name);
    Fixture f(name);
    Tape tape;
    const Value z = tape.input("z", {DType::f32, {2, 4, 4, f.quantizer->dim() + 1}});
    expect_error(ErrorKind::shape, {"quantizer"}, [&] { (*f.quantizer)(z); });
  }
}

TEST(QuantizerTable, TrainingComputesForwardWhatEvaluationDoes) {
  for (const std::string& name : quantizer_names())
    for (const char* estimator : {"ste", "rotation"})
      for (const std::string_view on : backend_names()) {
        SCOPED_TRACE(fmt::format("{} {} {}", name, estimator, on));
        QuantizerConfig config = small(name);
        config.estimator = estimator;
        Fixture f(config);
        Tape tape;
        const Value z = f.input(tape, {2, 4, 4});
        const Quantized a = (*f.quantizer)(z, training(tape)), b = (*f.quantizer)(z);
        const std::vector<Tensor> t =
            run_once(tape, {a.z_q, b.z_q, a.indices, b.indices}, {{z, rows_of(z.shape())}}, on);
        expect_same_bits(t[0], t[1], "z_q");
        expect_same_bits(t[2], t[3], "indices");
      }
}

TEST(QuantizerTable, IndicesDecodeToTheirOutputAndAreFoundAgain) {
  for (const std::string& name : quantizer_names())
    for (const std::string_view on : backend_names())
      for (const auto& leading : maps(name)) {
        SCOPED_TRACE(fmt::format("{} {} {}", name, on, to_string(Shape(leading))));
        Fixture f(name);
        Tape encoding, decoding;
        const Value z = f.input(encoding, leading);
        const Quantized out = (*f.quantizer)(z);
        const std::vector<Tensor> encoded =
            run_once(encoding, {out.z_q, f.quantizer->encode(z)}, {{z, rows_of(z.shape())}}, on);
        const Value tokens = decoding.input("tokens", encoded[1].type());
        const std::vector<Tensor> decoded = run_once(
            decoding, {f.quantizer->decode(tokens), f.quantizer->requantize(tokens)}, {{tokens, encoded[1]}}, on);
        expect_same_bits(decoded[0], encoded[0], "z_q");
        expect_same_bits(decoded[1], encoded[1], "indices");
      }
}

TEST(QuantizerTable, AnIndexOutOfRangeIsAnError) {
  for (const std::string& name : quantizer_names()) {
    SCOPED_TRACE(name);
    Fixture f(name);
    Tape tape;
    const Value tokens = tape.input("tokens", {DType::i32, f.quantizer->index_shape({2, 4, 4, f.quantizer->dim()})});
    Tensor bad(tokens.type());
    bad.set(bad.elements() - 1, static_cast<double>(f.quantizer->codes()));
    expect_error(ErrorKind::attribute, {}, [&] { run_once(tape, {f.quantizer->decode(tokens)}, {{tokens, bad}}); });
  }
}

// What a training step with these rows gives: losses, gradients, the state after it.
struct Step {
  std::map<std::string, Tensor> values;
  Tensor z_q, indices;
};
Step step_of(const std::string& name, const Tensor& rows, const Tensor* mask, std::int64_t batch) {
  Fixture f(name);
  Tape tape;
  const Value z = tape.input("z", rows.type());
  std::vector<Feed> feeds{{z, rows}};
  Value mask_in;
  if (mask != nullptr) {
    mask_in = tape.input("mask", mask->type());
    feeds.push_back({mask_in, *mask});
  }
  const QuantizeContext context = training(tape, mask_in);
  const Quantized out = (*f.quantizer)(z, context);
  std::vector<std::pair<std::string, Value>> wanted;
  for (const LossTerm& term : out.losses) wanted.emplace_back(term.name, term.value);
  // A loss of z_q in which padding would show.
  const Value through = sum(square(out.z_q)) + sum(out.z_q);
  const Value losses = out.total_loss();
  const Value total = losses ? through + losses : through;
  wanted.emplace_back("total", total);
  wanted.emplace_back("d/dz", slice_axis(gradient(total, z, IfUnreachable::zero), 0, 0, batch));
  for (Variable* v : f.root.parameters())
    wanted.emplace_back("d/d" + v->name(), gradient(total, tape.read(*v), IfUnreachable::zero));
  StepUpdates updates(tape);
  f.quantizer->update(out, context, updates);
  for (Variable* v : f.root.variables())
    if (updates.has(*v)) wanted.emplace_back(v->name(), updates.next(*v));
  std::vector<Value> fetches{out.z_q, out.indices};
  for (const auto& [what, value] : wanted) fetches.push_back(value);
  const std::vector<Tensor> t = exactly(tape, fetches, feeds);
  Step step;
  step.z_q = t[0];
  step.indices = t[1];
  for (std::size_t i = 0; i < wanted.size(); ++i) step.values[wanted[i].first] = t[i + 2];
  return step;
}

TEST(QuantizerTable, PaddingCountsNowhere) {
  for (const std::string& name : quantizer_names()) {
    SCOPED_TRACE(name);
    const std::int64_t width = Fixture(name).quantizer->dim();
    for (auto leading : maps(name)) {
      SCOPED_TRACE(to_string(Shape(leading)));
      leading.push_back(width);
      const Shape shape(leading);
      // The same rows, and after them as many again of what must not matter.
      leading[0] *= 2;
      const Shape padded_shape(leading);
      leading.pop_back();
      const Tensor rows = rows_of(shape);
      Tensor padded(padded_shape.elements() > 0 ? TensorType{DType::f32, padded_shape} : TensorType{});
      Tensor mask({DType::f32, Shape(leading)});
      for (std::int64_t i = 0; i < padded.elements(); ++i) padded.set(i, i < rows.elements() ? rows.at(i) : 1e3);
      for (std::int64_t i = 0; i < mask.elements() / 2; ++i) mask.set(i, 1);

      const Step a = step_of(name, rows, nullptr, shape[0]), b = step_of(name, padded, &mask, shape[0]);
      for (std::int64_t i = 0; i < padded.elements(); ++i)
        ASSERT_EQ(b.z_q.at(i), i < rows.elements() ? a.z_q.at(i) : 0) << "z_q " << i;
      for (std::int64_t i = 0; i < a.indices.elements(); ++i) ASSERT_EQ(b.indices.at(i), a.indices.at(i));
      for (const auto& [what, value] : a.values) {
        const Tensor& other = b.values.at(what);
        ASSERT_EQ(other.type(), value.type()) << what;
        for (std::int64_t i = 0; i < value.elements(); ++i)
          ASSERT_NEAR(other.at(i), value.at(i), 1e-12 * std::max(1.0, std::abs(value.at(i)))) << what << " " << i;
      }
    }
  }
}

TEST(QuantizerTable, AGradientReachesTheInputAndEveryParameter) {
  for (const std::string& name : quantizer_names()) {
    SCOPED_TRACE(name);
    Fixture f(name);
    Tape tape;
    const Value z = f.input(tape, {2, 4, 4});
    const Quantized out = (*f.quantizer)(z, training(tape));
    Value total = sum(square(out.z_q - 1.0));
    if (const Value term = f.quantizer->estimator_term(total, out)) total = total + term;
    if (const Value losses = out.total_loss()) total = total + losses;
    std::vector<Value> wrt{z};
    for (Variable* v : f.root.parameters()) wrt.push_back(tape.read(*v));
    const std::vector<GradientFlow> flows = gradient_flows(total, wrt);
    for (std::size_t i = 0; i < wrt.size(); ++i)
      EXPECT_EQ(flows[i].state, GradientFlow::State::live) << tape.name_of(wrt[i].id);
    std::vector<Value> norms;
    for (const Value g : gradients(total, wrt)) norms.push_back(sqrt(sum(square(g))));
    const std::vector<Tensor> t = run_once(tape, norms, {{z, rows_of(z.shape())}});
    for (std::size_t i = 0; i < wrt.size(); ++i) EXPECT_GT(t[i].item(), 0) << tape.name_of(wrt[i].id);
  }
}

TEST(QuantizerTable, EachTrainsInTheVqVaeByItsName) {
  for (const std::string& name : quantizer_names())
    for (const std::string_view on : backend_names()) {
      SCOPED_TRACE(fmt::format("{} {}", name, on));
      VqVaeConfig c;
      c.height = c.width = 8;
      c.channels = 2;
      c.hidden = 8;
      c.residual = 2;
      c.residual_blocks = 1;
      c.quantizer = small(name);
      c.batch = 4;
      c.lr = 3e-3;
      c.window = 4;
      VqVae model(c);
      VqVaeTraining training(model);
      Tape tape;
      const TrainStep step = build_train_step(tape, training);
      Program program = compile(tape, step.fetches(), backend(on));
      Tensor images({DType::f32, {c.batch, c.height, c.width, c.channels}});
      for (std::int64_t i = 0; i < images.elements(); ++i)
        images.set(i, 0.5 + 0.5 * std::sin(0.37 * static_cast<double>(i % 97)));
      program.feed(step.images, images);
      program.feed(step.learning_rate, floats({}, {static_cast<float>(c.lr)}));
      std::vector<double> reconstruction;
      for (int i = 0; i < 5; ++i) {
        program.run();
        for (const NamedValue& m : step.metrics) EXPECT_TRUE(std::isfinite(program.fetch_scalar(m.value))) << m.name;
        reconstruction.push_back(program.fetch_scalar(step.reconstruction));
      }
      for (std::size_t i = 1; i < reconstruction.size(); ++i)
        EXPECT_LT(reconstruction[i], reconstruction[i - 1]) << "step " << i;

      Tape evaluation;
      const Decoding decoding = build_decode(evaluation, model, 2);
      const Tensor tokens(decoding.tokens.type());
      const std::vector<Tensor> t = run_once(evaluation, {decoding.images}, {{decoding.tokens, tokens}}, on);
      EXPECT_EQ(t[0].shape(), Shape({2, 8, 8, 2}));
    }
}

}  // namespace
}  // namespace sg
