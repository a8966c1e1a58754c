// Arithmetic of f16, bf16 and their packed pairs: in double, rounded once.
#include "tests/cuda_emulator/ptx/lanes.h"
#include "tests/cuda_emulator/ptx/small_float.h"

namespace sg::ptx {
namespace {

double value(Half x) { return half_value(static_cast<u16>(x)); }
double value(Bfloat x) { return bfloat_value(static_cast<u16>(x)); }
template <class H>
H narrow(double x) {
  if constexpr (std::is_same_v<H, Half>)
    return Half{half_bits(x)};
  else
    return Bfloat{bfloat_bits(x)};
}
double fused(double a, double b, double c) { return odd_sum(a * b, c); }  // a * b is exact
double smaller(double a, double b) { return a != a ? b : b != b ? a : a < b || (a == b && std::signbit(a)) ? a : b; }
double larger(double a, double b) { return a != a ? b : b != b ? a : a > b || (a == b && !std::signbit(a)) ? a : b; }
double smaller_nan(double a, double b) { return a != a || b != b ? NAN : smaller(a, b); }
double larger_nan(double a, double b) { return a != a || b != b ? NAN : larger(a, b); }
double positive(double x) { return x > 0 || x != x ? x : 0.0; }     // .relu
double in_unit(double x) { return x > 1 ? 1.0 : x > 0 ? x : 0.0; }  // .sat

template <auto F, class H, class... S>
u32 both(S... x) {
  const u32 lo = static_cast<u16>(narrow<H>(F(value(H{static_cast<u16>(x)})...)));
  const u32 hi = static_cast<u16>(narrow<H>(F(value(H{static_cast<u16>(x >> 16)})...)));
  return lo | hi << 16;
}

template <auto F, class H>
void add_unary(Forms& f, const std::string& op, const std::string& t) {
  f[op + "." + t] = form<[](H a) -> H { return narrow<H>(F(value(a))); }>();
  f[op + "." + t + "x2"] = form<[](u32 a) -> u32 { return both<F, H>(a); }>();
}
template <auto F, class H>
void add_binary(Forms& f, const std::string& op, const std::string& t) {
  f[op + "." + t] = form<[](H a, H b) -> H { return narrow<H>(F(value(a), value(b))); }>();
  f[op + "." + t + "x2"] = form<[](u32 a, u32 b) -> u32 { return both<F, H>(a, b); }>();
}
template <auto F, class H>
void add_ternary(Forms& f, const std::string& op, const std::string& t) {
  f[op + "." + t] = form<[](H a, H b, H c) -> H { return narrow<H>(F(value(a), value(b), value(c))); }>();
  f[op + "." + t + "x2"] = form<[](u32 a, u32 b, u32 c) -> u32 { return both<F, H>(a, b, c); }>();
}

template <class H>
void add_type(Forms& f, const std::string& t) {
  for (const std::string rn : {"", ".rn"}) {
    add_binary<[](double a, double b) { return odd_sum(a, b); }, H>(f, "add" + rn, t);
    add_binary<[](double a, double b) { return odd_sum(a, -b); }, H>(f, "sub" + rn, t);
    add_binary<[](double a, double b) { return a * b; }, H>(f, "mul" + rn, t);
    add_binary<[](double a, double b) { return in_unit(odd_sum(a, b)); }, H>(f, "add" + rn + ".sat", t);
    add_binary<[](double a, double b) { return in_unit(odd_sum(a, -b)); }, H>(f, "sub" + rn + ".sat", t);
    add_binary<[](double a, double b) { return in_unit(a * b); }, H>(f, "mul" + rn + ".sat", t);
  }
  add_ternary<[](double a, double b, double c) { return fused(a, b, c); }, H>(f, "fma.rn", t);
  add_ternary<[](double a, double b, double c) { return in_unit(fused(a, b, c)); }, H>(f, "fma.rn.sat", t);
  add_ternary<[](double a, double b, double c) { return positive(fused(a, b, c)); }, H>(f, "fma.rn.relu", t);
  add_binary<[](double a, double b) { return smaller(a, b); }, H>(f, "min", t);
  add_binary<[](double a, double b) { return larger(a, b); }, H>(f, "max", t);
  add_binary<[](double a, double b) { return smaller_nan(a, b); }, H>(f, "min.NaN", t);
  add_binary<[](double a, double b) { return larger_nan(a, b); }, H>(f, "max.NaN", t);
  add_unary<[](double a) { return std::tanh(a); }, H>(f, "tanh.approx", t);
  // Sign bits alone: a payload of a NaN stays.
  f["neg." + t] = form<[](u16 a) -> u16 { return static_cast<u16>(a ^ 0x8000); }>();
  f["abs." + t] = form<[](u16 a) -> u16 { return static_cast<u16>(a & 0x7fff); }>();
  f["neg." + t + "x2"] = form<[](u32 a) -> u32 { return a ^ 0x80008000u; }>();
  f["abs." + t + "x2"] = form<[](u32 a) -> u32 { return a & 0x7fff7fffu; }>();

  f["setp.eq." + t] = compare_form<[](H a, H b) { return value(a) == value(b); }, H>();
  f["setp.ne." + t] = compare_form<[](H a, H b) { return value(a) < value(b) || value(b) < value(a); }, H>();
  f["setp.lt." + t] = compare_form<[](H a, H b) { return value(a) < value(b); }, H>();
  f["setp.le." + t] = compare_form<[](H a, H b) { return value(a) <= value(b); }, H>();
  f["setp.gt." + t] = compare_form<[](H a, H b) { return value(b) < value(a); }, H>();
  f["setp.ge." + t] = compare_form<[](H a, H b) { return value(a) >= value(b); }, H>();
  f["setp.equ." + t] = compare_form<[](H a, H b) { return !(value(a) < value(b) || value(b) < value(a)); }, H>();
  f["setp.neu." + t] = compare_form<[](H a, H b) { return !(value(a) == value(b)); }, H>();
  f["setp.ltu." + t] = compare_form<[](H a, H b) { return !(value(a) >= value(b)); }, H>();
  f["setp.leu." + t] = compare_form<[](H a, H b) { return !(value(b) < value(a)); }, H>();
  f["setp.gtu." + t] = compare_form<[](H a, H b) { return !(value(a) <= value(b)); }, H>();
  f["setp.geu." + t] = compare_form<[](H a, H b) { return !(value(a) < value(b)); }, H>();
  f["setp.nan." + t] = compare_form<[](H a, H b) { return value(a) != value(a) || value(b) != value(b); }, H>();
  f["setp.num." + t] = compare_form<[](H a, H b) { return value(a) == value(a) && value(b) == value(b); }, H>();
}

}  // namespace

void add_half_forms(Forms& f) {
  add_type<Half>(f, "f16");
  add_type<Bfloat>(f, "bf16");
  f["ex2.approx.f16"] = form<[](Half a) -> Half { return narrow<Half>(std::exp2(value(a))); }>();
  f["ex2.approx.f16x2"] = form<[](u32 a) -> u32 { return both<[](double x) { return std::exp2(x); }, Half>(a); }>();
  f["ex2.approx.ftz.bf16"] = form<[](Bfloat a) -> Bfloat { return narrow<Bfloat>(std::exp2(value(a))); }>();
}

}  // namespace sg::ptx
