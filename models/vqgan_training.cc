#include "models/vqgan_training.h"

#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/random.h"
#include "ops/reduce.h"

namespace sg {
namespace {

constexpr double kLambdaEps = 1e-4, kLambdaMost = 1e4;

TensorType images_type(const VqGanConfig& c, std::int64_t n) {
  return {DType::f32, {n, c.height, c.width, c.channels}};
}

Value norm_of(Value x) { return sqrt(sum(square(x))); }

AdamOptions adam(const VqGanConfig& c, const char* name) {
  return {.beta1 = c.beta1, .beta2 = c.beta2, .eps = 1e-8, .weight_decay = 0, .name = name};
}

// `factor` from step `first` on, 0 before.
Value from_step(Value step, std::int64_t first, double factor) {
  return factor * cast(greater_equal(step, static_cast<double>(first)), DType::f32);
}

}  // namespace

VqGanTraining::VqGanTraining(VqGan& model, PerceptualDistance perceptual)
    : model_(model),
      perceptual_(std::move(perceptual)),
      root_(model.seed()),
      discriminator_(root_, "discriminator", model.config().channels, model.config().discriminator),
      generator_(model.parameters(), adam(model.config(), "optimizer")),
      discriminating_(discriminator_.parameters(), adam(model.config(), "discriminator_optimizer")),
      random_("training.random", Tensor::of<std::int32_t>({2}, {static_cast<std::int32_t>(model.config().seed), 0})),
      ring_("training.ring", Tensor({DType::f32, {model.config().window, model.quantizer().all_codes()}})),
      slot_("training.slot", Tensor({DType::i32, {}})),
      step_("training.step", Tensor({DType::i32, {}})) {}

std::vector<Variable*> VqGanTraining::parameters() {
  std::vector<Variable*> all = model_.parameters();
  for (Variable* v : discriminator_.parameters()) all.push_back(v);
  return all;
}

std::vector<Variable*> VqGanTraining::state() {
  std::vector<Variable*> all = model_.state();
  for (Variable* v : discriminator_.state()) all.push_back(v);
  return all;
}

std::vector<Variable*> VqGanTraining::checkpoint() {
  std::vector<Variable*> all = model_.variables();
  for (Variable* v : discriminator_.variables()) all.push_back(v);
  for (Optimizer* o : std::initializer_list<Optimizer*>{&generator_, &discriminating_})
    for (Variable* v : o->state()) all.push_back(v);
  all.insert(all.end(), {&random_, &ring_, &slot_, &step_});
  return all;
}

Value adaptive_weight(Operand nll_gradient, Operand adversarial_gradient) {
  const Value nll = norm_of(nll_gradient.value()), adversarial = norm_of(adversarial_gradient.value());
  return stop_gradient(clamp(nll / (adversarial + kLambdaEps), 0, kLambdaMost));
}

std::vector<Value> VqGanStep::fetches() const {
  std::vector<Value> values;
  for (const NamedValue& m : metrics) values.push_back(m.value);
  return values;
}

Value VqGanStep::metric(std::string_view name) const {
  for (const NamedValue& m : metrics)
    if (m.name == name) return m.value;
  fail(ErrorKind::usage, "training step: no metric '{}'", name);
}

VqGanStep build_train_step(Tape& tape, VqGanTraining& training, IfUnreachable untrained) {
  VqGan& model = training.model();
  Quantizer& quantizer = model.quantizer();
  const PatchDiscriminator& discriminator = training.discriminator();
  const VqGanConfig& c = model.config();
  VqGanStep step;
  step.images = tape.input("images", images_type(c, c.batch));
  step.learning_rate = tape.input("learning_rate", {DType::f32, {}});
  const Value done = tape.read(training.step());
  const QuantizeContext context{
      .random = tape.read(training.random()), .progress = run_progress(done, c.steps), .mask = {}};
  const Value generator_factor = from_step(done, c.disc_start, c.disc_factor);
  const Value discriminator_factor = from_step(done, c.disc_start - c.disc_warmup, c.disc_factor);
  StepUpdates updates(tape);

  const VqGan::Output out = model(step.images, context);
  const Quantized& quantized = step.quantized = out.quantized;
  step.reconstructions = out.images;

  // The generator's terms.
  const Value l1 = mean(abs(out.input - out.output));
  Value perceptual, nll = l1;
  if (training.perceptual() && c.perceptual_weight > 0) {
    perceptual = mean(training.perceptual()(out.input, out.output));
    nll = l1 + c.perceptual_weight * perceptual;
  }
  const Value adversarial = -mean(discriminator(out.output, {.updates = &updates, .stop_parameters = true}));

  // Each term's gradient in the decoder's output, from which both lambda's two gradients and the whole update go on.
  const Value from_nll = gradient(nll, out.output), from_adversarial = gradient(adversarial, out.output);
  const auto pulled_back = [&](Value cotangent, Value wrt) {
    return vjp(std::span(&out.output, 1), std::span(&cotangent, 1), std::span(&wrt, 1), IfUnreachable::zero)[0];
  };
  const Value last = tape.read(model.decoder().last_weight());
  const Value nll_last = pulled_back(from_nll, last), adversarial_last = pulled_back(from_adversarial, last);
  step.lambda = c.disc_weight * adaptive_weight(nll_last, adversarial_last);
  const Value weight = generator_factor * step.lambda;

  const Value weighted_adversarial = weight * adversarial;
  const Value through_quantizer = nll + weighted_adversarial;
  const Value estimator_term = quantizer.estimator_term(through_quantizer, quantized);
  step.terms = {{"reconstruction", estimator_term ? l1 + estimator_term : l1}};
  if (perceptual) step.terms.push_back({"perceptual", c.perceptual_weight * perceptual});
  step.terms.push_back({"adversarial", weighted_adversarial});
  Value losses;
  for (const LossTerm& term : quantized.losses) {
    if (term.weight == 0) continue;
    const Value weighted = term.weight * term.value;
    losses = losses ? losses + weighted : weighted;
    step.terms.push_back({term.name, weighted});
  }
  Value beside = losses;  // what does not go through the decoder's output
  if (estimator_term) beside = beside ? beside + estimator_term : estimator_term;
  step.total = beside ? through_quantizer + beside : through_quantizer;

  const auto read_all = [&](std::span<Variable* const> variables) {
    std::vector<Value> values;
    for (Variable* v : variables) values.push_back(tape.read(*v));
    return values;
  };
  std::vector<Value> outputs{out.output}, cotangents{from_nll + weight * from_adversarial};
  const Value from_output = cotangents[0];
  if (beside) {
    outputs.push_back(beside);
    cotangents.push_back(tape.constant(1.0, {DType::f32, {}}));
  }
  const auto generator = training.generator_optimizer().parameters();
  const std::vector<Value> generator_gradients = vjp(outputs, cotangents, read_all(generator), untrained);

  // The discriminator's loss: it sees images, and nothing of where they came from.
  const Value logits_real = discriminator(stop_gradient(out.input), {.updates = &updates});
  const Value logits_fake = discriminator(stop_gradient(out.output), {.updates = &updates});
  const Value hinge = 0.5 * (mean(relu(1.0 - logits_real)) + mean(relu(1.0 + logits_fake)));
  step.discriminator_loss = discriminator_factor * hinge;
  step.terms.push_back({"discriminator", step.discriminator_loss});
  const auto judges = training.discriminator_optimizer().parameters();
  const std::vector<Value> discriminator_gradients = gradients(step.discriminator_loss, read_all(judges), untrained);

  const auto advance = [&](Optimizer& optimizer, std::span<const Value> grads) {
    const std::vector<Value> updated = optimizer.update(tape, grads, step.learning_rate);
    for (std::size_t i = 0; i < updated.size(); ++i) updates.set(*optimizer.parameters()[i], updated[i]);
  };
  advance(training.generator_optimizer(), generator_gradients);
  advance(training.discriminator_optimizer(), discriminator_gradients);
  quantizer.update(quantized, context, updates);
  updates.commit();

  const Scope scope(tape, "statistics");
  const Value counts = book_histogram(quantizer, quantized.indices);
  const Value window = windowed_counts(tape, training.ring(), training.slot(), counts);
  tape.assign(training.step(), done + 1);
  advance_random_state(tape, training.random());
  const auto log = [&](const std::vector<NamedValue>& more) {
    step.metrics.insert(step.metrics.end(), more.begin(), more.end());
  };
  log({{"loss", step.total}, {"reconstruction", l1}});
  if (perceptual) log({{"perceptual", perceptual}});
  log({{"nll", nll},
       {"adversarial", adversarial},
       {"discriminator", hinge},
       {"logits_real", mean(logits_real)},
       {"logits_fake", mean(logits_fake)},
       {"lambda", step.lambda},
       {"disc_factor", generator_factor},
       {"disc_training", discriminator_factor}});
  for (const LossTerm& term : quantized.losses) log({{term.name, term.value}});
  log({{"usage", usage(counts)},
       {"perplexity", perplexity(counts, quantizer.books())},
       {"usage_window", usage(window)},
       {"perplexity_window", perplexity(window, quantizer.books())}});
  log(row_statistics(quantized.z, quantized.q).named());
  const Value from_losses = losses ? gradient(losses, out.latents, IfUnreachable::zero) : Value();
  log({{"grad_reconstruction", norm_of(pulled_back(from_output, out.latents))},
       {"grad_commitment", from_losses ? norm_of(from_losses) : tape.constant(0.0, {DType::f32, {}})},
       {"grad_nll_last", norm_of(nll_last)},
       {"grad_adversarial_last", norm_of(adversarial_last)},
       {"grad_norm", global_norm(generator_gradients)},
       {"grad_discriminator", global_norm(discriminator_gradients)}});
  return step;
}

Audit audit_step(const Tape& tape, const VqGanStep& step, VqGanTraining& training) {
  return audit(tape, step.terms, training.parameters(), training.state());
}

std::vector<FlowExpectation> flow_contract(const VqGanStep& step, VqGanTraining& training) {
  const VqGan& model = training.model();
  std::vector<FlowExpectation> wanted;
  std::vector<std::string> codebooks;
  for (const Variable* v : model.quantizer().parameters())
    if (v->name().ends_with(".codebook")) codebooks.push_back(v->name());
  for (const AuditTerm& term : step.terms) {
    const auto expect = [&](const std::string& variables, FlowIs flow) {
      wanted.push_back({term.name, variables, flow});
    };
    if (term.name == "discriminator") {
      for (const Variable* v : training.discriminator().parameters()) expect(v->name(), FlowIs::live);
      expect("encoder.*", FlowIs::not_live);
      expect("decoder.*", FlowIs::not_live);
      for (const Variable* v : model.quantizer().parameters()) expect(v->name(), FlowIs::not_live);
      continue;
    }
    expect("discriminator.*", FlowIs::not_live);
    if (term.name == "reconstruction" || term.name == "perceptual" || term.name == "adversarial") {
      expect("decoder.*", FlowIs::live);
      expect("encoder.*", FlowIs::live);
      if (!model.config().quantizer.estimator.def.reaches_codes)
        for (const std::string& codebook : codebooks) expect(codebook, FlowIs::not_live);
      continue;
    }
    expect("decoder.*", FlowIs::not_live);
    const bool trains_codes = term.name == "codebook";
    if (!trains_codes && term.name != "commitment") continue;
    expect("encoder.*", trains_codes ? FlowIs::not_live : FlowIs::live);
    for (const std::string& codebook : codebooks) expect(codebook, trains_codes ? FlowIs::live : FlowIs::not_live);
  }
  return wanted;
}

Evaluation build_evaluation(Tape& tape, const VqGan& model, std::int64_t batch) {
  const Value images = tape.input("images", images_type(model.config(), batch));
  const Value weights = tape.input("weights", {DType::f32, {batch}});
  const VqGan::Output out = model(images);
  return evaluate_reconstructions(images, weights, out.images, out.quantized, model.quantizer());
}

Encoding build_encode(Tape& tape, const VqGan& model, std::int64_t batch) {
  Encoding e;
  e.images = tape.input("images", images_type(model.config(), batch));
  e.latents = model.encode(e.images);
  e.tokens = model.quantizer().encode(e.latents);
  return e;
}

Decoding build_decode(Tape& tape, const VqGan& model, std::int64_t batch) {
  Decoding d;
  d.tokens = tape.input("tokens", {DType::i32, model.token_shape(batch)});
  d.images = model.decode(d.tokens);
  d.tokens_again = model.quantizer().requantize(d.tokens);
  return d;
}

void initialize_codebook(VqGan& model, const Tensor& images, Backend& backend) {
  if (!model.quantizer().wants_rows()) return;
  Tape tape;
  const Encoding encoding = build_encode(tape, model, images.shape().rank() == 0 ? 1 : images.shape()[0]);
  initialize_codebook(model.quantizer(), encoding, images, backend);
}

}  // namespace sg
