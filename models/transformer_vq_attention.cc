#include "models/transformer_vq_attention.h"

#include <cmath>

#include "models/attention.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

struct Extents {
  std::int64_t b, g, t, dk, dv, m;
};

Extents extents(std::string_view who, const AttentionHead& h) {
  const Shape q = h.q.shape(), k = h.keys.shape(), v = h.values.shape(), r = h.relative.shape();
  const bool ranks = q.rank() == 4 && k.rank() == 3 && v.rank() == 3 && r.rank() == 3;
  if (!ranks || k != Shape{q[0], q[2], q[3]} || v[0] != q[0] || v[1] != q[2] || r[0] != q[1] || r[2] != q[3] ||
      r[1] < 2 || h.u.shape() != Shape{q[1], q[3]} || h.w.shape() != h.u.shape())
    fail(ErrorKind::shape,
         "{}: q {}, keys {}, values {}, u {}, w {} and relative {} do not fit: expected (B,G,T,dk), (B,T,dk), "
         "(B,T,dv), (G,dk), (G,dk), (G,M+1,dk) with M of at least 1",
         who, to_string(q), to_string(k), to_string(v), to_string(h.u.shape()), to_string(h.w.shape()), to_string(r));
  return {q[0], q[1], q[2], q[3], v[2], r[1] - 1};
}

// (q + offset) of each query head: (B,G,T,dk).
Value offset_queries(const AttentionHead& h, Value offset, const Extents& e) {
  return h.q + reshape(offset, Shape{e.g, 1, e.dk});
}

// (q + w) . r by distance M, ..., 0: (B,G,T,M+1).
Value position_scores(const AttentionHead& h, const Extents& e) {
  const Value q = offset_queries(h, h.w, e);
  if (e.g == 1) return matmul(q, reshape(h.relative, Shape{e.m + 1, e.dk}), false, true);
  return matmul(q, h.relative, false, true);
}

// softmax((q + u) k^T + bias) v with all query heads of a lane as one list of rows against its keys.
Value attend(Value q, Value keys, Value values, Value bias, const Extents& e) {
  const std::int64_t rows = q.shape()[2], n = keys.shape()[1];
  const Value flat = reshape(q, Shape{e.b, e.g * rows, e.dk});
  const Value out = attention(flat, keys, values, reshape(bias, Shape{e.b, e.g * rows, n}), 1.0);
  return reshape(out, Shape{e.b, e.g, rows, e.dv});
}

// Scores' constant part in a window of m + l tokens and s codes: row i sees slots up to m + i, and without a cache
// none that is more than m back.
Value block_mask(Tape& tape, std::int64_t m, std::int64_t l, std::int64_t s, bool cache, DType dtype) {
  const std::int64_t width = m + l + s;
  Tensor mask({dtype, {l, width}});
  for (std::int64_t i = 0; i < l; ++i)
    for (std::int64_t j = 0; j < m + l; ++j)
      if (j > m + i || (!cache && j < i)) mask.set(i * width + j, kMaskedScore);
  return tape.constant(mask);
}

// 0, step, 2 step, ...
Value numbered(Tape& tape, std::int64_t n, std::int64_t step = 1) {
  Tensor t({DType::i32, {n}});
  for (std::int64_t i = 0; i < n; ++i) t.set(i, static_cast<double>(i * step));
  return tape.constant(t);
}

// The first rows of the window, as they leave it: counted, and averaged into the mean of their code. An empty slot has
// weight 0.
void absorb(AttentionMemory& memory, Value indices, Value values, Value weights, const Extents& e) {
  const std::int64_t s = memory.count.shape()[1], rows = indices.shape()[1];
  Tape& tape = *values.tape;
  const Value lanes = reshape(numbered(tape, e.b, s), Shape{e.b, 1});
  const Value to = reshape(indices + lanes, Shape{e.b * rows});
  const Value weight = broadcast(reshape(weights, Shape{1, rows, 1}), Shape{e.b, rows, 1});
  const auto sums = [&](Value of_rows, std::int64_t width) {
    const Value sum = scatter_add_rows(to, reshape(of_rows, Shape{e.b * rows, width}), e.b * s);
    return reshape(sum, Shape{e.b, s, width});
  };
  const Value old = reshape(memory.count, Shape{e.b, s, 1});
  const Value count = old + sums(weight, 1), divisor = maximum(count, 1.0);
  memory.mean = old / divisor * memory.mean + sums(weight * values, e.dv) / divisor;
  memory.count = reshape(count, Shape{e.b, s});
}

}  // namespace

Value skewed(Operand band, std::int64_t width) {
  const Shape shape = band.value().shape();
  const std::int64_t rows = shape.rank() < 2 ? 0 : shape[-2], columns = shape.rank() < 2 ? 0 : shape[-1];
  if (rows < 1 || width < rows + columns - 1)
    fail(ErrorKind::shape, "skewed: {} does not fit into rows of {}", to_string(band.value().type()), width);
  const auto n = static_cast<std::size_t>(shape.rank());
  // Rows that are one longer than those read back: row i starts i further right.
  std::vector<std::int64_t> before(n, 0), after(n, 0), flat = shape.vec(), out = shape.vec();
  after.back() = width + 1 - columns;
  flat.pop_back();
  flat.back() = rows * (width + 1);
  out.back() = width;
  const auto at = [&band](Value v) { return Operand(v, band.loc()); };
  const Value lines = reshape(at(pad(band, before, after)), flat);
  return reshape(at(slice_axis(at(lines), -1, 0, rows * width)), out);
}

