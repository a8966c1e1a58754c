#include "models/vqvae_training.h"

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
TensorType tokens_type(const VqVaeConfig& c, std::int64_t n) {
  return {DType::i32, {n, c.latent_height(), c.latent_width()}};
}

}  // namespace

VqVaeTraining::VqVaeTraining(VqVae& model)
    : model_(model),
      optimizer_(optimizer_by_name(model.config().optimizer, model.parameters(), model.config().weight_decay)),
      random_("training.random", Tensor::of<std::int32_t>({2}, {static_cast<std::int32_t>(model.config().seed), 0})),
      ring_("training.ring", Tensor({DType::f32, {model.config().window, model.config().codes}})),
      slot_("training.slot", Tensor({DType::i32, {}})),
      step_("training.step", Tensor({DType::i32, {}})) {}

std::vector<Variable*> VqVaeTraining::checkpoint() {
  std::vector<Variable*> all = model_.variables();
  for (Variable* v : optimizer_->state()) all.push_back(v);
  all.insert(all.end(), {&random_, &ring_, &slot_, &step_});
  return all;
}

std::vector<Value> TrainStep::fetches() const {
  std::vector<Value> values;
  for (const NamedValue& m : metrics) values.push_back(m.value);
  return values;
}

TrainStep build_train_step(Tape& tape, VqVaeTraining& training) {
  const VqVae& model = training.model();
  const VqVaeConfig& c = model.config();
  TrainStep step;
  step.images = tape.input("images", images_type(c, c.batch));
  step.learning_rate = tape.input("learning_rate", {DType::f32, {}});

  const VqVae::Output out = model(step.images);
  const Quantized& quantized = out.quantized;
  step.reconstructions = out.images;
  step.reconstruction = mean_squared_error(out.images, step.images);
  step.codebook = quantized.codebook_loss;
  step.commitment = quantized.commitment_loss;
  const Value weighted_commitment = c.gamma * step.commitment;
  step.total = step.reconstruction + weighted_commitment;
  const bool by_loss = model.quantizer().trained_by_loss();
  if (by_loss) step.total = step.total + c.beta * step.codebook;

  // The reconstruction reaches the rest only through z_q, and z_q reaches the loss only through the reconstruction: its
  // gradient at z_q is part of the total's backward, and the decoder is not differentiated a second time.
  const std::span<Variable* const> parameters = training.optimizer().parameters();
  std::vector<Value> wrt;
  for (Variable* p : parameters) wrt.push_back(tape.read(*p));
  wrt.push_back(quantized.z_q);
  std::vector<Value> grads = gradients(step.total, wrt);
  const Value at_z_q = grads.back();
  grads.pop_back();
  const Value one_z_q[] = {quantized.z_q}, one_grad[] = {at_z_q}, one_row[] = {out.rows};
  const Value from_reconstruction = vjp(one_z_q, one_grad, one_row, IfUnreachable::zero).front();
  const Value from_commitment = gradient(weighted_commitment, out.rows);

  Value norm;
  if (c.clip > 0) {
    ClippedGradients clipped = clip_by_global_norm(grads, c.clip);
    grads = std::move(clipped.grads);
    norm = clipped.norm;
  } else {
    norm = global_norm(grads);
  }

  const std::vector<Value> updated = training.optimizer().update(tape, grads, step.learning_rate);
  VectorQuantizer& quantizer = training.model().quantizer();
  Value trained_codebook;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i] == &quantizer.codebook())
      trained_codebook = updated[i];
    else
      tape.assign(*parameters[i], updated[i]);
  }
  const Value new_codebook = quantizer.update(quantized, trained_codebook, tape.read(training.random()));
  tape.assign(quantizer.codebook(), new_codebook);

  const Scope scope(tape, "statistics");
  const Value counts = histogram(quantized.indices, c.codes);
  const Value window = windowed_counts(tape, training.ring(), training.slot(), counts);
  const RowStatistics rows = row_statistics(quantized.z, quantized.q);
  tape.assign(training.step(), tape.read(training.step()) + 1);
  advance_random_state(tape, training.random());
  step.metrics = {{"loss", step.total},
                  {"reconstruction", step.reconstruction},
                  {"codebook", step.codebook},
                  {"commitment", step.commitment},
                  {"usage", usage(counts)},
                  {"perplexity", perplexity(counts)},
                  {"usage_window", usage(window)},
                  {"perplexity_window", perplexity(window)},
                  {"relative_error", rows.relative_error},
                  {"norm_ratio", rows.norm_ratio.mean},
                  {"norm_ratio_p5", rows.norm_ratio.low},
                  {"norm_ratio_p95", rows.norm_ratio.high},
                  {"angle", rows.angle.mean},
                  {"angle_p5", rows.angle.low},
                  {"angle_p95", rows.angle.high},
                  {"grad_reconstruction", sqrt(sum(square(from_reconstruction)))},
                  {"grad_commitment", sqrt(sum(square(from_commitment)))},
                  {"grad_norm", norm}};
  return step;
}

std::vector<Value> Evaluation::fetches() const {
  return {squared_error, quantization_error, relative_error, counts, reconstructions};
}

Evaluation build_evaluation(Tape& tape, const VqVae& model, std::int64_t batch) {
  const VqVaeConfig& c = model.config();
  Evaluation e;
  e.images = tape.input("images", images_type(c, batch));
  e.weights = tape.input("weights", {DType::f32, {batch}});
  const VqVae::Output out = model(e.images);
  const Quantized& quantized = out.quantized;
  e.reconstructions = out.images;

  const Scope scope(tape, "evaluation");
  e.squared_error = sum(e.weights * sum(square(out.images - e.images), {1, 2, 3}));
  const std::int64_t rows = c.latent_height() * c.latent_width();
  const Value row_weights = reshape(broadcast(reshape(e.weights, {batch, 1}), {batch, rows}), Shape{batch * rows});
  const Value error = sum(square(quantized.z - quantized.q), {-1});
  e.quantization_error = sum(row_weights * error);
  e.relative_error = sum(row_weights * error / maximum(sum(square(quantized.z), {-1}), 1e-30));
  e.counts = reshape(scatter_add_rows(quantized.indices, reshape(row_weights, Shape{batch * rows, 1}), c.codes),
                     Shape{c.codes});
  return e;
}

Encoding build_encode(Tape& tape, const VqVae& model, std::int64_t batch) {
  const VqVaeConfig& c = model.config();
  Encoding e;
  e.images = tape.input("images", images_type(c, batch));
  e.rows = model.encode(e.images);
  e.tokens = reshape(model.quantizer().nearest(e.rows), tokens_type(c, batch).shape);
  return e;
}

Decoding build_decode(Tape& tape, const VqVae& model, std::int64_t batch) {
  const VqVaeConfig& c = model.config();
  Decoding d;
  d.tokens = tape.input("tokens", tokens_type(c, batch));
  d.images = model.decode(d.tokens);
  const Value rows = reshape(model.quantizer().lookup(d.tokens), std::vector<std::int64_t>{-1, c.code_dim});
  d.tokens_again = reshape(model.quantizer().nearest(rows), d.tokens.shape());
  return d;
}

void initialize_codebook(VqVae& model, const Tensor& images, Backend& backend) {
  if (model.config().init != CodebookInit::kmeans) return;
  Tape tape;
  const Encoding encoding = build_encode(tape, model, images.shape().rank() == 0 ? 1 : images.shape()[0]);
  Program program = compile(tape, {encoding.rows}, backend);
  program.feed(encoding.images, images);
  program.run();
  model.quantizer().initialize(program.fetch(encoding.rows), backend);
}

}  // namespace sg
