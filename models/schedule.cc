#include "models/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"

namespace sg {

double learning_rate(const Schedule& s, std::int64_t step) {
  if (!(s.peak >= 0) || !(s.floor >= 0) || s.warmup < 0 || s.total < 0)
    fail(ErrorKind::usage, "learning_rate: peak {}, floor {}, warm-up {} and total {} must not be negative", s.peak,
         s.floor, s.warmup, s.total);
  if (s.total > 0 && s.warmup >= s.total)
    fail(ErrorKind::usage, "learning_rate: a warm-up of {} steps leaves nothing of {} steps", s.warmup, s.total);
  if (step < s.warmup) return s.peak * static_cast<double>(step + 1) / static_cast<double>(s.warmup);
  if (s.total == 0) return s.peak;
  const double done = static_cast<double>(std::min(step, s.total) - s.warmup) / static_cast<double>(s.total - s.warmup);
  return s.floor + (s.peak - s.floor) * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
}

}  // namespace sg
