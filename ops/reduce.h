// Reductions over any axes. Negative axes count from the end; no axes means all of them. keep leaves extents of 1.
#pragma once
#include <vector>

#include "core/tape.h"

namespace sg {

using Axes = std::vector<std::int64_t>;

Value sum(Operand x, Axes axes = {}, bool keep = false);
Value mean(Operand x, Axes axes = {}, bool keep = false);   // sum / count
Value max(Operand x, Axes axes = {}, bool keep = false);    // the gradient is shared equally among ties
Value min(Operand x, Axes axes = {}, bool keep = false);
Value argmax(Operand x, std::int64_t axis = -1);            // i32, the axis removed; ties to the lowest index; piecewise
Value argmin(Operand x, std::int64_t axis = -1);
Value quantile(Operand x, std::vector<double> q);           // of all elements, linear interpolation; piecewise. Shape [q.size()]
Value norm(Operand x, Axes axes, bool keep = false);        // Euclidean: sqrt(sum(x^2))
Value dot(Operand a, Operand b, bool keep = true);          // row-wise: sum(a * b, {-1})

}  // namespace sg
