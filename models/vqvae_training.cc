#include "models/vqvae_training.h"

#include <algorithm>

#include "core/autodiff.h"
#include "core/program.h"
#include "models/losses.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

TensorType images_type(const VqVaeConfig& c, std::int64_t n) {
  return {DType::f32, {n, c.height, c.width, c.channels}};
}
// Indices numbered over all books: book b has the numbers from b K on.
Value book_indices(const Quantizer& q, Value indices) {
  if (q.books() == 1) return indices;
  Tensor offsets({DType::i32, {q.books()}});
  for (std::int64_t b = 0; b < q.books(); ++b) offsets.set(b, static_cast<double>(b * q.codes()));
  return indices + indices.tape->constant(offsets);
}

Value norm_of(Value x) { return sqrt(sum(square(x))); }

}  // namespace

VqVaeTraining::VqVaeTraining(VqVae& model)
    : model_(model),
      optimizer_(optimizer_by_name(model.config().optimizer, model.parameters(), model.config().weight_decay)),
      random_("training.random", Tensor::of<std::int32_t>({2}, {static_cast<std::int32_t>(model.config().seed), 0})),
      ring_("training.ring",
            Tensor({DType::f32, {model.config().window, std::max<std::int64_t>(model.quantizer().all_codes(), 1)}})),
      slot_("training.slot", Tensor({DType::i32, {}})),
      step_("training.step", Tensor({DType::i32, {}})) {}

std::vector<Variable*> VqVaeTraining::checkpoint() {
  std::vector<Variable*> all = model_.variables();
  for (Variable* v : optimizer_->state()) all.push_back(v);
  all.insert(all.end(), {&random_, &step_});
  if (model_.quantizer().all_codes() > 0) all.insert(all.end(), {&ring_, &slot_});
  return all;
}

std::vector<Value> TrainStep::fetches() const {
  std::vector<Value> values;
  for (const NamedValue& m : metrics) values.push_back(m.value);
  return values;
}

Value TrainStep::metric(std::string_view name) const {
  for (const NamedValue& m : metrics)
    if (m.name == name) return m.value;
  fail(ErrorKind::usage, "training step: no metric '{}'", name);
}

TrainStep build_train_step(Tape& tape, VqVaeTraining& training, IfUnreachable untrained) {
  VqVae& model = training.model();
  Quantizer& quantizer = model.quantizer();
  const VqVaeConfig& c = model.config();
  TrainStep step;
  step.images = tape.input("images", images_type(c, c.batch));
  step.learning_rate = tape.input("learning_rate", {DType::f32, {}});

  const QuantizeContext context{.random = tape.read(training.random()),
                                .progress = run_progress(tape.read(training.step()), c.steps),
                                .mask = {}};
  const VqVae::Output out = model(step.images, context);
  const Quantized& quantized = step.quantized = out.quantized;
  step.reconstructions = out.images;
  step.reconstruction = mean_squared_error(out.images, step.images);

  // The reconstruction is differentiated here and again as a part of the total; the compiler shares what is the same.
  Value through_quantizer = step.reconstruction;
  if (const Value term = quantizer.estimator_term(step.reconstruction, quantized))
    through_quantizer = through_quantizer + term;
  const Value from_reconstruction = gradient(through_quantizer, out.latents, IfUnreachable::zero);
  step.terms = {{"reconstruction", through_quantizer}};
  Value gamma, losses;
  for (const LossTerm& term : quantized.losses) {
    Value weighted = term.weight * term.value;
    if (c.balance_commitment && term.name == "commitment") {
      gamma = term.weight *
              stop_gradient(norm_of(from_reconstruction) / (norm_of(gradient(term.value, out.latents)) + 1e-12));
      weighted = gamma * term.value;
    }
    if (term.weight == 0) continue;
    losses = losses ? losses + weighted : weighted;
    step.terms.push_back({term.name, weighted});
  }
  step.total = losses ? through_quantizer + losses : through_quantizer;
  const Value from_losses = losses ? gradient(losses, out.latents, IfUnreachable::zero) : Value();

  const std::span<Variable* const> parameters = training.optimizer().parameters();
  std::vector<Value> wrt;
  for (Variable* p : parameters) wrt.push_back(tape.read(*p));
  const ClippedGradients clipped = clip_by_global_norm(gradients(step.total, wrt, untrained), c.clip);

  StepUpdates updates(tape);
  const std::vector<Value> updated = training.optimizer().update(tape, clipped.grads, step.learning_rate);
  for (std::size_t i = 0; i < parameters.size(); ++i) updates.set(*parameters[i], updated[i]);
  quantizer.update(quantized, context, updates);
  updates.commit();

  const Scope scope(tape, "statistics");
  tape.assign(training.step(), tape.read(training.step()) + 1);
  advance_random_state(tape, training.random());
  step.metrics = {{"loss", step.total}, {"reconstruction", step.reconstruction}};
  for (const LossTerm& term : quantized.losses) step.metrics.push_back({term.name, term.value});
  const auto log = [&](const std::vector<NamedValue>& more) {
    step.metrics.insert(step.metrics.end(), more.begin(), more.end());
  };
  if (quantizer.all_codes() > 0) {
    const Value counts = book_histogram(quantizer, quantized.indices);
    const Value window = windowed_counts(tape, training.ring(), training.slot(), counts);
    log({{"usage", usage(counts)},
         {"perplexity", perplexity(counts, quantizer.books())},
         {"usage_window", usage(window)},
         {"perplexity_window", perplexity(window, quantizer.books())}});
    log(row_statistics(quantized.z, quantized.q).named());
  }
  log({{"grad_reconstruction", norm_of(from_reconstruction)}});
  if (from_losses) log({{"grad_commitment", norm_of(from_losses)}});
  log({{"grad_norm", clipped.norm}});
  if (gamma) step.metrics.push_back({"gamma", gamma});
  return step;
}

