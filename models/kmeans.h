// k-means on the host: the start of a codebook. Lloyd's iterations, from a k-means++ start (Arthur and Vassilvitskii
// 2007) or from rows drawn uniformly.
#pragma once
#include <cstdint>

#include "core/backend.h"
#include "core/tensor.h"

namespace sg {

enum class KMeansStart : std::uint8_t {
  plus_plus,  // each further centre a row drawn in proportion to its squared distance to the nearest so far
  rows,       // rows drawn uniformly, without replacement where there are enough (Forgy)
};
struct KMeansOptions {
  int iterations = 10;  // at most; it ends early where no row changes its cluster
  std::uint32_t seed = 0;
  KMeansStart start = KMeansStart::plus_plus;
};
struct KMeansResult {
  Tensor centres;      // f32 (codes, D)
  Tensor counts;       // i32 (codes): rows of each cluster
  double error = 0;    // mean squared distance of a row to its centre, summed over D
  int iterations = 0;  // done
};

// rows: f32 (N, D), N >= 1. A cluster that loses all its rows keeps its centre. With fewer distinct rows than codes,
// the further centres repeat rows. Deterministic. Rows find their centres by nearest_code on the backend.
// Error{shape|dtype|usage}.
KMeansResult kmeans(const Tensor& rows, std::int64_t codes, Backend& backend, KMeansOptions options = {});

}  // namespace sg
