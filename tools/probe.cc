#include "tools/probe.h"

#include <algorithm>
#include <cmath>

#include "core/autodiff.h"
#include "core/substitute.h"
#include "models/losses.h"
#include "models/statistics.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg::tools {
namespace {

constexpr double kTiny = 1e-30;  // a product of norms below this has no direction

using Vector = std::vector<Value>;  // the parts of one vector

Value inner(const Vector& a, const Vector& b) {
  Value total;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const Value part = sum(a[i] * b[i]);
    total = total ? total + part : part;
  }
  return total;
}
Value length(const Vector& a) { return sqrt(inner(a, a)); }
Value cosine(const Vector& a, const Vector& b) { return inner(a, b) / maximum(length(a) * length(b), kTiny); }
Value ratio(const Vector& a, const Vector& b) { return length(a) / maximum(length(b), kTiny); }

// The change of a mean squared error when outputs go from a to b: mean (b - a)(b + a - 2 target). The difference of the
// two errors would lose the digits of a small step.
Value change_of_error(Value a, Value b, Value target) { return mean((b - a) * (b + a - 2.0 * target)); }

class Recorder {
 public:
  Recorder(const ProbeGraph& graph, const ProbeOptions& options);
  ProbeRecord record();

 private:
  // An estimator's gradient in the latents, and the loss under it.
  struct Backward {
    Value loss, gradient;
  };
  Value rows_of(const BoundEstimator& estimator, const ProbedLookup& probed, Value shift) const;
  Backward backward(const BoundEstimator& estimator, Value shift) const;
  Value losses_gradient(Value from_reconstruction) const;
  std::vector<Value> in_parameters(Value gradient) const;
  ProbeRow row(std::string name, const Backward& found) const;
  void add_step(double step, Value gradient, std::vector<NamedValue>& numbers) const;
  void add_shift(const BoundEstimator& estimator, Value gradient, std::vector<NamedValue>& numbers) const;
  std::vector<NamedValue> common() const;

  const ProbeGraph& graph_;
  const ProbeOptions& options_;
  Tape& tape_;
  Value loss_;     // through the quantizer
  Value decoded_;  // of z itself
  Value shared_;   // d loss / d z_q, where there is one lookup
  Backward exact_, ste_;
  std::vector<Value> ste_parameters_;
};

Recorder::Recorder(const ProbeGraph& graph, const ProbeOptions& options)
    : graph_(graph), options_(options), tape_(*graph.latents.tape) {
  if (graph.lookups.empty())
    fail(ErrorKind::usage, "probe: this quantizer looks up no codes through a gradient estimator");
  for (const double step : options.steps)
    if (!(step > 0)) fail(ErrorKind::usage, "probe: a step of {} is not positive", step);
  loss_ = mean_squared_error(graph.output, graph.target);
  const bool single = graph.lookups.size() == 1;
  if (single) shared_ = gradient(loss_, graph.lookups[0].z_q);
  decoded_ = single ? substitute(graph.output, {{graph.lookups[0].z_q, graph.lookups[0].lookup.z}})
                    : substitute(graph.output, {{graph.z_q, graph.latents}});
  exact_.loss = mean_squared_error(decoded_, graph.target);
  exact_.gradient = gradient(exact_.loss, graph.latents);
  ste_ = backward("ste", {});
  ste_parameters_ = in_parameters(ste_.gradient);
}

Value Recorder::rows_of(const BoundEstimator& estimator, const ProbedLookup& probed, Value shift) const {
  Lookup lookup = probed.lookup;
  const EstimatorDef& def = estimator.def;
  lookup.arguments = estimator.arguments;
  // A run under another estimator has averaged no origin: the batch's own mean takes its place.
  if (def.needs_origin && !lookup.origin) lookup.origin = stop_gradient(mean(lookup.z, {0}));
  if (shift) {
    lookup.z = lookup.z + shift;
    lookup.codes = lookup.codes + shift;
    lookup.q = lookup.q + shift;
    if (lookup.origin) lookup.origin = lookup.origin + shift;
  }
  if (def.assign) {
    lookup.indices = def.assign(lookup);
    lookup.q = gather_rows(lookup.codes, lookup.indices);
  }
  const Value rows = def.estimate(lookup);
  return shift ? rows - shift : rows;
}

Recorder::Backward Recorder::backward(const BoundEstimator& estimator, Value shift) const {
  const EstimatorDef& def = estimator.def;
  std::vector<Substitution> exchange;
  for (const ProbedLookup& probed : graph_.lookups) exchange.push_back({probed.z_q, rows_of(estimator, probed, shift)});
  if (shared_ && def.exact_forward && !def.assign && !def.loss_term) {
    const Value rows[] = {exchange[0].to}, cotangents[] = {shared_}, wrt[] = {graph_.latents};
    return {loss_, vjp(rows, cotangents, wrt, IfUnreachable::zero)[0]};
  }
  const Value outputs[] = {loss_};
  Backward found{substitute(outputs, exchange)[0], {}};
  Value total = found.loss;
  if (def.loss_term)
    for (std::size_t i = 0; i < exchange.size(); ++i) {
      Lookup lookup = graph_.lookups[i].lookup;
      lookup.arguments = estimator.arguments;
      if (const Value term = def.loss_term(found.loss, lookup, exchange[i].to)) total = total + term;
    }
  found.gradient = gradient(total, graph_.latents, IfUnreachable::zero);
  return found;
}

