// What a comparison has found: table.md, results.json, curves.png.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "tools/comparison.h"

namespace sg::tools {

// Mean, and half the width of the 95 % interval of Student's t: t(0.975, n-1) s / sqrt(n). half_width is NaN for n < 2.
struct Interval {
  double mean = 0, half_width = 0;
  std::size_t n = 0;
};
Interval interval_of(std::span<const double> values);
std::string to_string(const Interval& interval);  // "0.01234 ± 0.00056"; the mean alone for n = 1; "-" for n = 0

// Writes the three files, `results` in the order of the runs, and returns the table as text. Step times are left out
// where some run has none.
std::string write_report(const Comparison& comparison, std::span<const RunResult> results);

}  // namespace sg::tools