Audit audit_step(const Tape& tape, const TrainStep& step, const VqVaeTraining& training) {
  return audit(tape, step.terms, training.optimizer().parameters(), training.model().state());
}

std::vector<FlowExpectation> flow_contract(const TrainStep& step, const VqVae& model) {
  std::vector<FlowExpectation> wanted{{"reconstruction", "decoder.*", FlowIs::live},
                                      {"reconstruction", "encoder.*", FlowIs::live}};
  std::vector<std::string> codebooks;
  for (const Variable* v : model.quantizer().parameters())
    if (v->name().ends_with(".codebook")) codebooks.push_back(v->name());
  for (const std::string& codebook : codebooks)
    if (!model.config().quantizer.estimator.def.reaches_codes)
      wanted.push_back({"reconstruction", codebook, FlowIs::not_live});
  for (const AuditTerm& term : step.terms) {
    if (term.name == "reconstruction") continue;
    wanted.push_back({term.name, "decoder.*", FlowIs::not_live});
    const bool trains_codes = term.name == "codebook";
    if (!trains_codes && term.name != "commitment") continue;
    wanted.push_back({term.name, "encoder.*", trains_codes ? FlowIs::not_live : FlowIs::live});
    for (const std::string& codebook : codebooks)
      wanted.push_back({term.name, codebook, trains_codes ? FlowIs::live : FlowIs::not_live});
  }
  return wanted;
}

std::vector<Value> Evaluation::fetches() const {
  if (!counts) return {squared_error, reconstructions};
  return {squared_error, quantization_error, relative_error, counts, reconstructions};
}

Evaluation build_evaluation(Tape& tape, const VqVae& model, std::int64_t batch) {
  const Value images = tape.input("images", images_type(model.config(), batch));
  const Value weights = tape.input("weights", {DType::f32, {batch}});
  const VqVae::Output out = model(images);
  return evaluate_reconstructions(images, weights, out.images, out.quantized, model.quantizer());
}

Evaluation evaluate_reconstructions(Value images, Value weights, Value reconstructions, const Quantized& quantized,
                                    const Quantizer& quantizer) {
  const std::int64_t batch = images.shape()[0];
  Evaluation e;
  e.images = images;
  e.weights = weights;
  e.reconstructions = reconstructions;

  const Scope scope(*images.tape, "evaluation");
  e.squared_error = sum(weights * sum(square(reconstructions - images), {1, 2, 3}));
  if (quantizer.all_codes() == 0) return e;
  e.rows = quantized.z.shape()[0] / batch;
  e.width = quantized.z.shape()[1];
  const auto repeated = [&](std::int64_t times) {
    return reshape(broadcast(reshape(weights, {batch, 1}), {batch, times}), Shape{batch * times});
  };
  const Value error = sum(square(quantized.z - quantized.q), {-1});
  e.quantization_error = sum(repeated(e.rows) * error);
  e.relative_error = sum(repeated(e.rows) * error / maximum(sum(square(quantized.z), {-1}), 1e-30));
  const std::int64_t n = quantized.indices.shape().elements(), k = quantizer.all_codes();
  const Value indices = reshape(book_indices(quantizer, quantized.indices), Shape{n});
  e.counts = reshape(scatter_add_rows(indices, reshape(repeated(n / batch), Shape{n, 1}), k), Shape{k});
  return e;
}

Encoding build_encode(Tape& tape, const VqVae& model, std::int64_t batch) {
  Encoding e;
  e.images = tape.input("images", images_type(model.config(), batch));
  e.latents = model.encode(e.images);
  e.tokens = model.quantizer().encode(e.latents);
  return e;
}

Decoding build_decode(Tape& tape, const VqVae& model, std::int64_t batch) {
  Decoding d;
  d.tokens = tape.input("tokens", {DType::i32, model.token_shape(batch)});
  d.images = model.decode(d.tokens);
  d.tokens_again = model.quantizer().requantize(d.tokens);
  return d;
}

void initialize_codebook(VqVae& model, const Tensor& images, Backend& backend) {
  if (!model.quantizer().wants_rows()) return;
  Tape tape;
  const Encoding encoding = build_encode(tape, model, images.shape().rank() == 0 ? 1 : images.shape()[0]);
  initialize_codebook(model.quantizer(), encoding, images, backend);
}

void initialize_codebook(Quantizer& quantizer, const Encoding& encoding, const Tensor& images, Backend& backend) {
  const Value rows = flatten_rows(encoding.latents);
  Program program = compile(*rows.tape, {rows}, backend);
  program.feed(encoding.images, images);
  program.run();
  quantizer.initialize(program.fetch(rows), backend);
}

Value book_histogram(const Quantizer& quantizer, Value indices) {
  return histogram(book_indices(quantizer, indices), quantizer.all_codes());
}

Value run_progress(Value step, std::int64_t steps) {
  if (steps <= 0) return step.tape->constant(1.0, {DType::f32, {}});
  return minimum(cast(step, DType::f32) / static_cast<double>(steps), 1.0);
}

}  // namespace sg
