#include "models/quantizers/composition.h"

#include <algorithm>

#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/masks.h"
#include "ops/shape_ops.h"

namespace sg {

std::vector<LossTerm> mean_losses(std::span<const Quantized> parts, std::span<const Value> shares) {
  std::vector<LossTerm> out;
  for (std::size_t i = 0; i < parts.size(); ++i)
    for (const LossTerm& term : parts[i].losses) {
      const Value value = shares.empty() ? term.value : shares[i] * term.value;
      const auto known = std::find_if(out.begin(), out.end(), [&](const LossTerm& t) { return t.name == term.name; });
      if (known == out.end())
        out.push_back({term.name, value, term.weight});
      else
        known->value = known->value + value;
    }
  if (parts.size() == 1) return out;
  Value count;
  for (const Value share : shares) count = count ? count + share : share;
  for (LossTerm& term : out) term.value = count ? term.value / count : term.value / static_cast<double>(parts.size());
  return out;
}

Value shaped_like(Operand z, Value rows, Value mask) {
  const Operand present(zero_padding(Operand(rows, z.loc()), mask), z.loc());
  return reshape(present, z.value().shape());
}

Lookup sum_lookup(const BoundEstimator& estimator, Value z, Value q, Value mask, const QuantizeContext& context) {
  Lookup lookup;
  lookup.z = z;
  lookup.q = q;
  lookup.mask = mask;
  lookup.random = context.random;
  lookup.progress = context.progress ? context.progress : z.tape->constant(1.0, {DType::f32, {}});
  lookup.arguments = estimator.arguments;
  return lookup;
}

Value estimate_sum(const BoundEstimator& estimator, const Lookup& lookup, const QuantizeContext& context) {
  const EstimatorDef& def = estimator.def;
  return context.training() || (def.rows_only && def.exact_forward) ? def.estimate(lookup) : lookup.q;
}

void check_sum_estimator(std::string_view who, const BoundEstimator& estimator) {
  if (!estimator.def.estimate) fail(ErrorKind::usage, "{}: the estimator has no function", who);
  if (estimator.def.assign || estimator.def.needs_origin)
    fail(ErrorKind::usage, "{}: estimator '{}' needs {}, and a sum of codes has none; take another, such as ste", who,
         estimator.def.name, estimator.def.assign ? "one codebook" : "a running mean");
}

void update_where(Value active, Quantizer& part, const Quantized& quantized, const QuantizeContext& context,
                  StepUpdates& updates) {
  if (!active) return part.update(quantized, context, updates);
  std::vector<std::pair<Variable*, Value>> before;
  for (Variable* v : part.variables()) before.emplace_back(v, updates.has(*v) ? updates.next(*v) : Value());
  part.update(quantized, context, updates);
  for (const auto& [v, value] : before) {
    if (!updates.has(*v)) continue;
    const Value after = updates.next(*v);
    if (value && value.id == after.id) continue;
    updates.set(*v, where(greater(active, 0.0), after, value ? value : active.tape->read(*v)));
  }
}

void update_from_all(Quantizer& book, std::span<const Quantized> parts, std::span<const Value> shares,
                     const QuantizeContext& context, StepUpdates& updates) {
  const auto joined = [&](auto field) {
    std::vector<Value> all;
    for (const Quantized& part : parts) all.push_back(field(part));
    return concat(all, 0);
  };
  Quantized all;
  all.lookup = parts[0].lookup;
  all.z = all.lookup.z = joined([](const Quantized& p) { return p.z; });
  all.q = all.lookup.q = joined([](const Quantized& p) { return p.q; });
  all.z_q = joined([](const Quantized& p) { return flatten_rows(p.z_q); });
  all.indices = all.lookup.indices = joined([](const Quantized& p) { return p.lookup.indices; });
  QuantizeContext inner = context;
  inner.mask = {};
  if (!shares.empty() || parts[0].lookup.mask) {
    std::vector<Value> masks;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      Value mask = parts[i].lookup.mask;
      if (!mask) mask = all.z.tape->constant(1.0, {DType::f32, {parts[i].z.shape()[0]}});
      masks.push_back(shares.empty() ? mask : shares[i] * mask);
    }
    inner.mask = concat(masks, 0);
  }
  all.lookup.mask = inner.mask;
  book.update(all, inner, updates);
}

Tensor evaluate_rows(const Tensor& rows, Backend& backend, const std::function<Value(Value)>& f) {
  Tape tape;
  const Value in = tape.input("rows", rows.type());
  const Value out = f(in);
  Program program = compile(tape, {out}, backend);
  program.feed(in, rows);
  program.run();
  return program.fetch(out);
}

}  // namespace sg
