#include "models/kmeans.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "core/program.h"
#include "models/init.h"
#include "ops/index.h"

namespace sg {
namespace {

struct Rows {
  const float* data;
  std::int64_t count, dim;
  const float* row(std::int64_t i) const { return data + i * dim; }
};

double squared_distance(const float* a, const float* b, std::int64_t dim) {
  double total = 0;
  for (std::int64_t d = 0; d < dim; ++d) {
    const double e = static_cast<double>(a[d]) - static_cast<double>(b[d]);
    total += e * e;
  }
  return total;
}

// The first of a random order of all rows, over and over again.
void start_from_rows(const Rows& rows, std::int64_t codes, std::uint32_t seed, float* centres) {
  HostRandom random(seed, "kmeans.rows");
  std::vector<std::int64_t> order(static_cast<std::size_t>(rows.count));
  std::iota(order.begin(), order.end(), 0);
  for (std::int64_t k = 0; k < codes; ++k) {
    const std::int64_t at = k % rows.count;
    if (k < rows.count)
      std::swap(order[static_cast<std::size_t>(at)],
                order[static_cast<std::size_t>(at + random.below(rows.count - at))]);
    std::copy_n(rows.row(order[static_cast<std::size_t>(at)]), rows.dim, centres + k * rows.dim);
  }
}

void start_plus_plus(const Rows& rows, std::int64_t codes, std::uint32_t seed, float* centres) {
  HostRandom random(seed, "kmeans");
  std::vector<double> distance(static_cast<std::size_t>(rows.count), std::numeric_limits<double>::infinity());
  std::int64_t chosen = random.below(rows.count);
  for (std::int64_t k = 0; k < codes; ++k) {
    std::copy_n(rows.row(chosen), rows.dim, centres + k * rows.dim);
    double total = 0;
    for (std::int64_t i = 0; i < rows.count; ++i) {
      double& best = distance[static_cast<std::size_t>(i)];
      if (best > 0) best = std::min(best, squared_distance(rows.row(i), rows.row(chosen), rows.dim));
      total += best;
    }
    if (!(total > 0)) {  // every distinct row is a centre already
      chosen = random.below(rows.count);
      continue;
    }
    double left = random.uniform() * total;
    std::int64_t last = chosen;
    for (std::int64_t i = 0; i < rows.count; ++i) {
      const double d = distance[static_cast<std::size_t>(i)];
      if (d > 0) last = i;
      if ((left -= d) < 0) break;
    }
    chosen = last;
  }
}

}  // namespace

KMeansResult kmeans(const Tensor& tensor, std::int64_t codes, Backend& backend, KMeansOptions options) {
  if (tensor.shape().rank() != 2 || tensor.shape()[0] < 1 || tensor.shape()[1] < 1)
    fail(ErrorKind::shape, "kmeans: rows are (N,D) with at least one element, not {}", to_string(tensor.type()));
  if (codes < 1 || options.iterations < 0)
    fail(ErrorKind::usage, "kmeans: {} codes, {} iterations", codes, options.iterations);
  const Rows rows{tensor.span<float>().data(), tensor.shape()[0], tensor.shape()[1]};

  KMeansResult result;
  result.centres = Tensor({DType::f32, {codes, rows.dim}});
  result.counts = Tensor({DType::i32, {codes}});
  float* centres = result.centres.span<float>().data();
  std::int32_t* counts = result.counts.span<std::int32_t>().data();
  const auto start = options.start == KMeansStart::rows ? start_from_rows : start_plus_plus;
  start(rows, codes, options.seed, centres);

  Tape tape;
  const Value input = tape.input("centres", result.centres.type());
  const Value nearest = nearest_code(tape.constant(tensor), input);
  Program search = compile(tape, {nearest}, backend);
  Tensor found(nearest.type());
  std::vector<std::int32_t> cluster(static_cast<std::size_t>(rows.count), -1);
  std::vector<double> sums(static_cast<std::size_t>(codes * rows.dim));
  const auto assign_rows = [&] {
    search.feed(input, result.centres);
    search.run();
    search.fetch_into(nearest, found);
    const std::span<const std::int32_t> now = std::as_const(found).span<std::int32_t>();
    const bool changed = !std::equal(now.begin(), now.end(), cluster.begin());
    std::copy(now.begin(), now.end(), cluster.begin());
    std::fill_n(counts, codes, 0);
    for (const std::int32_t k : cluster) ++counts[k];
    return changed;
  };
  bool changed = assign_rows();
  while (changed && result.iterations < options.iterations) {
    ++result.iterations;
    std::fill(sums.begin(), sums.end(), 0.0);
    for (std::int64_t i = 0; i < rows.count; ++i)
      for (std::int64_t d = 0; d < rows.dim; ++d)
        sums[static_cast<std::size_t>(cluster[static_cast<std::size_t>(i)] * rows.dim + d)] +=
            static_cast<double>(rows.row(i)[d]);
    for (std::int64_t k = 0; k < codes; ++k) {
      if (counts[k] == 0) continue;
      for (std::int64_t d = 0; d < rows.dim; ++d)
        centres[k * rows.dim + d] = static_cast<float>(sums[static_cast<std::size_t>(k * rows.dim + d)] / counts[k]);
    }
    changed = assign_rows();
  }
  for (std::int64_t i = 0; i < rows.count; ++i)
    result.error += squared_distance(rows.row(i), centres + cluster[static_cast<std::size_t>(i)] * rows.dim, rows.dim);
  result.error /= static_cast<double>(rows.count);
  return result;
}

}  // namespace sg