Tensor sinusoids(std::int64_t length, std::int64_t width, double lambda) {
  if (length < 1 || width < 2 || width % 2 != 0)
    fail(ErrorKind::attribute, "sinusoids: {} rows of {}: at least 1 row of an even number is needed", length, width);
  Tensor t({DType::f32, {length, width}});
  const std::int64_t half = width / 2;
  for (std::int64_t p = 0; p < length; ++p)
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(p) * std::pow(lambda, -2.0 * static_cast<double>(i) / static_cast<double>(width));
      t.set(p * width + i, std::sin(angle));
      t.set(p * width + half + i, std::cos(angle));
    }
  return t;
}

Value vq_attention(const AttentionHead& h, AttentionMemory& memory, const VqAttentionOptions& options, Loc loc) {
  const Extents e = extents("vq_attention", h);
  const std::int64_t l = options.block, s = h.codes.shape()[0], width = e.m + l;
  if (l < 1 || e.t % l != 0)
    fail(ErrorKind::attribute, "vq_attention: {} tokens are no multiple of the block of {}", e.t, l);
  const DType dtype = h.q.dtype();
  if (memory.keys.shape() != Shape{e.b, e.m, e.dk} || memory.values.shape() != Shape{e.b, e.m, e.dv} ||
      memory.mean.shape() != Shape{e.b, s, e.dv} || memory.count.shape() != Shape{e.b, s})
    fail(ErrorKind::shape,
         "vq_attention: a memory of keys {}, values {} and means {} is not one of {} lanes, {} slots "
         "and {} codes",
         to_string(memory.keys.shape()), to_string(memory.values.shape()), to_string(memory.mean.shape()), e.b, e.m, s);
  Tape& tape = *h.q.tape;
  const Scope scope(tape, "attention", loc);
  const Value q = offset_queries(h, h.u, e), band = position_scores(h, e);
  const std::int64_t cached = options.cache ? s : 0;
  const Value mask = block_mask(tape, e.m, l, cached, options.cache, dtype);
  const Value codes = broadcast(reshape(stop_gradient(h.codes), Shape{1, s, e.dk}), Shape{e.b, s, e.dk});
  const Value slots = numbered(tape, width);

  // Where a sequence begins, what an earlier one left is dropped.
  memory.count = cast(greater(memory.position, 0), dtype) * memory.count;
  std::vector<Value> outputs;
  for (std::int64_t start = 0; start < e.t; start += l) {
    const auto block = [&](Value x, std::int64_t axis) { return slice_axis(x, axis, start, start + l); };
    const Value keys = concat({memory.keys, block(h.keys, 1)}, 1);
    const Value values = concat({memory.values, block(h.values, 1)}, 1);
    const Value indices = concat({memory.indices, block(h.indices, 1)}, 1);
    const Value filled =
        greater_equal(slots + memory.position, tape.constant(static_cast<double>(e.m), {DType::i32, {}}));
    Value seen = where(filled, tape.constant(0.0, {dtype, {}}), kMaskedScore);  // (M+L)
    seen = reshape(seen, Shape{1, 1, 1, width});
    Value all_keys = keys, all_values = values;
    if (options.cache) {
      const Value logs = where(greater(memory.count, 0.0), log(maximum(memory.count, 1.0)), kMaskedScore);
      seen = concat({broadcast(seen, Shape{e.b, 1, 1, width}), reshape(logs, Shape{e.b, 1, 1, s})}, 3);
      all_keys = concat({keys, codes}, 1);
      all_values = concat({values, memory.mean}, 1);
    }
    const Value bias = skewed(block(band, 2), width + cached) + mask + seen;
    outputs.push_back(attend(block(q, 2), all_keys, all_values, bias, e));

    if (options.cache)
      absorb(memory, slice_axis(indices, 1, 0, l), slice_axis(values, 1, 0, l),
             cast(slice_axis(filled, 0, 0, l), dtype), e);
    memory.keys = slice_axis(keys, 1, l, width);
    memory.values = slice_axis(values, 1, l, width);
    memory.indices = slice_axis(indices, 1, l, width);
    memory.position = memory.position + tape.constant(static_cast<double>(l), {DType::i32, {}});
    if (!options.gradient_to_memory)
      for (Value* v : {&memory.keys, &memory.values, &memory.mean}) *v = stop_gradient(*v);
  }
  return outputs.size() == 1 ? outputs.front() : concat(outputs, 2);
}

Value dense_attention(const AttentionHead& h, Loc loc) {
  const Extents e = extents("dense_attention", h);
  Tape& tape = *h.q.tape;
  const Scope scope(tape, "attention", loc);
  // Columns are M more than tokens: distances reach that far back, also from the first tokens.
  const Value positions = slice_axis(skewed(position_scores(h, e), e.t + e.m), 3, e.m, e.m + e.t);
  return attend(offset_queries(h, h.u, e), h.keys, h.values, positions + causal_bias(tape, e.t, h.q.dtype()), e);
}

}  // namespace sg
