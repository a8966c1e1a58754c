#include "models/transformer_vq_training.h"

#include <numbers>
#include <numeric>

#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/index.h"
#include "ops/norm.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

bool remembers(const TransformerVqConfig& c) {
  return c.attention == KeyAttention::vq || c.attention == KeyAttention::vq_window;
}

Value progress(Tape& tape, TransformerVqTraining& training) {
  const std::int64_t steps = training.model().config().steps;
  if (steps <= 0) return tape.constant(1.0, {DType::f32, {}});
  return minimum(cast(tape.read(training.step()), DType::f32) / static_cast<double>(steps), 1.0);
}

// -log p of each token of (B,T+1) but the first: (B,T).
Value surprises(Value logits, Value tokens, std::int64_t t) {
  return cross_entropy(logits, slice_axis(tokens, 1, 1, t + 1));
}

Value mean_of(const std::vector<Value>& scalars) {
  Value total = scalars.front();
  for (std::size_t i = 1; i < scalars.size(); ++i) total = total + scalars[i];
  return total / static_cast<double>(scalars.size());
}

void add_code_metrics(TransformerVqStep& step, std::int64_t codes) {
  if (step.out.quantized.empty()) return;
  std::vector<Value> used, perplexities, errors;
  for (const Quantized& q : step.out.quantized) {
    const Value counts = code_counts(q.indices, codes);
    used.push_back(usage(counts));
    perplexities.push_back(perplexity(counts));
    errors.push_back(row_statistics(q.z, q.q).relative_error);
  }
  Value least = used.front();
  for (const Value u : used) least = minimum(least, u);
  const std::vector<NamedValue> more{{"commitment", step.out.commitment},
                                     {"usage_min", least},
                                     {"usage_mean", mean_of(used)},
                                     {"perplexity", mean_of(perplexities)},
                                     {"relative_error", mean_of(errors)}};
  step.metrics.insert(step.metrics.end(), more.begin(), more.end());
}

}  // namespace

TransformerVqTraining::TransformerVqTraining(TransformerVq& model)
    : model_(model),
      optimizer_(std::make_unique<AdamW>(model.parameters(), AdamOptions{.beta1 = 0.9,
                                                                         .beta2 = model.config().beta2,
                                                                         .eps = model.config().adam_eps,
                                                                         .weight_decay = model.config().weight_decay})),
      memory_(remembers(model.config()) ? std::make_unique<TransformerVqMemory>(model.config(), model.config().batch)
                                        : nullptr),
      random_("training.random", Tensor::of<std::int32_t>({2}, {static_cast<std::int32_t>(model.config().seed), 0})),
      step_("training.step", Tensor({DType::i32, {}})) {}

std::vector<Variable*> TransformerVqTraining::checkpoint() {
  std::vector<Variable*> all = model_.variables();
  for (Variable* v : optimizer_->state()) all.push_back(v);
  if (memory_)
    for (Variable* v : memory_->state()) all.push_back(v);
  all.insert(all.end(), {&random_, &step_});
  return all;
}

std::vector<Value> TransformerVqStep::fetches() const {
  std::vector<Value> values;
  for (const NamedValue& m : metrics) values.push_back(m.value);
  return values;
}

Value TransformerVqStep::metric(std::string_view name) const {
  for (const NamedValue& m : metrics)
    if (m.name == name) return m.value;
  fail(ErrorKind::usage, "training step: no metric '{}'", name);
}

TransformerVqStep build_train_step(Tape& tape, TransformerVqTraining& training, IfUnreachable untrained) {
  TransformerVq& model = training.model();
  const TransformerVqConfig& c = model.config();
  TransformerVqStep step;
  step.tokens = tape.input("tokens", {DType::i32, {c.batch, c.update + 1}});
  step.learning_rate = tape.input("learning_rate", {DType::f32, {}});
  const QuantizeContext context{
      .random = tape.read(training.random()), .progress = progress(tape, training), .mask = {}};
  step.out = model(slice_axis(step.tokens, 1, 0, c.update), context, training.memory());
  step.likelihood = mean(surprises(step.out.logits, step.tokens, c.update));

  Value through = step.likelihood;
  for (std::size_t i = 0; i < step.out.quantized.size(); ++i)
    if (const Value term = model.quantizers()[i]->estimator_term(step.likelihood, step.out.quantized[i]))
      through = through + term;
  step.terms = {{"likelihood", through}};
  if (step.out.commitment && c.commitment > 0) step.terms.push_back({"commitment", c.commitment * step.out.commitment});
  for (const Quantized& q : step.out.quantized)
    for (const LossTerm& term : q.losses)
      if (term.weight != 0 && term.name != "commitment") {
        const Value weighted = term.weight * term.value;
        AuditTerm* same = nullptr;
        for (AuditTerm& t : step.terms)
          if (t.name == term.name) same = &t;
        if (same != nullptr)
          same->loss = same->loss + weighted;
        else
          step.terms.push_back({term.name, weighted});
      }
  for (const AuditTerm& term : step.terms) step.total = step.total ? step.total + term.loss : term.loss;

  const std::span<Variable* const> parameters = training.optimizer().parameters();
  std::vector<Value> wrt;
  for (Variable* p : parameters) wrt.push_back(tape.read(*p));
  const ClippedGradients clipped = clip_by_global_norm(gradients(step.total, wrt, untrained), c.clip);
  StepUpdates updates(tape);
  const std::vector<Value> updated = training.optimizer().update(tape, clipped.grads, step.learning_rate);
  for (std::size_t i = 0; i < parameters.size(); ++i) updates.set(*parameters[i], updated[i]);
  for (std::size_t i = 0; i < step.out.quantized.size(); ++i)
    model.quantizers()[i]->update(step.out.quantized[i], context, updates);
  updates.commit();
  if (training.memory() != nullptr) advance(tape, *training.memory(), c.update, c.sequence);

  const Scope scope(tape, "statistics");
  tape.assign(training.step(), tape.read(training.step()) + 1);
  advance_random_state(tape, training.random());
  step.metrics = {
      {"loss", step.total}, {"likelihood", step.likelihood}, {"bits_per_token", step.likelihood * std::numbers::log2e}};
  add_code_metrics(step, c.quantizer.codes);
  step.metrics.push_back({"grad_norm", clipped.norm});
  return step;
}

