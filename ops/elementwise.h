// Elementwise ops. Operands broadcast as in NumPy and share one dtype; a number takes the dtype of the other side.
// Shapes: the broadcast shape of the operands. Errors: shape, dtype.
#pragma once
#include "core/tape.h"

namespace sg {

Value operator+(Operand a, Operand b);
Value operator-(Operand a, Operand b);
Value operator*(Operand a, Operand b);
Value operator/(Operand a, Operand b);
Value operator-(Operand a);

Value pow(Operand a, Operand b);
Value minimum(Operand a, Operand b);
Value maximum(Operand a, Operand b);

Value abs(Operand x);
Value exp(Operand x);
Value log(Operand x);
Value sqrt(Operand x);
Value rsqrt(Operand x);       // x^(-1/2)
Value square(Operand x);
Value sin(Operand x);
Value cos(Operand x);
Value acos(Operand x);        // radians
Value erf(Operand x);
Value tanh(Operand x);
Value sigmoid(Operand x);
Value softplus(Operand x);    // log(1 + e^x)
Value silu(Operand x);        // x sigmoid(x)
Value relu(Operand x);        // derivative 0 at 0
Value gelu(Operand x);        // x Phi(x), exact (erf)
Value leaky_relu(Operand x, double slope = 0.01);
Value clamp(Operand x, double lo, double hi);   // derivative 1 inside [lo, hi], 0 outside
Value round(Operand x);       // half to even; piecewise: no gradient
Value floor(Operand x);       // piecewise
Value sign(Operand x);        // piecewise
Value cast(Operand x, DType to);   // real to real is smooth

// 0/1 as i32; piecewise.
Value equal(Operand a, Operand b);
Value not_equal(Operand a, Operand b);
Value less(Operand a, Operand b);
Value less_equal(Operand a, Operand b);
Value greater(Operand a, Operand b);
Value greater_equal(Operand a, Operand b);
Value where(Operand condition, Operand a, Operand b);   // condition: i32

}  // namespace sg
