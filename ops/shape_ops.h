// Ops that move elements without changing them. All are smooth and closed under VJP.
#pragma once
#include <initializer_list>
#include <vector>

#include "core/tape.h"

namespace sg {

Value reshape(Operand x, Shape shape);                     // one extent may be -1: it is computed (pass it in a vector)
Value reshape(Operand x, std::vector<std::int64_t> shape);
Value reshape(Operand x, std::initializer_list<std::int64_t> shape);  // so that reshape(x, {n, -1}) is not ambiguous
Value transpose(Operand x, std::vector<std::int64_t> perm); // out.shape[i] = x.shape[perm[i]]
Value broadcast(Operand x, Shape shape);                   // NumPy rules
// Elements start[i], start[i]+step[i], ... below stop[i] along each axis.
Value slice(Operand x, std::vector<std::int64_t> start, std::vector<std::int64_t> stop, std::vector<std::int64_t> step = {});
Value slice_axis(Operand x, std::int64_t axis, std::int64_t start, std::int64_t stop);
Value concat(std::vector<Value> parts, std::int64_t axis, Loc loc = Loc::current());
Value pad(Operand x, std::vector<std::int64_t> before, std::vector<std::int64_t> after, double value = 0);
Value zeros_like(Operand x);
// x, known only once y is: what uses it runs after y was made, whatever passes do. The gradient goes to x alone.
Value after(Operand x, Operand y);

}  // namespace sg