// As in training, where the reconstruction has this gradient.
Value Recorder::losses_gradient(Value from_reconstruction) const {
  Value total;
  for (const LossTerm& term : graph_.losses) {
    if (term.weight == 0) continue;
    const Value one = gradient(term.value, graph_.latents, IfUnreachable::zero);
    const bool balanced = graph_.balance_commitment && term.name == "commitment";
    const Value weighted = balanced
                               ? term.weight * one * (length({from_reconstruction}) / maximum(length({one}), kTiny))
                               : term.weight * one;
    total = total ? total + weighted : weighted;
  }
  return total ? total : tape_.constant(0.0, graph_.latents.type());
}

std::vector<Value> Recorder::in_parameters(Value gradient) const {
  if (graph_.parameters.empty()) return {};
  const Value outputs[] = {graph_.latents}, cotangents[] = {gradient};
  return vjp(outputs, cotangents, graph_.parameters, IfUnreachable::zero);
}

ProbeRow Recorder::row(std::string name, const Backward& found) const {
  const Vector g{found.gradient}, ste{ste_.gradient}, exact{exact_.gradient};
  ProbeRow out{std::move(name),
               {{"loss", found.loss},
                {"gradient", length(g)},
                {"cosine_ste", cosine(g, ste)},
                {"ratio_ste", ratio(g, ste)},
                {"cosine_exact", cosine(g, exact)},
                {"ratio_exact", ratio(g, exact)}}};
  if (!graph_.parameters.empty()) {
    const Vector parameters = in_parameters(found.gradient);
    out.numbers.push_back({"cosine_parameters", cosine(parameters, ste_parameters_)});
    out.numbers.push_back({"ratio_parameters", ratio(parameters, ste_parameters_)});
  }
  const Value losses = length({losses_gradient(found.gradient)});
  out.numbers.push_back({"share", length(g) / maximum(length(g) + losses, kTiny)});
  for (const double step : options_.steps) add_step(step, found.gradient, out.numbers);
  return out;
}

void Recorder::add_step(double step, Value gradient, std::vector<NamedValue>& numbers) const {
  const Value latents = graph_.latents;
  const Value size = step * length({latents}), slope = length({gradient});
  const Value moved = latents - gradient * (size / maximum(slope, kTiny)), predicted = -(size * slope);
  const Value before[] = {decoded_, graph_.output, graph_.lookups[0].lookup.indices};
  const Substitution exchange[] = {{latents, moved}};
  const std::vector<Value> after = substitute(before, exchange);
  const Value decoded = change_of_error(decoded_, after[0], graph_.target),
              quantized = change_of_error(graph_.output, after[1], graph_.target);
  // No gradient, no prediction: 0 / -tiny.
  const auto against = [&](Value change) { return change / minimum(predicted, -kTiny); };
  const auto at = [step](std::string_view what) { return fmt::format("{}@{:g}", what, step); };
  numbers.push_back({at("decode"), decoded / exact_.loss});
  numbers.push_back({at("decode_ratio"), against(decoded)});
  numbers.push_back({at("quantized"), quantized / loss_});
  numbers.push_back({at("quantized_ratio"), against(quantized)});
  numbers.push_back({at("moved"), mean(cast(not_equal(before[2], after[2]), latents.dtype()))});
}

void Recorder::add_shift(const BoundEstimator& estimator, Value gradient, std::vector<NamedValue>& numbers) const {
  const Value z = stop_gradient(graph_.lookups[0].lookup.z);
  const double per_element = options_.shift / std::sqrt(static_cast<double>(z.shape()[-1]));
  const Value shifted = backward(estimator, per_element * mean(norm(z, {-1}))).gradient;
  numbers.push_back({"shift_change", length({shifted - gradient}) / maximum(length({gradient}), kTiny)});
  numbers.push_back({"shift_cosine", cosine({shifted}, {gradient})});
  numbers.push_back({"shift_cosine_ste", cosine({shifted}, {ste_.gradient})});
}

std::vector<NamedValue> Recorder::common() const {
  const Lookup& first = graph_.lookups[0].lookup;
  std::vector<NamedValue> numbers{{"loss", loss_}, {"decode_loss", exact_.loss}};
  for (NamedValue& n : row_statistics(first.z, first.q).named()) numbers.push_back(std::move(n));
  numbers.push_back({"losses", length({losses_gradient(ste_.gradient)})});
  return numbers;
}

