// Arithmetic and comparison of f32 and f64. IEEE operations are exact; the approximations of the hardware are those of
// libm here. An f32 result that is not a number is PTX's one NaN, 0x7fffffff.
#include <bit>
#include <cfenv>
#include <cmath>

#include "tests/cuda_emulator/ptx/lanes.h"

namespace sg::ptx {

Rounding::Rounding(int mode) : before_(std::fegetround()) { std::fesetround(mode); }
Rounding::~Rounding() { std::fesetround(before_); }

namespace {

float one_nan(float x) { return x != x ? std::bit_cast<float>(0x7fffffffu) : x; }
double one_nan(double x) { return x; }
template <class T>
T fused(T a, T b, T c) {
  if constexpr (sizeof(T) == 4)
    return __builtin_fmaf(a, b, c);
  else
    return __builtin_fma(a, b, c);
}
template <class T>
T saturated(T x) {  // NaN becomes +0
  return x > T{1} ? T{1} : x > T{0} ? x : T{0};
}
template <class T>
T smaller(T a, T b) {  // of -0 and +0, -0; a number rather than NaN
  const T r = a < b ? a : b < a ? b : std::signbit(a) ? a : b;
  return a != a ? b : b != b ? a : r;
}
template <class T>
T larger(T a, T b) {
  const T r = a > b ? a : b > a ? b : std::signbit(a) ? b : a;
  return a != a ? b : b != b ? a : r;
}
// .ftz: denormals become zeros of their sign
float flushed(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }

template <class T>
void add_compare(Forms& f, const std::string& t) {
  f["setp.eq." + t] = compare_form<[](T a, T b) { return a == b; }, T>();
  f["setp.ne." + t] = compare_form<[](T a, T b) { return a < b || b < a; }, T>();
  f["setp.lt." + t] = compare_form<[](T a, T b) { return a < b; }, T>();
  f["setp.le." + t] = compare_form<[](T a, T b) { return a <= b; }, T>();
  f["setp.gt." + t] = compare_form<[](T a, T b) { return b < a; }, T>();
  f["setp.ge." + t] = compare_form<[](T a, T b) { return a >= b; }, T>();
  f["setp.equ." + t] = compare_form<[](T a, T b) { return !(a < b || b < a); }, T>();
  f["setp.neu." + t] = compare_form<[](T a, T b) { return !(a == b); }, T>();
  f["setp.ltu." + t] = compare_form<[](T a, T b) { return !(a >= b); }, T>();
  f["setp.leu." + t] = compare_form<[](T a, T b) { return !(b < a); }, T>();
  f["setp.gtu." + t] = compare_form<[](T a, T b) { return !(a <= b); }, T>();
  f["setp.geu." + t] = compare_form<[](T a, T b) { return !(a < b); }, T>();
  f["setp.num." + t] = compare_form<[](T a, T b) { return a == a && b == b; }, T>();
  f["setp.nan." + t] = compare_form<[](T a, T b) { return a != a || b != b; }, T>();
}

template <class T, int kMode>
void add_rounded(Forms& f, const std::string& suffix) {
  f["add" + suffix] = rounded_form<kMode, [](T a, T b) -> T { return one_nan(a + b); }>();
  f["sub" + suffix] = rounded_form<kMode, [](T a, T b) -> T { return one_nan(a - b); }>();
  f["mul" + suffix] = rounded_form<kMode, [](T a, T b) -> T { return one_nan(a * b); }>();
  f["div" + suffix] = rounded_form<kMode, [](T a, T b) -> T { return one_nan(a / b); }>();
  f["fma" + suffix] = rounded_form<kMode, [](T a, T b, T c) -> T { return one_nan(fused(a, b, c)); }>();
  f["sqrt" + suffix] = rounded_form<kMode, [](T a) -> T { return one_nan(std::sqrt(a)); }>();
  f["rcp" + suffix] = rounded_form<kMode, [](T a) -> T { return one_nan(T{1} / a); }>();
}

template <class T>
void add_arithmetic(Forms& f, const std::string& t) {
  f["add.rn." + t] = f["add." + t] = form<[](T a, T b) -> T { return one_nan(a + b); }>();
  f["sub.rn." + t] = f["sub." + t] = form<[](T a, T b) -> T { return one_nan(a - b); }>();
  f["mul.rn." + t] = f["mul." + t] = form<[](T a, T b) -> T { return one_nan(a * b); }>();
  f["fma.rn." + t] = f["mad.rn." + t] = form<[](T a, T b, T c) -> T { return one_nan(fused(a, b, c)); }>();
  f["div.rn." + t] = form<[](T a, T b) -> T { return one_nan(a / b); }>();
  f["sqrt.rn." + t] = form<[](T a) -> T { return one_nan(std::sqrt(a)); }>();
  f["rcp.rn." + t] = form<[](T a) -> T { return one_nan(T{1} / a); }>();
  add_rounded<T, FE_TOWARDZERO>(f, ".rz." + t);
  add_rounded<T, FE_DOWNWARD>(f, ".rm." + t);
  add_rounded<T, FE_UPWARD>(f, ".rp." + t);
  f["min." + t] = form<[](T a, T b) -> T { return one_nan(smaller(a, b)); }>();
  f["max." + t] = form<[](T a, T b) -> T { return one_nan(larger(a, b)); }>();
  f["neg." + t] = form<[](T a) -> T { return -a; }>();
  f["abs." + t] = form<[](T a) -> T { return std::fabs(a); }>();
  f["copysign." + t] = form<[](T a, T b) -> T { return std::copysign(b, a); }>();
  add_compare<T>(f, t);
}

void add_saturating(Forms& f) {
  for (const std::string rn : {"", ".rn"}) {
    f["add" + rn + ".sat.f32"] = form<[](float a, float b) -> float { return saturated(a + b); }>();
    f["sub" + rn + ".sat.f32"] = form<[](float a, float b) -> float { return saturated(a - b); }>();
    f["mul" + rn + ".sat.f32"] = form<[](float a, float b) -> float { return saturated(a * b); }>();
  }
  f["fma.rn.sat.f32"] = form<[](float a, float b, float c) -> float { return saturated(__builtin_fmaf(a, b, c)); }>();
  f["min.NaN.f32"] =
      form<[](float a, float b) -> float { return one_nan(a != a || b != b ? a + b : smaller(a, b)); }>();
  f["max.NaN.f32"] = form<[](float a, float b) -> float { return one_nan(a != a || b != b ? a + b : larger(a, b)); }>();
}

// op and op.ftz
template <auto F>
void add_approximation(Forms& f, const std::string& op) {
  f[op + ".f32"] = form<[](float a) -> float { return one_nan(F(a)); }>();
  f[op + ".ftz.f32"] = form<[](float a) -> float { return flushed(one_nan(F(flushed(a)))); }>();
}

template <class T>
void add_tests(Forms& f, const std::string& t) {  // testp: of one operand, so the second is not looked at
  f["testp.finite." + t] = compare_form<[](T a, T) { return a - a == T{0}; }, T>();
  f["testp.infinite." + t] = compare_form<[](T a, T) { return a == a && a - a != T{0}; }, T>();
  f["testp.number." + t] = compare_form<[](T a, T) { return a == a; }, T>();
  f["testp.notanumber." + t] = compare_form<[](T a, T) { return a != a; }, T>();
  f["testp.normal." + t] =
      compare_form<[](T a, T) { return a - a == T{0} && std::fabs(a) >= std::numeric_limits<T>::min(); }, T>();
  f["testp.subnormal." + t] =
      compare_form<[](T a, T) { return a != T{0} && std::fabs(a) < std::numeric_limits<T>::min(); }, T>();
}

}  // namespace

void add_float_forms(Forms& f) {
  add_arithmetic<float>(f, "f32");
  add_arithmetic<double>(f, "f64");
  add_saturating(f);
  add_tests<float>(f, "f32");
  add_tests<double>(f, "f64");
  add_approximation<[](float a) { return 1.0f / a; }>(f, "rcp.approx");
  add_approximation<[](float a) { return std::sqrt(a); }>(f, "sqrt.approx");
  add_approximation<[](float a) { return 1.0f / std::sqrt(a); }>(f, "rsqrt.approx");
  add_approximation<[](float a) { return std::exp2(a); }>(f, "ex2.approx");
  add_approximation<[](float a) { return std::log2(a); }>(f, "lg2.approx");
  add_approximation<[](float a) { return std::sin(a); }>(f, "sin.approx");
  add_approximation<[](float a) { return std::cos(a); }>(f, "cos.approx");
  f["tanh.approx.f32"] = form<[](float a) -> float { return one_nan(std::tanh(a)); }>();
  for (const std::string op : {"div.approx", "div.full"}) {
    f[op + ".f32"] = form<[](float a, float b) -> float { return one_nan(a / b); }>();
    f[op + ".ftz.f32"] = form<[](float a, float b) -> float { return flushed(one_nan(flushed(a) / flushed(b))); }>();
  }
  // The hardware takes these from the high word alone; what nvcc builds on them refines an approximation that is
  // better.
  f["rcp.approx.ftz.f64"] = form<[](double a) -> double { return 1.0 / a; }>();
  f["rsqrt.approx.ftz.f64"] = f["rsqrt.approx.f64"] = form<[](double a) -> double { return 1.0 / std::sqrt(a); }>();
}

}  // namespace sg::ptx
