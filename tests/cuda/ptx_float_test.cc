// Floating point instructions of the interpreter against C++: f32 and f64 with every rounding, f16 and bf16 against a
// table of all their values, conversions.
#include <algorithm>
#include <limits>

#include "tests/cuda/ptx_harness.h"

namespace sg::ptx_test {
namespace {

using f128 = __float128;

enum class To { nearest, zero, down, up };
struct Direction {
  const char* name;
  To to;
};
constexpr Direction kDirections[] = {{"rn", To::nearest}, {"rz", To::zero}, {"rm", To::down}, {"rp", To::up}};

// The exact value high + low rounded to T. low only breaks ties that high cannot tell: its sign matters.
template <class T>
T round_exact(f128 high, f128 low, To to) {
  T near = static_cast<T>(high);  // nearest, or one beside it
  if (near != near) return near;
  const T inf = std::numeric_limits<T>::infinity(), largest = std::numeric_limits<T>::max();
  if (std::isinf(near) && high - high == 0) near = near > 0 ? largest : -largest;  // overflow is decided below
  if (std::isinf(near)) return near;
  auto above = [&](T x) { return high - x > 0 || (high - x == 0 && low > 0); };  // exact value > x
  auto below = [&](T x) { return high - x < 0 || (high - x == 0 && low < 0); };
  T lower = near, upper = near;
  if (above(near)) upper = std::nextafter(near, inf);
  if (below(near)) lower = std::nextafter(near, -inf);
  if (lower == upper) return near;
  const bool negative = high < 0 || (high == 0 && low < 0);
  switch (to) {
    case To::down:
      return lower;
    case To::up:
      return upper == 0 && negative ? -T{0} : upper;
    case To::zero:
      return negative ? (upper == 0 ? -T{0} : upper) : lower;
    case To::nearest:
      break;
  }
  const f128 step = std::isinf(upper)   ? static_cast<f128>(largest) - std::nextafter(largest, T{0})
                    : std::isinf(lower) ? static_cast<f128>(largest) - std::nextafter(largest, T{0})
                                        : static_cast<f128>(upper) - lower;
  const f128 base = std::isinf(lower) ? static_cast<f128>(upper) - step : static_cast<f128>(lower);
  const f128 twice = 2 * (high - base) - step;  // > 0: nearer to upper
  if (twice > 0 || (twice == 0 && low > 0)) return upper;
  if (twice < 0 || low < 0) return lower == 0 && negative ? -T{0} : upper == 0 && negative ? lower : lower;
  const bool lower_even = (to_bits(lower) & 1) == 0;
  return lower_even ? lower : upper == 0 && negative ? -T{0} : upper;
}

template <class T>
struct Exact {
  f128 high, low;
};
template <class T>
Exact<T> exact_sum(f128 a, f128 b) {
  const f128 s = a + b, t = s - a;
  return {s, (a - (s - t)) + (b - t)};
}

TEST(PtxFloat, F32IsRoundedOnceInEveryDirection) {
  for (const auto& [name, to] : kDirections) {
    const std::string suffix = std::string(".") + name + ".f32 ";
    check<float, float, float>("add" + suffix + "$d, $a, $b", [to = to](float a, float b) {
      const float plain = a + b;
      if (!std::isfinite(a) || !std::isfinite(b)) return plain;
      const auto [high, low] = exact_sum<float>(a, b);
      if (high == 0 && low == 0)
        return a == 0 && b == 0 && std::signbit(a) == std::signbit(b) ? a : to == To::down ? -0.0f : 0.0f;
      return round_exact<float>(high, low, to);
    });
    check<float, float, float>("sub" + suffix + "$d, $a, $b", [to = to](float a, float b) {
      const float plain = a - b;
      if (!std::isfinite(a) || !std::isfinite(b)) return plain;
      const auto [high, low] = exact_sum<float>(a, -b);
      if (high == 0 && low == 0)
        return a == 0 && b == 0 && std::signbit(a) != std::signbit(b) ? a : to == To::down ? -0.0f : 0.0f;
      return round_exact<float>(high, low, to);
    });
    check<float, float, float>("mul" + suffix + "$d, $a, $b", [to = to](float a, float b) {
      const float plain = a * b;
      if (!std::isfinite(a) || !std::isfinite(b) || a == 0 || b == 0) return plain;
      return round_exact<float>(f128{a} * b, 0, to);
    });
    check<float, float, float, float>("fma" + suffix + "$d, $a, $b, $c", [to = to](float a, float b, float c) {
      const float plain = std::fma(a, b, c);
      if (!std::isfinite(a) || !std::isfinite(b) || !std::isfinite(c)) return plain;
      const auto [high, low] = exact_sum<float>(f128{a} * b, c);
      if (high == 0 && low == 0) {
        const bool negative = std::signbit(a) != std::signbit(b);
        const bool same = (a == 0 || b == 0) && c == 0 && negative == std::signbit(c);
        return same ? c : to == To::down ? -0.0f : 0.0f;
      }
      return round_exact<float>(high, low, to);
    });
    check<float, float, float>("div" + suffix + "$d, $a, $b", [to = to](float a, float b) {
      const float plain = a / b;
      if (!std::isfinite(a) || !std::isfinite(b) || a == 0 || b == 0) return plain;
      const f128 q = f128{a} / b;  // what is left tells on which side of q the quotient lies
      const f128 rest = f128{a} - q * b;
      return round_exact<float>(q, b > 0 ? rest : -rest, to);
    });
    check<float, float>("sqrt" + suffix + "$d, $a", [to = to](float a) {
      const float plain = std::sqrt(a);
      if (!std::isfinite(plain) || a == 0 || to == To::nearest) return plain;
      const f128 square = f128{plain} * plain;  // exact
      if (square == a) return plain;
      if (to == To::up) return square < a ? std::nextafter(plain, INFINITY) : plain;
      return square > a ? std::nextafter(plain, 0.0f) : plain;
    });
    check<float, float>("rcp" + suffix + "$d, $a", [to = to](float a) {
      const float plain = 1 / a;
      if (!std::isfinite(a) || a == 0) return plain;
      const f128 q = f128{1} / a, rest = f128{1} - q * a;
      return round_exact<float>(q, a > 0 ? rest : -rest, to);
    });
  }
  check<float, float, float>("add.f32 $d, $a, $b", [](float a, float b) { return a + b; });
  check<float, float, float>("sub.f32 $d, $a, $b", [](float a, float b) { return a - b; });
  check<float, float, float>("mul.f32 $d, $a, $b", [](float a, float b) { return a * b; });
}

TEST(PtxFloat, F64IsRoundedOnce) {
  check<double, double, double>("add.f64 $d, $a, $b", [](double a, double b) { return a + b; });
  check<double, double, double>("sub.rn.f64 $d, $a, $b", [](double a, double b) { return a - b; });
  check<double, double, double>("mul.f64 $d, $a, $b", [](double a, double b) { return a * b; });
  check<double, double, double>("div.rn.f64 $d, $a, $b", [](double a, double b) { return a / b; });
  check<double, double, double, double>("fma.rn.f64 $d, $a, $b, $c",
                                        [](double a, double b, double c) { return std::fma(a, b, c); });
  check<double, double>("sqrt.rn.f64 $d, $a", [](double a) { return std::sqrt(a); });
  check<double, double>("rcp.rn.f64 $d, $a", [](double a) { return 1 / a; });
  check<double, double>("neg.f64 $d, $a", [](double a) { return -a; });
  check<double, double>("abs.f64 $d, $a", [](double a) { return std::fabs(a); });
  for (const auto& [name, to] : kDirections) {
    if (to == To::nearest) continue;
    check<double, double, double>(fmt::format("mul.{}.f64 $d, $a, $b", name), [to = to](double a, double b) {
      const double plain = a * b;
      if (!std::isfinite(a) || !std::isfinite(b) || a == 0 || b == 0) return plain;
      return round_exact<double>(f128{a} * b, 0, to);
    });
    check<double, double, double>(fmt::format("add.{}.f64 $d, $a, $b", name), [to = to](double a, double b) {
      if (!std::isfinite(a) || !std::isfinite(b)) return a + b;
      const auto [high, low] = exact_sum<double>(a, b);
      if (high == 0 && low == 0)
        return a == 0 && b == 0 && std::signbit(a) == std::signbit(b) ? a : to == To::down ? -0.0 : 0.0;
      return round_exact<double>(high, low, to);
    });
  }
}

// Of two numbers the smaller, -0 below +0, and a number rather than NaN.
template <class T>
T minimum(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == 0 && b == 0) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
template <class T>
void check_selection(const std::string& t) {
  check<T, T, T>("min." + t + " $d, $a, $b", [](T a, T b) { return minimum(a, b); });
  check<T, T, T>("max." + t + " $d, $a, $b", [](T a, T b) { return -minimum(-a, -b); });
  check<T, T, T>("copysign." + t + " $d, $a, $b", [](T a, T b) { return std::copysign(b, a); });
  auto compare = [&](const std::string& op, auto f) {
    check<u32, T, T>("setp." + op + "." + t +
                         " %q2|%q3, $a, $b; selp.u32 $d, 2, 0, %q2; selp.u32 %r20, 1, 0, %q3; or.b32 $d, $d, %r20",
                     [f](T a, T b) { return f(a, b) ? 2u : 1u; });
  };
  auto nan = [](T a, T b) { return a != a || b != b; };
  compare("eq", [](T a, T b) { return a == b; });
  compare("ne", [=](T a, T b) { return !nan(a, b) && a != b; });
  compare("lt", [](T a, T b) { return a < b; });
  compare("le", [](T a, T b) { return a <= b; });
  compare("gt", [](T a, T b) { return a > b; });
  compare("ge", [](T a, T b) { return a >= b; });
  compare("equ", [=](T a, T b) { return nan(a, b) || a == b; });
  compare("neu", [=](T a, T b) { return nan(a, b) || a != b; });
  compare("ltu", [=](T a, T b) { return nan(a, b) || a < b; });
  compare("leu", [=](T a, T b) { return nan(a, b) || a <= b; });
  compare("gtu", [=](T a, T b) { return nan(a, b) || a > b; });
  compare("geu", [=](T a, T b) { return nan(a, b) || a >= b; });
  compare("num", [=](T a, T b) { return !nan(a, b); });
  compare("nan", [=](T a, T b) { return nan(a, b); });
  auto test = [&](const std::string& what, auto f) {
    check<u32, T>("testp." + what + "." + t + " %q2, $a; selp.u32 $d, 1, 0, %q2", [f](T a) { return f(a) ? 1u : 0u; });
  };
  test("finite", [](T a) { return std::isfinite(a); });
  test("infinite", [](T a) { return std::isinf(a); });
  test("number", [](T a) { return !std::isnan(a); });
  test("notanumber", [](T a) { return std::isnan(a); });
  test("normal", [](T a) { return std::fpclassify(a) == FP_NORMAL; });
  test("subnormal", [](T a) { return std::fpclassify(a) == FP_SUBNORMAL; });
}

TEST(PtxFloat, SelectionAndComparisonKnowNanAndSignedZero) {
  check_selection<float>("f32");
  check_selection<double>("f64");
  check<float, float, float>("min.NaN.f32 $d, $a, $b",
                             [](float a, float b) { return a != a || b != b ? NAN : minimum(a, b); });
  check<float, float, float>("max.NaN.f32 $d, $a, $b",
                             [](float a, float b) { return a != a || b != b ? NAN : -minimum(-a, -b); });
  check<u32, float>("setp.lt.f32 %q2, $a, 0f3F800000; selp.u32 $d, 1, 0, %q2",
                    [](float a) { return a < 1.0f ? 1u : 0u; });
  check<u32, float>("set.gt.u32.f32 $d, $a, 0f00000000", [](float a) { return a > 0.0f ? ~0u : 0u; });
}

TEST(PtxFloat, SaturationGivesZeroForNan) {
  auto unit = [](float x) { return x >= 1 ? 1.0f : x > 0 ? x : 0.0f; };
  check<float, float, float>("add.sat.f32 $d, $a, $b", [=](float a, float b) { return unit(a + b); });
  check<float, float, float>("sub.rn.sat.f32 $d, $a, $b", [=](float a, float b) { return unit(a - b); });
  check<float, float, float>("mul.sat.f32 $d, $a, $b", [=](float a, float b) { return unit(a * b); });
  check<float, float, float, float>("fma.rn.sat.f32 $d, $a, $b, $c",
                                    [=](float a, float b, float c) { return unit(std::fma(a, b, c)); });
  check<float, float>("cvt.sat.f32.f32 $d, $a", unit);
}

TEST(PtxFloat, NanOfF32IsTheOneOfPtx) {
  check<u32, float>("sub.f32 %f20, $a, $a; div.rn.f32 %f20, %f20, %f20; mov.b32 $d, %f20",
                    [](float) { return 0x7fffffffu; });
}

TEST(PtxFloat, ApproximationsAreThoseOfLibm) {
  auto flush = [](float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; };
  auto both = [&](const std::string& op, auto f) {
    check<float, float>(
        op + ".f32 $d, $a", [=](float a) { return static_cast<float>(f(static_cast<double>(a))); }, 4e-7);
    check<float, float>(
        op + ".ftz.f32 $d, $a", [=](float a) { return flush(static_cast<float>(f(static_cast<double>(flush(a))))); },
        4e-7);
  };
  both("rcp.approx", [](double x) { return 1 / x; });
  both("sqrt.approx", [](double x) { return std::sqrt(x); });
  both("rsqrt.approx", [](double x) { return 1 / std::sqrt(x); });
  both("ex2.approx", [](double x) { return std::exp2(x); });
  both("lg2.approx", [](double x) { return std::log2(x); });
  both("sin.approx", [](double x) { return std::sin(x); });
  both("cos.approx", [](double x) { return std::cos(x); });
  check<float, float>(
      "tanh.approx.f32 $d, $a", [](float a) { return static_cast<float>(std::tanh(static_cast<double>(a))); }, 4e-7);
  check<float, float, float>(
      "div.full.f32 $d, $a, $b", [](float a, float b) { return a / b; }, 4e-7);
  check<float, float, float>(
      "div.approx.ftz.f32 $d, $a, $b", [=](float a, float b) { return flush(flush(a) / flush(b)); }, 4e-7);
}

// ---- f16 and bf16

// A format of 16 bits by the value of each of its words, found by its fields and not by the interpreter's functions.
struct Small {
  int fraction, bias;
  double value(u16 w) const {
    const int exponent_bits = 15 - fraction, top = (1 << exponent_bits) - 1;
    const int exponent = w >> fraction & top, bits = w & ((1 << fraction) - 1);
    double x = exponent == 0 ? std::ldexp(bits, 1 - bias - fraction)
                             : std::ldexp(bits + (1 << fraction), exponent - bias - fraction);
    if (exponent == top) x = bits != 0 ? NAN : INFINITY;
    return w >> 15 ? -x : x;
  }
  u16 largest() const { return static_cast<u16>((((1 << (15 - fraction)) - 1) << fraction) - 1); }
  u16 infinity() const { return static_cast<u16>(largest() + 1); }
  // Exact value high + low. Words of one sign are in the order of their values: bisect, then choose between neighbours.
  u16 round(f128 high, f128 low, To to, bool negative_zero = false) const {
    if (high != high) return 0x7fff;
    const bool negative = high < 0 || (high == 0 && (low < 0 || (low == 0 && negative_zero)));
    const f128 m = negative ? -high : high, rest = negative ? -low : low;
    const u16 sign = negative ? 0x8000 : 0;
    u16 lower = 0, upper = infinity();
    if (m - m != 0) return static_cast<u16>(sign | infinity());
    auto at_most = [&](u16 w) { return value(w) < m || (value(w) == m && rest >= 0); };  // value(w) <= exact
    while (upper - lower > 1) {
      const u16 middle = static_cast<u16>((lower + upper) / 2);
      (at_most(middle) ? lower : upper) = middle;
    }
    if (value(lower) == m && rest == 0) return static_cast<u16>(sign | lower);
    if (to == To::zero || (to == To::down && !negative) || (to == To::up && negative))
      return static_cast<u16>(sign | lower);
    if (to != To::nearest) return static_cast<u16>(sign | upper);
    const f128 top =
        upper == infinity() ? 2 * f128{value(largest())} - value(static_cast<u16>(largest() - 1)) : f128{value(upper)};
    const f128 twice = 2 * m - (f128{value(lower)} + top);
    const bool up = twice > 0 || (twice == 0 && (rest > 0 || (rest == 0 && lower % 2 == 1)));
    return static_cast<u16>(sign | (up ? upper : lower));
  }
  u16 sum(double a, double b) const {
    if (!std::isfinite(a) || !std::isfinite(b)) return round(a + b, 0, To::nearest);
    const auto [high, low] = exact_sum<double>(a, b);
    return round(high, low, To::nearest, std::signbit(a) && std::signbit(b));
  }
  u16 product(double a, double b) const {
    if (!std::isfinite(a) || !std::isfinite(b)) return round(a * b, 0, To::nearest);
    return round(f128{a} * b, 0, To::nearest, std::signbit(a) != std::signbit(b));
  }
  u16 fused(double a, double b, double c) const {
    if (!std::isfinite(a) || !std::isfinite(b) || !std::isfinite(c)) return round(std::fma(a, b, c), 0, To::nearest);
    const auto [high, low] = exact_sum<double>(f128{a} * b, c);
    return round(high, low, To::nearest, (std::signbit(a) != std::signbit(b)) && std::signbit(c));
  }
};
constexpr Small kHalf{10, 15}, kBfloat{7, 127};

void check_small(const Small& s, const std::string& t) {
  auto pair = [](auto f) {
    return [f](auto... x) -> u32 {
      return static_cast<u32>(f(static_cast<u16>(x)...)) | static_cast<u32>(f(static_cast<u16>(x >> 16)...)) << 16;
    };
  };
  auto value = [s](u16 w) { return s.value(w); };
  auto add = [=](u16 a, u16 b) { return s.sum(value(a), value(b)); };
  auto sub = [=](u16 a, u16 b) { return s.sum(value(a), -value(b)); };
  auto mul = [=](u16 a, u16 b) { return s.product(value(a), value(b)); };
  auto fma = [=](u16 a, u16 b, u16 c) { return s.fused(value(a), value(b), value(c)); };
  auto nan = [=](u16 a) { return value(a) != value(a); };
  auto order = [=](u16 a, u16 b, bool less) -> u16 {
    if (nan(a) && nan(b)) return 0x7fff;
    if (nan(a)) return b;
    if (nan(b)) return a;
    if (value(a) == 0 && value(b) == 0) return (a >> 15 != 0) == less ? a : b;
    return (value(a) < value(b)) == less ? a : b;
  };
  auto relu = [=](u16 x) -> u16 { return nan(x) ? 0x7fff : value(x) > 0 ? x : 0; };
  check<u16, u16, u16>("add." + t + " $d, $a, $b", add);
  check<u16, u16, u16>("sub." + t + " $d, $a, $b", sub);
  check<u16, u16, u16>("mul.rn." + t + " $d, $a, $b", mul);
  check<u16, u16, u16, u16>("fma.rn." + t + " $d, $a, $b, $c", fma);
  check<u16, u16, u16, u16>("fma.rn.relu." + t + " $d, $a, $b, $c",
                            [=](u16 a, u16 b, u16 c) { return relu(fma(a, b, c)); });
  check<u16, u16, u16>("min." + t + " $d, $a, $b", [=](u16 a, u16 b) { return order(a, b, true); });
  check<u16, u16, u16>("max." + t + " $d, $a, $b", [=](u16 a, u16 b) { return order(a, b, false); });
  check<u16, u16, u16>("max.NaN." + t + " $d, $a, $b",
                       [=](u16 a, u16 b) { return nan(a) || nan(b) ? u16{0x7fff} : order(a, b, false); });
  check<u16, u16>("neg." + t + " $d, $a", [](u16 a) { return static_cast<u16>(a ^ 0x8000); });
  check<u16, u16>("abs." + t + " $d, $a", [](u16 a) { return static_cast<u16>(a & 0x7fff); });
  check<u32, u32, u32>("add." + t + "x2 $d, $a, $b", pair(add));
  check<u32, u32, u32>("sub.rn." + t + "x2 $d, $a, $b", pair(sub));
  check<u32, u32, u32>("mul." + t + "x2 $d, $a, $b", pair(mul));
  check<u32, u32, u32, u32>("fma.rn." + t + "x2 $d, $a, $b, $c", pair(fma));
  check<u32, u32, u32>("min." + t + "x2 $d, $a, $b", pair([=](u16 a, u16 b) { return order(a, b, true); }));
  check<u32, u32, u32>("max." + t + "x2 $d, $a, $b", pair([=](u16 a, u16 b) { return order(a, b, false); }));
  check<u32, u32>("neg." + t + "x2 $d, $a", [](u32 a) { return a ^ 0x80008000u; });
  check<u32, u16, u16>("setp.lt." + t + " %q2, $a, $b; selp.u32 $d, 1, 0, %q2",
                       [=](u16 a, u16 b) { return value(a) < value(b) ? 1u : 0u; });
  check<u32, u16, u16>("setp.neu." + t + " %q2, $a, $b; selp.u32 $d, 1, 0, %q2",
                       [=](u16 a, u16 b) { return value(a) != value(b) ? 1u : 0u; });
}

TEST(PtxHalf, F16AndBf16AreRoundedOnce) {
  check_small(kHalf, "f16");
  check_small(kBfloat, "bf16");
}

TEST(PtxHalf, ConversionsRoundAsTheyAreTold) {
  for (const auto& [name, to] : kDirections) {
    check<u16, float>(fmt::format("cvt.{}.f16.f32 $d, $a", name),
                      [to = to](float a) { return kHalf.round(a, 0, to, std::signbit(a)); });
    if (to != To::nearest && to != To::zero) continue;
    check<u16, float>(fmt::format("cvt.{}.bf16.f32 $d, $a", name),
                      [to = to](float a) { return kBfloat.round(a, 0, to, std::signbit(a)); });
    check<u16, double>(fmt::format("cvt.{}.f16.f64 $d, $a", name),
                       [to = to](double a) { return kHalf.round(a, 0, to, std::signbit(a)); });
    check<u32, float, float>(fmt::format("cvt.{}.bf16x2.f32 $d, $a, $b", name), [to = to](float a, float b) {
      return u32{kBfloat.round(a, 0, to, std::signbit(a))} << 16 | kBfloat.round(b, 0, to, std::signbit(b));
    });
    check<u32, float, float>(fmt::format("cvt.{}.f16x2.f32 $d, $a, $b", name), [to = to](float a, float b) {
      return u32{kHalf.round(a, 0, to, std::signbit(a))} << 16 | kHalf.round(b, 0, to, std::signbit(b));
    });
  }
  check<float, u16>("cvt.f32.f16 $d, $a", [](u16 a) { return static_cast<float>(kHalf.value(a)); });
  check<double, u16>("cvt.f64.f16 $d, $a", [](u16 a) { return kHalf.value(a); });
  check<float, u16>("cvt.f32.bf16 $d, $a", [](u16 a) { return static_cast<float>(kBfloat.value(a)); });
  // tf32: f32 with 13 bits less, here by arithmetic on multiples of its unit.
  auto tf32 = [](float a, bool away) -> u32 {
    if (a != a) return 0x7fffffffu;
    if (!std::isfinite(a) || a == 0) return std::bit_cast<u32>(a);
    const int unit = std::max(std::ilogb(a), -126) - 10;
    const double scaled = std::ldexp(static_cast<double>(a), -unit);
    return std::bit_cast<u32>(static_cast<float>(std::ldexp(away ? std::round(scaled) : std::nearbyint(scaled), unit)));
  };
  check<u32, float>("cvt.rna.tf32.f32 $d, $a", [=](float a) { return tf32(a, true); });
  check<u32, float>("cvt.rn.tf32.f32 $d, $a", [=](float a) { return tf32(a, false); });
}

// ---- conversions

template <class D, class S>
void check_integer_conversion(const std::string& to, const std::string& from) {
  check<D, S>("cvt." + to + "." + from + " $d, $a", [](S a) { return static_cast<D>(a); });
  check<D, S>("cvt.sat." + to + "." + from + " $d, $a", [](S a) {
    const __int128 v = a, low = std::numeric_limits<D>::min(), high = std::numeric_limits<D>::max();
    return static_cast<D>(v < low ? low : v > high ? high : v);
  });
}
template <class D>
void check_conversions_to(const std::string& to) {
  check_integer_conversion<D, u16>(to, "u16");
  check_integer_conversion<D, s16>(to, "s16");
  check_integer_conversion<D, u32>(to, "u32");
  check_integer_conversion<D, s32>(to, "s32");
  check_integer_conversion<D, u64>(to, "u64");
  check_integer_conversion<D, s64>(to, "s64");
}

TEST(PtxConvert, IntegersExtendTruncateAndSaturate) {
  check_conversions_to<u16>("u16");
  check_conversions_to<s16>("s16");
  check_conversions_to<u32>("u32");
  check_conversions_to<s32>("s32");
  check_conversions_to<u64>("u64");
  check_conversions_to<s64>("s64");
  // Narrower than any register: the low bits of what there is, extended into all of it.
  check<s32, u32>("cvt.s32.s8 $d, $a", [](u32 a) { return s32{static_cast<s8>(a)}; });
  check<u32, u64>("cvt.u32.u8 $d, $a", [](u64 a) { return u32{static_cast<u8>(a)}; });
  check<s64, u16>("cvt.s64.s8 $d, $a", [](u16 a) { return s64{static_cast<s8>(a)}; });
  check<s32, u32>("cvt.s8.s32 $d, $a", [](u32 a) { return s32{static_cast<s8>(a)}; });
  check<u16, u32>("cvt.s8.s32 $d, $a", [](u32 a) { return static_cast<u16>(s16{static_cast<s8>(a)}); });
  check<u32, u32>("cvt.sat.u8.s32 $d, $a",
                  [](u32 a) { return static_cast<u32>(std::clamp(static_cast<s32>(a), 0, 255)); });
}

template <class I, class R>
void check_to_integer(const std::string& to, const std::string& from) {
  auto with = [&](const char* how, auto f) {
    check<I, R>(fmt::format("cvt.{}.{}.{} $d, $a", how, to, from), [f](R a) {
      if (a != a)
        return static_cast<I>(sizeof(I) == 8 || (sizeof(I) == 4 && sizeof(R) == 8) ? u64{1} << (8 * sizeof(I) - 1) : 0);
      const f128 v = f(a), low = std::numeric_limits<I>::min(), high = std::numeric_limits<I>::max();
      return static_cast<I>(v < low ? low : v > high ? high : v);
    });
  };
  with("rni", [](R a) { return std::nearbyint(a); });
  with("rzi", [](R a) { return std::trunc(a); });
  with("rmi", [](R a) { return std::floor(a); });
  with("rpi", [](R a) { return std::ceil(a); });
}
template <class I>
void check_from_integer(const std::string& from) {
  for (const auto& [name, to] : kDirections) {
    check<float, I>(fmt::format("cvt.{}.f32.{} $d, $a", name, from),
                    [to = to](I a) { return a == 0 ? 0.0f : round_exact<float>(a, 0, to); });
    check<double, I>(fmt::format("cvt.{}.f64.{} $d, $a", name, from),
                     [to = to](I a) { return a == 0 ? 0.0 : round_exact<double>(a, 0, to); });
  }
  check<u16, I>("cvt.rn.f16." + from + " $d, $a", [](I a) { return kHalf.round(a, 0, To::nearest); });
}

TEST(PtxConvert, BetweenIntegersAndReals) {
  check_to_integer<s16, float>("s16", "f32");
  check_to_integer<u16, float>("u16", "f32");
  check_to_integer<s32, float>("s32", "f32");
  check_to_integer<u32, float>("u32", "f32");
  check_to_integer<s64, float>("s64", "f32");
  check_to_integer<u64, float>("u64", "f32");
  check_to_integer<s32, double>("s32", "f64");
  check_to_integer<u32, double>("u32", "f64");
  check_to_integer<s64, double>("s64", "f64");
  check_to_integer<u64, double>("u64", "f64");
  check<s32, float>("cvt.rzi.s8.f32 $d, $a",
                    [](float a) { return a != a ? 0 : static_cast<s32>(std::clamp(std::trunc(a), -128.0f, 127.0f)); });
  check<u16, float>("cvt.rni.u8.f32 $d, $a", [](float a) {
    return a != a ? u16{0} : static_cast<u16>(std::clamp(std::nearbyint(a), 0.0f, 255.0f));
  });
  check<s32, u16>("cvt.rni.s32.f16 $d, $a", [](u16 a) {
    const double x = kHalf.value(a);
    return x != x ? 0 : static_cast<s32>(std::clamp(std::nearbyint(x), -2147483648.0, 2147483647.0));
  });
  check_from_integer<s16>("s16");
  check_from_integer<u16>("u16");
  check_from_integer<s32>("s32");
  check_from_integer<u32>("u32");
  check_from_integer<s64>("s64");
  check_from_integer<u64>("u64");
  check<float, u32>("cvt.rn.f32.u8 $d, $a", [](u32 a) { return static_cast<float>(a & 255); });
}

TEST(PtxConvert, BetweenReals) {
  check<double, float>("cvt.f64.f32 $d, $a", [](float a) { return static_cast<double>(a); });
  for (const auto& [name, to] : kDirections)
    check<float, double>(fmt::format("cvt.{}.f32.f64 $d, $a", name), [to = to](double a) {
      return !std::isfinite(a) || a == 0 ? static_cast<float>(a) : round_exact<float>(a, 0, to);
    });
  check<float, float>("cvt.rni.f32.f32 $d, $a", [](float a) { return std::nearbyint(a); });
  check<float, float>("cvt.rzi.f32.f32 $d, $a", [](float a) { return std::trunc(a); });
  check<float, float>("cvt.rmi.f32.f32 $d, $a", [](float a) { return std::floor(a); });
  check<float, float>("cvt.rpi.f32.f32 $d, $a", [](float a) { return std::ceil(a); });
  check<double, double>("cvt.rni.f64.f64 $d, $a", [](double a) { return std::nearbyint(a); });
  check<double, double>("cvt.rmi.f64.f64 $d, $a", [](double a) { return std::floor(a); });
}

}  // namespace
}  // namespace sg::ptx_test