Audit audit_step(const Tape& tape, const TransformerVqStep& step, const TransformerVqTraining& training) {
  std::vector<Variable*> state = training.model().state();
  if (training.memory() != nullptr)
    for (Variable* v : training.memory()->state()) state.push_back(v);
  return audit(tape, step.terms, training.optimizer().parameters(), state);
}

std::vector<FlowExpectation> flow_contract(const TransformerVqStep& step, const TransformerVq& model) {
  std::vector<FlowExpectation> wanted{{"likelihood", "embedding.*", FlowIs::live},
                                      {"likelihood", "head.*", FlowIs::live}};
  const TransformerVqConfig& c = model.config();
  for (std::int64_t i = 0; i < c.layers; ++i)
    for (const char* part : {"query.*", "key.*", "value.*", "position.*", "out.*", "u", "w", "gain"})
      wanted.push_back({"likelihood", fmt::format("layer{}.{}", i, part), FlowIs::live});
  for (const AuditTerm& term : step.terms) {
    if (term.name != "commitment") continue;
    wanted.push_back({"commitment", "head.*", FlowIs::not_live});
    for (std::int64_t i = 0; i < c.layers; ++i)
      wanted.push_back({"commitment", fmt::format("layer{}.key.*", i), FlowIs::live});
    wanted.push_back({"commitment", fmt::format("layer{}.value.*", c.layers - 1), FlowIs::not_live});
  }
  return wanted;
}

TransformerVqEvaluation build_evaluation(Tape& tape, const TransformerVq& model, const TransformerVqMemory* memory,
                                         std::int64_t batch, std::int64_t tokens) {
  TransformerVqEvaluation e;
  e.tokens = tape.input("tokens", {DType::i32, {batch, tokens + 1}});
  e.weights = tape.input("weights", {DType::f32, {batch, tokens}});
  const TransformerVq::Output out = model(slice_axis(e.tokens, 1, 0, tokens), {}, memory);
  e.nats = sum(e.weights * surprises(out.logits, e.tokens, tokens));
  for (const Quantized& q : out.quantized) e.counts.push_back(code_counts(q.indices, model.config().quantizer.codes));
  if (memory != nullptr) advance(tape, *memory, tokens);
  return e;
}

TransformerVqReading build_reading(Tape& tape, const TransformerVq& model, const TransformerVqMemory& memory,
                                   std::int64_t tokens) {
  TransformerVqReading r;
  const std::int64_t b = memory.batch(), block = std::gcd(tokens, model.config().block);
  r.tokens = tape.input("tokens", {DType::i32, {b, tokens}});
  const TransformerVq::Output out = model(r.tokens, {}, &memory, block);
  r.logits = reshape(slice_axis(out.logits, 1, tokens - 1, tokens), Shape{b, model.config().vocabulary});
  advance(tape, memory, tokens);
  return r;
}

void initialize_codebooks(const TransformerVq& model, const Tensor& tokens, Backend& backend) {
  // A layer's keys depend on the codebooks below it, which are set by then.
  for (std::size_t i = 0; i < model.quantizers().size(); ++i) {
    if (!model.quantizers()[i]->wants_rows()) continue;
    Tape tape;
    const Value input = tape.input("tokens", tokens.type());
    const Value rows = model(input).quantized[i].z;
    Program program = compile(tape, {rows}, backend);
    program.feed(input, tokens);
    program.run();
    model.quantizers()[i]->initialize(program.fetch(rows), backend);
  }
}

}  // namespace sg
