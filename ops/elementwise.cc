// Elementwise ops: for each the meaning of one element in double (OpDef::scalar, what the reference backend computes),
// its type rule and its derivative. Derivatives are written with the ops themselves, so every order follows; they may
// have the broadcast shape (the engine sums them to the operand's). NaN operands give NaN, in min, max and relu as
// well.
#include "ops/elementwise.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "ops/checks.h"
#include "ops/op_ids.h"

namespace sg {
namespace {

using Types = std::vector<TensorType>;
using Values = std::vector<Value>;

// ---- types

enum class Accepts : std::uint8_t { real, any };

Shape broadcast_all(OpId op, std::span<const TensorType> in) {
  Shape shape = in[0].shape;
  for (const TensorType& t : in.subspan(1)) {
    try {
      shape = broadcast_shapes(shape, t.shape);
    } catch (const Error& e) {
      fail(ErrorKind::shape, "{}: {}", op_def(op).name, e.message());
    }
  }
  return shape;
}

DType common_dtype(OpId op, std::span<const TensorType> in, Accepts accepts) {
  const DType dtype = in[0].dtype;
  for (const TensorType& t : in.subspan(1))
    if (t.dtype != dtype)
      fail(ErrorKind::dtype, "{}: operands are {} and {}; cast one of them", op_def(op).name, to_string(dtype),
           to_string(t.dtype));
  if (accepts == Accepts::real && !is_real(dtype))
    fail(ErrorKind::dtype, "{}: takes real operands, got {}; cast to f32 first", op_def(op).name, to_string(dtype));
  return dtype;
}

template <OpId op, Accepts accepts>
Types infer_arithmetic(std::span<const TensorType> in, const Attrs&) {
  return {{common_dtype(op, in, accepts), broadcast_all(op, in)}};
}

template <OpId op>
Types infer_compare(std::span<const TensorType> in, const Attrs&) {
  common_dtype(op, in, Accepts::any);
  return {{DType::i32, broadcast_all(op, in)}};
}

Types infer_where(std::span<const TensorType> in, const Attrs&) {
  if (in[0].dtype != DType::i32)
    fail(ErrorKind::dtype, "where: the condition is {}, must be i32 (the result of a comparison)",
         to_string(in[0].dtype));
  return {{common_dtype(OpId::where, in.subspan(1), Accepts::any), broadcast_all(OpId::where, in)}};
}

Types infer_clamp(std::span<const TensorType> in, const Attrs& attrs) {
  if (!(attrs.d("lo") <= attrs.d("hi")))
    fail(ErrorKind::attribute, "clamp: lo = {} is above hi = {}", attrs.d("lo"), attrs.d("hi"));
  return infer_arithmetic<OpId::clamp, Accepts::real>(in, attrs);
}

DType cast_target(const Attrs& attrs) { return static_cast<DType>(attrs.i("dtype")); }

Types infer_cast(std::span<const TensorType> in, const Attrs& attrs) { return {{cast_target(attrs), in[0].shape}}; }

// ---- definitions

template <OpId op, Accepts accepts = Accepts::real>
OpDef unary(std::string_view name, ScalarFn scalar, VjpFn vjp, GradKind grad = GradKind::smooth) {
  return {.name = name,
          .arity = 1,
          .grad = grad,
          .elementwise = true,
          .infer = infer_arithmetic<op, accepts>,
          .vjp = vjp,
          .scalar = scalar};
}

template <OpId op, Accepts accepts = Accepts::any>
OpDef binary(std::string_view name, ScalarFn scalar, VjpFn vjp, Role role = Role::plain) {
  return {.name = name,
          .arity = 2,
          .elementwise = true,
          .role = role,
          .infer = infer_arithmetic<op, accepts>,
          .vjp = vjp,
          .scalar = scalar};
}

template <OpId op>
OpDef comparison(std::string_view name, ScalarFn scalar) {
  return {.name = name,
          .arity = 2,
          .grad = GradKind::piecewise,
          .elementwise = true,
          .infer = infer_compare<op>,
          .scalar = scalar};
}

Value g(const VjpCtx& c) { return c.cotangents[0]; }
Value x(const VjpCtx& c) { return c.inputs[0]; }
Value y(const VjpCtx& c) { return c.outputs[0]; }

double stable_sigmoid(double v) { return v >= 0 ? 1.0 / (1.0 + std::exp(-v)) : std::exp(v) / (1.0 + std::exp(v)); }

// The number that v is on its tape, where it is a constant with all elements equal.
const double* constant_value(Value v, double& storage) {
  const Instr& made_by = v.tape->instrs()[static_cast<std::size_t>(v.tape->producer(v.id))];
  if (op_def(made_by.op).role != Role::constant || !made_by.attrs.has("value")) return nullptr;
  storage = made_by.attrs.d("value");
  return &storage;
}

// d a^b / da = b a^(b-1), without the 0 * inf that b = 0 gives at a = 0.
Value pow_base_gradient(Value g, Value a, Value b) {
  double exponent = 0;
  if (constant_value(b, exponent) != nullptr) {
    if (exponent == 0) return 0.0 * g;
    if (exponent == 1) return g;
    return g * (exponent * (exponent == 2 ? a : pow(a, exponent - 1.0)));
  }
  const Value both_zero = equal(a, 0.0) * equal(b, 0.0);
  return g * b * pow(a, where(both_zero, 1.0, b) - 1.0);
}

// d a^b / db = a^b log a, 0 at a = 0.
Value pow_exponent_gradient(Value g, Value a, Value y) { return g * y * log(where(equal(a, 0.0), 1.0, a)); }

// The share of minimum's or maximum's gradient for a side: all where it won, half at a tie.
Value winner_share(Value g, Value won, Value tied) { return where(tied, 0.5 * g, where(won, g, 0.0)); }

}  // namespace

namespace defs {

OpDef add() {
  return binary<OpId::add>(
      "add", [](const double* v, const Attrs&) { return v[0] + v[1]; },
      [](const VjpCtx& c) {
        return Values{g(c), g(c)};
      },
      Role::add);
}
OpDef sub() {
  return binary<OpId::sub>(
      "sub", [](const double* v, const Attrs&) { return v[0] - v[1]; },
      [](const VjpCtx& c) {
        return Values{g(c), c.need[1] ? -g(c) : Value{}};
      },
      Role::sub);
}
OpDef mul() {
  return binary<OpId::mul>(
      "mul", [](const double* v, const Attrs&) { return v[0] * v[1]; },
      [](const VjpCtx& c) {
        return Values{c.need[0] ? g(c) * c.inputs[1] : Value{}, c.need[1] ? g(c) * c.inputs[0] : Value{}};
      },
      Role::mul);
}
OpDef div() {
  return binary<OpId::div, Accepts::real>(
      "div", [](const double* v, const Attrs&) { return v[0] / v[1]; },
      [](const VjpCtx& c) {
        const Value over_b = g(c) / c.inputs[1];
        return Values{over_b, c.need[1] ? -(over_b * y(c)) : Value{}};
      });
}
OpDef pow() {
  return binary<OpId::pow, Accepts::real>(
      "pow", [](const double* v, const Attrs&) { return std::pow(v[0], v[1]); },
      [](const VjpCtx& c) {
        return Values{c.need[0] ? pow_base_gradient(g(c), c.inputs[0], c.inputs[1]) : Value{},
                      c.need[1] ? pow_exponent_gradient(g(c), c.inputs[0], y(c)) : Value{}};
      });
}
OpDef minimum() {
  return binary<OpId::minimum>(
      "minimum", [](const double* v, const Attrs&) { return v[0] < v[1] || std::isnan(v[0]) ? v[0] : v[1]; },
      [](const VjpCtx& c) {
        const Value a = c.inputs[0], b = c.inputs[1], tied = equal(a, b);
        return Values{c.need[0] ? winner_share(g(c), less(a, b), tied) : Value{},
                      c.need[1] ? winner_share(g(c), less(b, a), tied) : Value{}};
      });
}
OpDef maximum() {
  return binary<OpId::maximum>(
      "maximum", [](const double* v, const Attrs&) { return v[0] > v[1] || std::isnan(v[0]) ? v[0] : v[1]; },
      [](const VjpCtx& c) {
        const Value a = c.inputs[0], b = c.inputs[1], tied = equal(a, b);
        return Values{c.need[0] ? winner_share(g(c), greater(a, b), tied) : Value{},
                      c.need[1] ? winner_share(g(c), greater(b, a), tied) : Value{}};
      });
}

OpDef neg() {
  return unary<OpId::neg, Accepts::any>(
      "neg", [](const double* v, const Attrs&) { return -*v; }, [](const VjpCtx& c) { return Values{-g(c)}; });
}
OpDef abs() {
  return unary<OpId::abs, Accepts::any>(
      "abs", [](const double* v, const Attrs&) { return std::abs(*v); },
      [](const VjpCtx& c) { return Values{g(c) * sign(x(c))}; });
}
OpDef exp() {
  return unary<OpId::exp>(
      "exp", [](const double* v, const Attrs&) { return std::exp(*v); },
      [](const VjpCtx& c) { return Values{g(c) * y(c)}; });
}
OpDef log() {
  return unary<OpId::log>(
      "log", [](const double* v, const Attrs&) { return std::log(*v); },
      [](const VjpCtx& c) { return Values{g(c) / x(c)}; });
}
OpDef sqrt() {
  return unary<OpId::sqrt>(
      "sqrt", [](const double* v, const Attrs&) { return std::sqrt(*v); },
      [](const VjpCtx& c) { return Values{0.5 * g(c) / y(c)}; });
}
OpDef rsqrt() {
  return unary<OpId::rsqrt>(
      "rsqrt", [](const double* v, const Attrs&) { return 1.0 / std::sqrt(*v); },
      [](const VjpCtx& c) { return Values{-0.5 * g(c) * y(c) / x(c)}; });
}
OpDef square() {
  return unary<OpId::square>(
      "square", [](const double* v, const Attrs&) { return *v * *v; },
      [](const VjpCtx& c) { return Values{2.0 * g(c) * x(c)}; });
}
OpDef sin() {
  return unary<OpId::sin>(
      "sin", [](const double* v, const Attrs&) { return std::sin(*v); },
      [](const VjpCtx& c) { return Values{g(c) * cos(x(c))}; });
}
OpDef cos() {
  return unary<OpId::cos>(
      "cos", [](const double* v, const Attrs&) { return std::cos(*v); },
      [](const VjpCtx& c) { return Values{-(g(c) * sin(x(c)))}; });
}
OpDef acos() {
  return unary<OpId::acos>(
      "acos", [](const double* v, const Attrs&) { return std::acos(*v); },
      [](const VjpCtx& c) { return Values{-(g(c) * rsqrt(1.0 - square(x(c))))}; });
}
OpDef erf() {
  return unary<OpId::erf>(
      "erf", [](const double* v, const Attrs&) { return std::erf(*v); },
      [](const VjpCtx& c) { return Values{2.0 * std::numbers::inv_sqrtpi * g(c) * exp(-square(x(c)))}; });
}
OpDef tanh() {
  return unary<OpId::tanh>(
      "tanh", [](const double* v, const Attrs&) { return std::tanh(*v); },
      [](const VjpCtx& c) { return Values{g(c) * (1.0 - square(y(c)))}; });
}
OpDef sigmoid() {
  return unary<OpId::sigmoid>(
      "sigmoid", [](const double* v, const Attrs&) { return stable_sigmoid(*v); },
      [](const VjpCtx& c) { return Values{g(c) * y(c) * (1.0 - y(c))}; });
}
OpDef softplus() {
  return unary<OpId::softplus>(
      "softplus",
      [](const double* v, const Attrs&) { return *v > 0 ? *v + std::log1p(std::exp(-*v)) : std::log1p(std::exp(*v)); },
      [](const VjpCtx& c) { return Values{g(c) * sigmoid(x(c))}; });
}
OpDef silu() {
  return unary<OpId::silu>(
      "silu", [](const double* v, const Attrs&) { return *v * stable_sigmoid(*v); },
      [](const VjpCtx& c) {
        const Value s = sigmoid(x(c));
        return Values{g(c) * (s + y(c) * (1.0 - s))};
      });
}
OpDef relu() {
  return unary<OpId::relu>(
      "relu", [](const double* v, const Attrs&) { return *v < 0 ? 0.0 : *v; },
      [](const VjpCtx& c) {
        return Values{c.tape.emit1(OpId::relu_grad, {g(c), y(c)})};
      });
}
OpDef gelu() {
  return unary<OpId::gelu>(
      "gelu", [](const double* v, const Attrs&) { return 0.5 * *v * (1.0 + std::erf(*v / std::numbers::sqrt2)); },
      [](const VjpCtx& c) {
        const double inv_sqrt_2pi = std::numbers::inv_sqrtpi / std::numbers::sqrt2;
        const Value cdf = 0.5 + 0.5 * erf(x(c) * (1.0 / std::numbers::sqrt2));
        const Value density = inv_sqrt_2pi * exp(-0.5 * square(x(c)));
        return Values{g(c) * (cdf + x(c) * density)};
      });
}
OpDef leaky_relu() {
  return unary<OpId::leaky_relu>(
      "leaky_relu", [](const double* v, const Attrs& attrs) { return *v > 0 ? *v : attrs.d("slope") * *v; },
      [](const VjpCtx& c) { return Values{where(greater(x(c), 0.0), g(c), c.attrs.d("slope") * g(c))}; });
}
OpDef clamp() {
  OpDef def = unary<OpId::clamp>(
      "clamp",
      [](const double* v, const Attrs& attrs) {
        const double lo = attrs.d("lo"), hi = attrs.d("hi");
        return *v < lo ? lo : *v > hi ? hi : *v;
      },
      [](const VjpCtx& c) {
        const Value inside = greater_equal(x(c), c.attrs.d("lo")) * less_equal(x(c), c.attrs.d("hi"));
        return Values{where(inside, g(c), 0.0)};
      });
  def.infer = infer_clamp;
  return def;
}
OpDef round() {
  return unary<OpId::round>(
      "round", [](const double* v, const Attrs&) { return std::nearbyint(*v); }, nullptr, GradKind::piecewise);
}
OpDef floor() {
  return unary<OpId::floor>(
      "floor", [](const double* v, const Attrs&) { return std::floor(*v); }, nullptr, GradKind::piecewise);
}
OpDef sign() {
  return unary<OpId::sign>(
      "sign", [](const double* v, const Attrs&) { return *v > 0   ? 1.0
                                                         : *v < 0 ? -1.0
                                                                  : *v; }, nullptr,
      GradKind::piecewise);
}
OpDef cast() {
  return {.name = "cast",
          .arity = 1,
          .elementwise = true,
          .infer = infer_cast,
          .vjp =
              [](const VjpCtx& c) {
                const bool smooth = is_real(x(c).dtype()) && is_real(y(c).dtype());
                return Values{smooth ? cast(g(c), x(c).dtype()) : Value{}};
              },
          .scalar =
              [](const double* v, const Attrs& attrs) {
                if (cast_target(attrs) != DType::i32) return *v;
                using Int = std::numeric_limits<std::int32_t>;
                if (std::isnan(*v)) return 0.0;
                return std::clamp(std::trunc(*v), double{Int::min()}, double{Int::max()});
              }};
}

OpDef equal() {
  return comparison<OpId::equal>("equal", [](const double* v, const Attrs&) { return v[0] == v[1] ? 1.0 : 0.0; });
}
OpDef not_equal() {
  return comparison<OpId::not_equal>("not_equal",
                                     [](const double* v, const Attrs&) { return v[0] != v[1] ? 1.0 : 0.0; });
}
OpDef less() {
  return comparison<OpId::less>("less", [](const double* v, const Attrs&) { return v[0] < v[1] ? 1.0 : 0.0; });
}
OpDef less_equal() {
  return comparison<OpId::less_equal>("less_equal",
                                      [](const double* v, const Attrs&) { return v[0] <= v[1] ? 1.0 : 0.0; });
}
OpDef greater() {
  return comparison<OpId::greater>("greater", [](const double* v, const Attrs&) { return v[0] > v[1] ? 1.0 : 0.0; });
}
OpDef greater_equal() {
  return comparison<OpId::greater_equal>("greater_equal",
                                         [](const double* v, const Attrs&) { return v[0] >= v[1] ? 1.0 : 0.0; });
}

OpDef where() {
  return {.name = "where",
          .arity = 3,
          .elementwise = true,
          .infer = infer_where,
          .vjp =
              [](const VjpCtx& c) {
                return Values{Value{}, c.need[1] ? where(x(c), g(c), 0.0) : Value{},
                              c.need[2] ? where(x(c), 0.0, g(c)) : Value{}};
              },
          .scalar = [](const double* v, const Attrs&) { return v[0] != 0 ? v[1] : v[2]; }};
}
OpDef relu_grad() {
  return binary<OpId::relu_grad, Accepts::real>(
      "relu_grad", [](const double* v, const Attrs&) { return v[1] > 0 ? v[0] : 0.0; },
      // Linear in the gradient; locally constant in y.
      [](const VjpCtx& c) {
        return Values{c.need[0] ? c.tape.emit1(OpId::relu_grad, {g(c), c.inputs[1]}) : Value{}, Value{}};
      });
}

}  // namespace defs

// ---- recording

namespace {

// An operand as a Value of the dtype of `like`.
Value on_tape_of(OpId op, const Operand& operand, Value like) {
  if (!operand.is_scalar()) return operand.value();
  if (!is_real(like.dtype()) && operand.scalar() != std::trunc(operand.scalar()))
    checks::fail_at(operand.loc(), ErrorKind::dtype,
                    "{}: the number {} does not fit the i32 operand; cast it to f32 first", op_def(op).name,
                    operand.scalar());
  return operand.on(*like.tape, like.dtype());
}

Value emit_unary(OpId op, const Operand& x, Attrs attrs = {}) {
  const Value v = x.value();
  return v.tape->emit1(op, {v}, std::move(attrs), x.loc());
}

Value emit_binary(OpId op, const Operand& a, const Operand& b) {
  if (a.is_scalar() && b.is_scalar())
    checks::fail_at(a.loc(), ErrorKind::usage, "{}: both operands are numbers; one must be a Value", op_def(op).name);
  const Value like = a.is_scalar() ? b.value() : a.value();
  return like.tape->emit1(op, {on_tape_of(op, a, like), on_tape_of(op, b, like)}, {}, a.loc());
}

}  // namespace

Value operator+(Operand a, Operand b) { return emit_binary(OpId::add, a, b); }
Value operator-(Operand a, Operand b) { return emit_binary(OpId::sub, a, b); }
Value operator*(Operand a, Operand b) { return emit_binary(OpId::mul, a, b); }
Value operator/(Operand a, Operand b) { return emit_binary(OpId::div, a, b); }
Value operator-(Operand a) { return emit_unary(OpId::neg, a); }

Value pow(Operand a, Operand b) { return emit_binary(OpId::pow, a, b); }
Value minimum(Operand a, Operand b) { return emit_binary(OpId::minimum, a, b); }
Value maximum(Operand a, Operand b) { return emit_binary(OpId::maximum, a, b); }

Value abs(Operand x) { return emit_unary(OpId::abs, x); }
Value exp(Operand x) { return emit_unary(OpId::exp, x); }
Value log(Operand x) { return emit_unary(OpId::log, x); }
Value sqrt(Operand x) { return emit_unary(OpId::sqrt, x); }
Value rsqrt(Operand x) { return emit_unary(OpId::rsqrt, x); }
Value square(Operand x) { return emit_unary(OpId::square, x); }
Value sin(Operand x) { return emit_unary(OpId::sin, x); }
Value cos(Operand x) { return emit_unary(OpId::cos, x); }
Value acos(Operand x) { return emit_unary(OpId::acos, x); }
Value erf(Operand x) { return emit_unary(OpId::erf, x); }
Value tanh(Operand x) { return emit_unary(OpId::tanh, x); }
Value sigmoid(Operand x) { return emit_unary(OpId::sigmoid, x); }
Value softplus(Operand x) { return emit_unary(OpId::softplus, x); }
Value silu(Operand x) { return emit_unary(OpId::silu, x); }
Value relu(Operand x) { return emit_unary(OpId::relu, x); }
Value gelu(Operand x) { return emit_unary(OpId::gelu, x); }
Value leaky_relu(Operand x, double slope) { return emit_unary(OpId::leaky_relu, x, {{"slope", slope}}); }
Value clamp(Operand x, double lo, double hi) { return emit_unary(OpId::clamp, x, {{"lo", lo}, {"hi", hi}}); }
Value round(Operand x) { return emit_unary(OpId::round, x); }
Value floor(Operand x) { return emit_unary(OpId::floor, x); }
Value sign(Operand x) { return emit_unary(OpId::sign, x); }

Value cast(Operand x, DType to) {
  if (x.value().dtype() == to) return x.value();
  return emit_unary(OpId::cast, x, {{"dtype", static_cast<std::int64_t>(to)}});
}

Value equal(Operand a, Operand b) { return emit_binary(OpId::equal, a, b); }
Value not_equal(Operand a, Operand b) { return emit_binary(OpId::not_equal, a, b); }
Value less(Operand a, Operand b) { return emit_binary(OpId::less, a, b); }
Value less_equal(Operand a, Operand b) { return emit_binary(OpId::less_equal, a, b); }
Value greater(Operand a, Operand b) { return emit_binary(OpId::greater, a, b); }
Value greater_equal(Operand a, Operand b) { return emit_binary(OpId::greater_equal, a, b); }

Value where(Operand condition, Operand a, Operand b) {
  if (a.is_scalar() && b.is_scalar())
    checks::fail_at(condition.loc(), ErrorKind::usage,
                    "where: both branches are numbers, so the result has no dtype; cast the condition instead");
  const Value like = a.is_scalar() ? b.value() : a.value();
  const Value c = condition.value();
  return c.tape->emit1(OpId::where, {c, on_tape_of(OpId::where, a, like), on_tape_of(OpId::where, b, like)}, {},
                       condition.loc());
}

}  // namespace sg
