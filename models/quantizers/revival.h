// Revival of dead codes: which codes are replaced after a step, by what, and all that is kept about a code with it.
#pragma once
#include "models/quantizers/config.h"

namespace sg {

// What is kept about codes, as it is after the step; null where a quantizer does not keep it.
struct CodeState {
  Value codes;  // (K,D) as they are compared
  Value count;  // (K) averaged rows per step: all policies but lru need it
  Value sum;    // (K,D) averaged sums of rows
  Value idle;   // (K) steps since the code was last used: lru needs it
};
// The step's batch: rows and their codes q (N,D), indices i32 (N), counts (K) of the codes, mask, random state.
struct RevivalBatch {
  Value rows, q, indices, counts, mask, random;
};
struct Revived {
  Value dead;         // i32 (K): 1 where the code is replaced
  Value replacement;  // (K,D): by what; of no meaning elsewhere
  CodeState state;    // count, sum and idle with it; codes is null
};

// threshold: dead are codes of a count below `threshold`; each becomes a row of the batch, drawn uniformly with
//   replacement from those that are not padding. N <- threshold, m <- threshold row.
// lru: dead are codes idle for `threshold` steps or more; they become rows likewise. idle <- 0, N <- 1, m <- row.
// split: dead are codes of a count below `threshold` that no row of the batch has; each becomes the copy of a code that
//   is drawn in proportion to its rows in the batch, moved by normal noise of 1 % of the rows' root mean square
//   distance to their codes in each dimension. N and m of the copied code are divided evenly between it and its copies.
// Nothing is revived in a step without rows. Deterministic given the random state.
Revived revive(Revival policy, double threshold, const CodeState& next, const RevivalBatch& batch);

}  // namespace sg
