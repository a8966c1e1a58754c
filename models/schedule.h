// Learning-rate schedules, computed on the host and fed each step: linear warm-up, then a cosine down to `floor`.
#pragma once
#include <cstdint>

namespace sg {

struct Schedule {
  double peak = 3e-4;
  std::int64_t warmup = 0;  // steps; step 0 already has peak / warmup
  std::int64_t total = 0;   // steps, warm-up included; 0: constant after the warm-up
  double floor = 0;         // rate at and after `total`
};

// Rate of step 0, 1, ... Error{usage}: a negative rate or length, or a warm-up as long as the whole.
double learning_rate(const Schedule& schedule, std::int64_t step);

}  // namespace sg