ProbeRecord Recorder::record() {
  ProbeRecord out{common(), {}};
  out.rows.push_back(row("decode(z)", exact_));
  out.rows.push_back(row("ste", ste_));
  const bool shift = options_.shift != 0;
  if (shift) add_shift("ste", ste_.gradient, out.rows.back().numbers);
  for (const BoundEstimator& estimator : options_.estimators) {
    if (estimator.text() == "ste") continue;
    const Scope scope(tape_, estimator.def.name);
    const Backward found = backward(estimator, {});
    out.rows.push_back(row(estimator.text(), found));
    if (shift) add_shift(estimator, found.gradient, out.rows.back().numbers);
  }
  return out;
}

Numbers fetched(const Program& program, const std::vector<NamedValue>& values) {
  Numbers out;
  for (const NamedValue& v : values) out.emplace_back(v.name, program.fetch_scalar(v.value));
  return out;
}

void add(Numbers& total, const Numbers& more, double weight) {
  for (std::size_t i = 0; i < total.size(); ++i) total[i].second += weight * more[i].second;
}

VqVaeConfig with_estimator(VqVaeConfig config, std::deque<ProbedLookup>& seen) {
  config.quantizer.estimator = recording_estimator(seen, config.quantizer.estimator.def.needs_origin);
  return config;
}

}  // namespace

BoundEstimator recording_estimator(std::deque<ProbedLookup>& seen, bool with_origin) {
  BoundEstimator estimator("ste");
  estimator.def.name = "probe";
  estimator.def.estimate = [&seen](const Lookup& lookup) {
    seen.push_back({lookup, straight_through(lookup.z, lookup.q)});
    return seen.back().z_q;
  };
  estimator.def.rows_only = false;  // it wants all of the lookup
  estimator.def.needs_origin = with_origin;
  return estimator;
}

ProbeGraph record_forward(Tape& tape, const VqVae& model, std::deque<ProbedLookup>& seen, Value images, Value random,
                          Value progress) {
  seen.clear();
  const VqVae::Output out = model(images, {.random = random, .progress = progress, .mask = {}});
  ProbeGraph graph{.latents = out.latents,
                   .output = out.images,
                   .target = images,
                   .z_q = out.quantized.z_q,
                   .lookups = seen,
                   .losses = out.quantized.losses,
                   .balance_commitment = model.config().balance_commitment,
                   .parameters = {}};
  for (Variable* v : model.parameters())
    if (v->name().rfind("encoder.", 0) == 0) graph.parameters.push_back(tape.read(*v));
  return graph;
}

ProbeRecord record_probe(const ProbeGraph& graph, const ProbeOptions& options) {
  return Recorder(graph, options).record();
}

std::vector<Value> ProbeRecord::fetches() const {
  std::vector<Value> values;
  for (const NamedValue& v : common) values.push_back(v.value);
  for (const ProbeRow& row : rows)
    for (const NamedValue& v : row.numbers) values.push_back(v.value);
  return values;
}

ProbeResult mean_of(const std::vector<ProbeResult>& results) {
  ProbeResult out = results.at(0);
  const double weight = 1.0 / static_cast<double>(results.size());
  const auto scale = [weight](Numbers& numbers) {
    for (auto& [name, value] : numbers) value *= weight;
  };
  scale(out.common);
  for (auto& [name, numbers] : out.rows) scale(numbers);
  for (std::size_t i = 1; i < results.size(); ++i) {
    add(out.common, results[i].common, weight);
    for (std::size_t r = 0; r < out.rows.size(); ++r) add(out.rows[r].second, results[i].rows[r].second, weight);
  }
  return out;
}

double number(const Numbers& numbers, std::string_view name) {
  for (const auto& [key, value] : numbers)
    if (key == name) return value;
  fail(ErrorKind::usage, "probe: no number '{}'", name);
}

Probe::Probe(VqVaeConfig config, const ProbeOptions& options, Backend& backend, std::int64_t step)
    : model_(with_estimator(std::move(config), seen_)),
      record_(record(options, step)),
      program_(compile(tape_, record_.fetches(), backend)) {}

ProbeRecord Probe::record(const ProbeOptions& options, std::int64_t step) {
  const VqVaeConfig& c = model_.config();
  const Value images = tape_.input("images", {DType::f32, {c.batch, c.height, c.width, c.channels}});
  const std::int32_t state[] = {static_cast<std::int32_t>(c.seed), static_cast<std::int32_t>(step)};
  const Value random = tape_.constant(Tensor::of<std::int32_t>({2}, state));
  const double done = c.steps > 0 ? std::min(1.0, static_cast<double>(step) / static_cast<double>(c.steps)) : 1.0;
  const Value progress = tape_.constant(done, {DType::f32, {}});
  return record_probe(record_forward(tape_, model_, seen_, images, random, progress), options);
}

ProbeResult Probe::run(const Tensor& images) {
  program_.feed("images", images);
  program_.run();
  ProbeResult out{fetched(program_, record_.common), {}};
  for (const ProbeRow& row : record_.rows) out.rows.emplace_back(row.name, fetched(program_, row.numbers));
  return out;
}

}  // namespace sg::tools
