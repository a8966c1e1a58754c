#include "models/quantizers/revival.h"

#include "ops/elementwise.h"
#include "ops/index.h"
#include "ops/masks.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr double kMove = 0.01;  // of a split code, in root mean square distances of rows to their codes

// i32 (K): for each code a row of the batch. Uniform numbers are f32: above 2^24 rows some are never drawn, and u * n
// may round up to n.
Value drawn_rows(const RevivalBatch& batch, std::int64_t codes) {
  const Value rows = count_rows(batch.rows, batch.mask);
  const Value draw = cast(minimum(floor(uniform(batch.random, {codes}) * rows), rows - 1.0), DType::i32);
  if (!batch.mask) return draw;
  const Value numbers = reshape(cast(row_numbers(batch.mask), DType::f32), {batch.mask.shape()[0], 1});
  return cast(reshape(gather_rows(numbers, draw), {codes}), DType::i32);
}

Revived split(const CodeState& next, const RevivalBatch& batch, Value dead, Value draw) {
  const std::int64_t k = next.codes.shape()[0], n = batch.rows.shape()[0];
  const Value of_rows = reshape(cast(batch.indices, DType::f32), {n, 1});
  const Value copied = cast(reshape(gather_rows(of_rows, draw), {k}), DType::i32);
  const Value spread = sqrt(mean_of_rows(square(batch.rows - batch.q), batch.mask));
  const Value noise = normal(batch.random, next.codes.shape());
  const Value copies = scatter_add_rows(copied, reshape(cast(dead, DType::f32), {k, 1}), k);  // (K,1)
  const Value shared = next.count / (1.0 + reshape(copies, {k}));
  Revived out;
  out.dead = dead;
  out.replacement = gather_rows(next.codes, copied) + kMove * spread * noise;
  const Value received = gather_rows(reshape(shared, {k, 1}), copied);  // (K,1)
  const Value dead_rows = reshape(dead, {k, 1});
  out.state.count = where(dead, reshape(received, {k}), shared);
  if (next.sum) out.state.sum = where(dead_rows, received * out.replacement, next.sum / (1.0 + copies));
  return out;
}

}  // namespace

Revived revive(Revival policy, double threshold, const CodeState& next, const RevivalBatch& batch) {
  const Scope scope(*batch.rows.tape, "revival");
  const std::int64_t k = next.codes.shape()[0];
  const bool lru = policy == Revival::lru;
  Value dead = lru ? greater_equal(next.idle, threshold) : less(next.count, threshold);
  if (policy == Revival::split) dead = where(greater(batch.counts, 0.0), 0, dead);
  if (batch.mask) dead = where(greater(sum(batch.mask), 0.0), dead, 0);
  const Value draw = drawn_rows(batch, k);
  if (policy == Revival::split) return split(next, batch, dead, draw);

  Revived out;
  out.dead = dead;
  out.replacement = gather_rows(batch.rows, draw);
  const double count = lru ? 1.0 : threshold;
  if (next.count) out.state.count = where(dead, count, next.count);
  if (next.sum) out.state.sum = where(reshape(dead, {k, 1}), count * out.replacement, next.sum);
  if (next.idle) out.state.idle = where(dead, 0.0, next.idle);
  return out;
}

}  // namespace sg
