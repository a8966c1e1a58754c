// cvt. Integers to integers are one loop for all types (integer_conversion); all else is in the table.
#include <cfenv>
#include <cmath>
#include <limits>

#include "tests/cuda_emulator/ptx/lanes.h"
#include "tests/cuda_emulator/ptx/small_float.h"

namespace sg::ptx {
namespace {

// Keeps the bits of `mask` and, with `sign` its highest bit, extends the sign.
struct Narrowing {
  u64 mask = 0, sign = 0;
  explicit Narrowing(IntegerType type)
      : mask(type.bytes == 8 ? ~u64{0} : (u64{1} << (8 * type.bytes)) - 1),
        sign(type.is_signed ? u64{1} << (8 * type.bytes - 1) : 0) {}
  u64 operator()(u64 x) const { return ((x & mask) ^ sign) - sign; }
};
u64 clamped(u64 x, IntegerType from, IntegerType to) {  // x: extended as `from` has it
  const __int128 v = from.is_signed ? static_cast<__int128>(static_cast<s64>(x)) : static_cast<__int128>(x);
  const int bits = 8 * to.bytes;
  const __int128 low = to.is_signed ? -(__int128{1} << (bits - 1)) : __int128{0};
  const __int128 high = (__int128{1} << (to.is_signed ? bits - 1 : bits)) - 1;
  return static_cast<u64>(v < low ? low : v > high ? high : v);
}

template <class D, class S>
[[gnu::always_inline]] inline void convert_integers(Warp& warp, const Instruction& in, u32 mask) {
  const IntegerType from = IntegerType::decoded(in.mode & 15), to = IntegerType::decoded(in.mode >> 4);
  const Narrowing first(from), second(to);
  const Lane<S>* a = lanes<S>(warp, in.a);
  Lane<D>* d = lanes<D>(warp, in.d);
  const D keep = static_cast<D>(in.size == 2 ? 0xffffu : ~u64{0});
  alignas(64) D r[kLanes];
  if (in.negated)
    for (int l = 0; l < kLanes; ++l) r[l] = static_cast<D>(clamped(first(a[l]), from, to)) & keep;
  else
    for (int l = 0; l < kLanes; ++l) r[l] = static_cast<D>(second(first(a[l]))) & keep;
#pragma GCC ivdep
  for (std::size_t l = 0; l < kLanes; ++l) d[l] = mask & kBits[l] ? r[l] : d[l];
}
template <class D, class S>
void plain_integers(Warp& warp, const Instruction& in, u32 mask) {
  convert_integers<D, S>(warp, in, mask);
}
template <class D, class S>
SG_PTX_WIDE void wide_integers(Warp& warp, const Instruction& in, u32 mask) {
  convert_integers<D, S>(warp, in, mask);
}

// Out of range clamps; NaN gives 0, or the top bit alone where the destination has 64 bits or the source is f64.
template <class To, class From>
To to_integer(From x) {
  using Limits = std::numeric_limits<To>;
  const From low = static_cast<From>(Limits::min());
  const From beyond = static_cast<From>(u64{1} << (Limits::digits - 1)) * From{2};  // both bounds are exact
  const bool below = x <= low, above = x >= beyond, in_range = x > low && x < beyond;
  constexpr bool kTopBit = sizeof(To) == 8 || (sizeof(From) == 8 && sizeof(To) == 4);
  const To nan = kTopBit ? static_cast<To>(u64{1} << (8 * sizeof(To) - 1)) : To{0};
  const To r = static_cast<To>(in_range ? x : From{0});
  return below ? Limits::min() : above ? Limits::max() : in_range ? r : nan;
}

// What a register of a narrow integer is while it may be one of 4 bytes.
template <class T>
using Kept = std::conditional_t<sizeof(T) < 4, std::conditional_t<std::is_signed_v<T>, s32, u32>, T>;

template <class To>
void add_to_integer(Forms& f, const std::string& to) {
  auto add = [&]<auto F32, auto F64>(const std::string& how) {
    f["cvt." + how + "." + to + ".f32"] = form<[](float a) -> Kept<To> { return to_integer<To>(F32(a)); }>();
    f["cvt." + how + "." + to + ".f64"] = form<[](double a) -> Kept<To> { return to_integer<To>(F64(a)); }>();
    f["cvt." + how + "." + to + ".f16"] =
        form<[](Half a) -> Kept<To> { return to_integer<To>(F32(half_float(static_cast<u16>(a)))); }>();
  };
  add.template
  operator()<[](float x) { return __builtin_nearbyintf(x); }, [](double x) { return __builtin_nearbyint(x); }>("rni");
  add.template operator()<[](float x) { return __builtin_truncf(x); }, [](double x) { return __builtin_trunc(x); }>(
      "rzi");
  add.template operator()<[](float x) { return __builtin_floorf(x); }, [](double x) { return __builtin_floor(x); }>(
      "rmi");
  add.template operator()<[](float x) { return __builtin_ceilf(x); }, [](double x) { return __builtin_ceil(x); }>(
      "rpi");
}

template <class From>
void add_from_integer(Forms& f, const std::string& from) {
  f["cvt.rn.f32." + from] = form<[](From a) -> float { return static_cast<float>(a); }>();
  f["cvt.rn.f64." + from] = form<[](From a) -> double { return static_cast<double>(a); }>();
  f["cvt.rz.f32." + from] = rounded_form<FE_TOWARDZERO, [](From a) -> float { return static_cast<float>(a); }>();
  f["cvt.rm.f32." + from] = rounded_form<FE_DOWNWARD, [](From a) -> float { return static_cast<float>(a); }>();
  f["cvt.rp.f32." + from] = rounded_form<FE_UPWARD, [](From a) -> float { return static_cast<float>(a); }>();
  f["cvt.rz.f64." + from] = rounded_form<FE_TOWARDZERO, [](From a) -> double { return static_cast<double>(a); }>();
  f["cvt.rm.f64." + from] = rounded_form<FE_DOWNWARD, [](From a) -> double { return static_cast<double>(a); }>();
  f["cvt.rp.f64." + from] = rounded_form<FE_UPWARD, [](From a) -> double { return static_cast<double>(a); }>();
  // Where the conversion to double rounds, the result is infinite.
  f["cvt.rn.f16." + from] = form<[](From a) -> Half { return Half{half_bits(static_cast<double>(a))}; }>();
}

float unit(float x) { return x > 1.0f ? 1.0f : x > 0.0f ? x : 0.0f; }
float quiet(float x) { return x != x ? std::bit_cast<float>(0x7fffffffu) : x; }
double relu(double x) { return x > 0 || x != x ? x : 0.0; }
void add_rounding(Forms& f) {  // to an integer of the same type
  f["cvt.rni.f32.f32"] = form<[](float a) -> float { return __builtin_nearbyintf(a); }>();
  f["cvt.rzi.f32.f32"] = form<[](float a) -> float { return __builtin_truncf(a); }>();
  f["cvt.rmi.f32.f32"] = form<[](float a) -> float { return __builtin_floorf(a); }>();
  f["cvt.rpi.f32.f32"] = form<[](float a) -> float { return __builtin_ceilf(a); }>();
  f["cvt.rni.f64.f64"] = form<[](double a) -> double { return __builtin_nearbyint(a); }>();
  f["cvt.rzi.f64.f64"] = form<[](double a) -> double { return __builtin_trunc(a); }>();
  f["cvt.rmi.f64.f64"] = form<[](double a) -> double { return __builtin_floor(a); }>();
  f["cvt.rpi.f64.f64"] = form<[](double a) -> double { return __builtin_ceil(a); }>();
  f["cvt.f32.f32"] = form<[](float a) -> float { return a; }>();
  f["cvt.f64.f64"] = form<[](double a) -> double { return a; }>();
  f["cvt.sat.f32.f32"] = form<[](float a) -> float { return unit(a); }>();
}

void add_between_floats(Forms& f) {
  f["cvt.f64.f32"] = form<[](float a) -> double { return static_cast<double>(a); }>();
  f["cvt.rn.f32.f64"] = form<[](double a) -> float { return quiet(static_cast<float>(a)); }>();
  f["cvt.rn.sat.f32.f64"] = form<[](double a) -> float { return unit(static_cast<float>(a)); }>();
  f["cvt.rz.f32.f64"] = rounded_form<FE_TOWARDZERO, [](double a) -> float { return quiet(static_cast<float>(a)); }>();
  f["cvt.rm.f32.f64"] = rounded_form<FE_DOWNWARD, [](double a) -> float { return quiet(static_cast<float>(a)); }>();
  f["cvt.rp.f32.f64"] = rounded_form<FE_UPWARD, [](double a) -> float { return quiet(static_cast<float>(a)); }>();
  f["cvt.f32.f16"] = form<[](Half a) -> float { return quiet(half_float(static_cast<u16>(a))); }>();
  f["cvt.f64.f16"] = form<[](Half a) -> double { return half_value(static_cast<u16>(a)); }>();
  f["cvt.f32.bf16"] = form<[](Bfloat a) -> float { return bfloat_float(static_cast<u16>(a)); }>();
  f["cvt.rn.bf16.f32"] = form<[](float a) -> Bfloat { return Bfloat{bfloat_nearest(a)}; }>();
  f["cvt.rn.bf16x2.f32"] =
      form<[](float hi, float lo) -> u32 { return u32{bfloat_nearest(hi)} << 16 | bfloat_nearest(lo); }>();
  f["cvt.rz.bf16.f32"] = form<[](float a) -> Bfloat { return Bfloat{bfloat_bits(double{a}, Round::zero)}; }>();
  f["cvt.rz.bf16x2.f32"] = form<[](float hi, float lo) -> u32 {
    return u32{bfloat_bits(double{hi}, Round::zero)} << 16 | bfloat_bits(double{lo}, Round::zero);
  }>();
  f["cvt.rn.relu.bf16.f32"] = form<[](float a) -> Bfloat { return Bfloat{bfloat_bits(relu(double{a}))}; }>();
  f["cvt.rn.relu.bf16x2.f32"] = form<[](float hi, float lo) -> u32 {
    return u32{bfloat_bits(relu(double{hi}))} << 16 | bfloat_bits(relu(double{lo}));
  }>();
  auto halves = [&]<auto F>(const std::string& how) {
    f["cvt." + how + ".f16.f32"] = form<[](float a) -> Half { return Half{F(double{a})}; }>();
    f["cvt." + how + ".f16.f64"] = form<[](double a) -> Half { return Half{F(a)}; }>();
    f["cvt." + how + ".f16x2.f32"] =
        form<[](float hi, float lo) -> u32 { return u32{F(double{hi})} << 16 | F(double{lo}); }>();
  };
  halves.operator()<[](double x) { return half_bits(x); }>("rn");
  halves.operator()<[](double x) { return half_bits(x, Round::zero); }>("rz");
  f["cvt.rm.f16.f32"] = form<[](float a) -> Half { return Half{half_bits(double{a}, Round::down)}; }>();
  f["cvt.rp.f16.f32"] = form<[](float a) -> Half { return Half{half_bits(double{a}, Round::up)}; }>();
  f["cvt.rn.relu.f16x2.f32"] = form<[](float hi, float lo) -> u32 {
    return u32{half_bits(relu(double{hi}))} << 16 | half_bits(relu(double{lo}));
  }>();
  f["cvt.rna.tf32.f32"] = form<[](float a) -> u32 { return tf32_nearest(a, true); }>();
  f["cvt.rn.tf32.f32"] = form<[](float a) -> u32 { return tf32_nearest(a, false); }>();
  f["cvt.rz.tf32.f32"] =
      form<[](float a) -> u32 { return a != a ? 0x7fffffffu : std::bit_cast<u32>(a) & 0xffffe000u; }>();
}

}  // namespace

LaneFn integer_conversion(int destination_bytes, int source_bytes) {
  const bool d8 = destination_bytes == 8, s8 = source_bytes == 8;
  if (wide_lanes())
    return d8   ? s8 ? wide_integers<u64, u64> : wide_integers<u64, u32>
             : s8 ? wide_integers<u32, u64>
                : wide_integers<u32, u32>;
  return d8   ? s8 ? plain_integers<u64, u64> : plain_integers<u64, u32>
           : s8 ? plain_integers<u32, u64>
              : plain_integers<u32, u32>;
}

void add_convert_forms(Forms& f) {
  add_to_integer<u8>(f, "u8");
  add_to_integer<s8>(f, "s8");
  add_to_integer<u16>(f, "u16");
  add_to_integer<s16>(f, "s16");
  add_to_integer<u32>(f, "u32");
  add_to_integer<s32>(f, "s32");
  add_to_integer<u64>(f, "u64");
  add_to_integer<s64>(f, "s64");
  add_from_integer<u8>(f, "u8");
  add_from_integer<s8>(f, "s8");
  add_from_integer<u16>(f, "u16");
  add_from_integer<s16>(f, "s16");
  add_from_integer<u32>(f, "u32");
  add_from_integer<s32>(f, "s32");
  add_from_integer<u64>(f, "u64");
  add_from_integer<s64>(f, "s64");
  add_rounding(f);
  add_between_floats(f);
}

}  // namespace sg::ptx
