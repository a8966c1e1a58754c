// Integer and bit instructions of the interpreter against C++.
#include <algorithm>

#include "tests/cuda/ptx_harness.h"

namespace sg::ptx_test {
namespace {

using s128 = __int128;
using u128 = unsigned __int128;

template <class T>
struct Of;  // what is wide enough for a product
template <>
struct Of<s16> {
  using Wide = s32;
};
template <>
struct Of<u16> {
  using Wide = u32;
};
template <>
struct Of<s32> {
  using Wide = s64;
};
template <>
struct Of<u32> {
  using Wide = u64;
};
template <>
struct Of<s64> {
  using Wide = s128;
};
template <>
struct Of<u64> {
  using Wide = u128;
};

template <class T>
void check_arithmetic(const std::string& t) {
  using W = typename Of<T>::Wide;
  constexpr int kBits = 8 * sizeof(T);
  check<T, T, T>("add." + t + " $d, $a, $b",
                 [](T a, T b) { return static_cast<T>(static_cast<u128>(a) + static_cast<u128>(b)); });
  check<T, T, T>("sub." + t + " $d, $a, $b",
                 [](T a, T b) { return static_cast<T>(static_cast<u128>(a) - static_cast<u128>(b)); });
  check<T, T, T>("mul.lo." + t + " $d, $a, $b", [](T a, T b) { return static_cast<T>(W{a} * W{b}); });
  check<T, T, T>("mul.hi." + t + " $d, $a, $b", [](T a, T b) { return static_cast<T>((W{a} * W{b}) >> kBits); });
  check<T, T, T, T>("mad.lo." + t + " $d, $a, $b, $c", [](T a, T b, T c) {
    return static_cast<T>(static_cast<u128>(static_cast<T>(W{a} * W{b})) + static_cast<u128>(c));
  });
  check<T, T, T, T>("mad.hi." + t + " $d, $a, $b, $c", [](T a, T b, T c) {
    return static_cast<T>(static_cast<u128>(static_cast<T>((W{a} * W{b}) >> kBits)) + static_cast<u128>(c));
  });
  if constexpr (sizeof(T) < 8) {
    check<W, T, T>("mul.wide." + t + " $d, $a, $b", [](T a, T b) { return W{a} * W{b}; });
    check<W, T, T, W>("mad.wide." + t + " $d, $a, $b, $c", [](T a, T b, W c) {
      return static_cast<W>(static_cast<u128>(W{a} * W{b}) + static_cast<u128>(c));
    });
  }
  check<T, T, T>("div." + t + " $d, $a, $b",
                 [](T a, T b) { return b == 0 ? static_cast<T>(-1) : static_cast<T>(W{a} / W{b}); });
  check<T, T, T>("rem." + t + " $d, $a, $b", [](T a, T b) { return b == 0 ? a : static_cast<T>(W{a} % W{b}); });
  check<T, T, T>("min." + t + " $d, $a, $b", [](T a, T b) { return std::min(a, b); });
  check<T, T, T>("max." + t + " $d, $a, $b", [](T a, T b) { return std::max(a, b); });
  check<T, T, T, T>("sad." + t + " $d, $a, $b, $c", [](T a, T b, T c) {
    const s128 difference = static_cast<s128>(a) - static_cast<s128>(b);
    return static_cast<T>(static_cast<u128>(difference < 0 ? -difference : difference) + static_cast<u128>(c));
  });
  if constexpr (std::is_signed_v<T>) {
    check<T, T>("neg." + t + " $d, $a", [](T a) { return static_cast<T>(-static_cast<s128>(a)); });
    check<T, T>("abs." + t + " $d, $a",
                [](T a) { return static_cast<T>(a < 0 ? -static_cast<s128>(a) : static_cast<s128>(a)); });
  }
}

template <class T>
void check_comparisons(const std::string& t) {
  auto compare = [](const std::string& op, auto f) {
    check<u32, T, T>("setp." + op + " %q2, $a, $b; selp.u32 $d, 1, 0, %q2",
                     [f](T a, T b) { return f(a, b) ? 1u : 0u; });
    check<u32, T, T>("setp." + op + " %q2|%q3, $a, $b; selp.u32 $d, 1, 0, %q3",
                     [f](T a, T b) { return f(a, b) ? 0u : 1u; });
    check<u32, T, T>("set." + op.substr(0, op.find('.')) + ".u32" + op.substr(op.find('.')) + " $d, $a, $b",
                     [f](T a, T b) { return f(a, b) ? ~0u : 0u; });
    check<float, T, T>("set." + op.substr(0, op.find('.')) + ".f32" + op.substr(op.find('.')) + " $d, $a, $b",
                       [f](T a, T b) { return f(a, b) ? 1.0f : 0.0f; });
  };
  compare("eq." + t, [](T a, T b) { return a == b; });
  compare("ne." + t, [](T a, T b) { return a != b; });
  if (t[0] == 'b') return;
  compare("lt." + t, [](T a, T b) { return a < b; });
  compare("le." + t, [](T a, T b) { return a <= b; });
  compare("gt." + t, [](T a, T b) { return a > b; });
  compare("ge." + t, [](T a, T b) { return a >= b; });
  if (t[0] != 'u') return;
  compare("lo." + t, [](T a, T b) { return a < b; });
  compare("hs." + t, [](T a, T b) { return a >= b; });
}

template <class U>
void check_bits(const std::string& size) {
  using S = std::make_signed_t<U>;
  constexpr u32 kBits = 8 * sizeof(U);
  const std::string b = ".b" + size;
  check<U, U, U>("and" + b + " $d, $a, $b", [](U x, U y) { return static_cast<U>(x & y); });
  check<U, U, U>("or" + b + " $d, $a, $b", [](U x, U y) { return static_cast<U>(x | y); });
  check<U, U, U>("xor" + b + " $d, $a, $b", [](U x, U y) { return static_cast<U>(x ^ y); });
  check<U, U>("not" + b + " $d, $a", [](U x) { return static_cast<U>(~x); });
  check<U, U>("cnot" + b + " $d, $a", [](U x) { return static_cast<U>(x == 0 ? 1 : 0); });
  check<U, U>("mov" + b + " $d, $a", [](U x) { return x; });
  check<U, U, u32>("shl" + b + " $d, $a, $b", [](U x, u32 n) { return n < kBits ? static_cast<U>(x << n) : U{0}; });
  check<U, U, u32>("shr.u" + size + " $d, $a, $b",
                   [](U x, u32 n) { return n < kBits ? static_cast<U>(x >> n) : U{0}; });
  check<S, S, u32>("shr.s" + size + " $d, $a, $b",
                   [](S x, u32 n) { return static_cast<S>(x >> std::min(n, kBits - 1)); });
}

template <class U>
void check_fields(const std::string& size) {
  using S = std::make_signed_t<U>;
  constexpr u32 kBits = 8 * sizeof(U);
  check<u32, U>("popc.b" + size + " $d, $a", [](U x) {
    u32 n = 0;
    for (; x != 0; x >>= 1) n += static_cast<u32>(x & 1);
    return n;
  });
  check<u32, U>("clz.b" + size + " $d, $a", [](U x) {
    u32 n = 0;
    while (n < kBits && (x >> (kBits - 1 - n) & 1) == 0) ++n;
    return n;
  });
  check<U, U>("brev.b" + size + " $d, $a", [](U x) {
    U r = 0;
    for (u32 i = 0; i < kBits; ++i)
      if (x >> i & 1) r |= U{1} << (kBits - 1 - i);
    return r;
  });
  auto highest = [](U x, bool sign) {
    for (int i = kBits - 1; i >= 0; --i)
      if ((x >> i & 1) != (sign ? x >> (kBits - 1) : 0)) return static_cast<u32>(i);
    return ~0u;
  };
  check<u32, U>("bfind.u" + size + " $d, $a", [=](U x) { return highest(x, false); });
  check<u32, U>("bfind.s" + size + " $d, $a", [=](U x) { return highest(x, true); });
  check<u32, U>("bfind.shiftamt.u" + size + " $d, $a",
                [=](U x) { return highest(x, false) == ~0u ? ~0u : kBits - 1 - highest(x, false); });
  // As the definition in the PTX ISA has it, bit by bit.
  auto extract = [](U a, u32 p, u32 n, bool is_signed) {
    p &= 255;
    n &= 255;
    const u32 top = std::min(p + n - 1, kBits - 1);
    const U sign = is_signed && n != 0 ? a >> top & 1 : 0;
    U d = 0;
    for (u32 i = 0; i < kBits; ++i) d |= (i < n && p + i < kBits ? a >> (p + i) & 1 : sign) << i;
    return d;
  };
  check<U, U, u32, u32>("bfe.u" + size + " $d, $a, $b, $c", [=](U a, u32 p, u32 n) { return extract(a, p, n, false); });
  check<S, U, u32, u32>("bfe.s" + size + " $d, $a, $b, $c",
                        [=](U a, u32 p, u32 n) { return static_cast<S>(extract(a, p, n, true)); });
  check<U, U, U, u32, u32>("bfi.b" + size + " $d, $a, $b, $c, $e", [](U a, U b, u32 p, u32 n) {
    for (u32 i = 0; i < (n & 255) && (p & 255) + i < kBits; ++i) {
      const u32 at = (p & 255) + i;
      b = (b & ~(U{1} << at)) | ((a >> i & 1) << at);
    }
    return b;
  });
}

TEST(PtxInteger, ArithmeticIsThatOfCpp) {
  check_arithmetic<s16>("s16");
  check_arithmetic<u16>("u16");
  check_arithmetic<s32>("s32");
  check_arithmetic<u32>("u32");
  check_arithmetic<s64>("s64");
  check_arithmetic<u64>("u64");
  check<s32, s32, s32>("add.sat.s32 $d, $a, $b", [](s32 a, s32 b) {
    return static_cast<s32>(std::clamp<s64>(s64{a} + b, INT32_MIN, INT32_MAX));
  });
  check<s32, s32, s32>("sub.sat.s32 $d, $a, $b", [](s32 a, s32 b) {
    return static_cast<s32>(std::clamp<s64>(s64{a} - b, INT32_MIN, INT32_MAX));
  });
}

TEST(PtxInteger, CarriesGoFromOneInstructionToTheNext) {
  // 128 bits from two of 64, halves mixed by xor so that both count.
  check<u64, u64, u64, u64>("add.cc.u64 %d20, $a, $b; addc.u64 $d, $c, $a; xor.b64 $d, $d, %d20",
                            [](u64 a, u64 b, u64 c) {
                              const u128 x = (static_cast<u128>(c) << 64 | a) + (static_cast<u128>(a) << 64 | b);
                              return static_cast<u64>(x >> 64) ^ static_cast<u64>(x);
                            });
  check<u64, u64, u64, u64>("sub.cc.u64 %d20, $a, $b; subc.u64 $d, $c, $a; xor.b64 $d, $d, %d20",
                            [](u64 a, u64 b, u64 c) {
                              const u128 x = (static_cast<u128>(c) << 64 | a) - (static_cast<u128>(a) << 64 | b);
                              return static_cast<u64>(x >> 64) ^ static_cast<u64>(x);
                            });
  check<u32, u32, u32, u32>(
      "mad.lo.cc.u32 %r20, $a, $b, $c; madc.hi.cc.u32 %r21, $a, $b, $a; addc.u32 $d, 0, 0; "
      "add.u32 $d, $d, %r20; xor.b32 $d, $d, %r21",
      [](u32 a, u32 b, u32 c) {
        const u128 x = u128{u64{a} * b} + (static_cast<u128>(a) << 32) + c;
        return (static_cast<u32>(x >> 64) + static_cast<u32>(x)) ^ static_cast<u32>(x >> 32);
      });
  check<u32, u32, u32, u32>("add.cc.u32 %r20, $a, $b; addc.cc.u32 %r21, $b, $c; addc.u32 $d, $a, %r21",
                            [](u32 a, u32 b, u32 c) {
                              const u128 x = (static_cast<u128>(a) << 64 | u64{b} << 32 | a) + (u64{c} << 32 | b);
                              return static_cast<u32>(x >> 64) + static_cast<u32>(x >> 32);
                            });
}

TEST(PtxInteger, ComparisonsAreThoseOfCpp) {
  check_comparisons<s16>("s16");
  check_comparisons<u16>("u16");
  check_comparisons<u16>("b16");
  check_comparisons<s32>("s32");
  check_comparisons<u32>("u32");
  check_comparisons<u32>("b32");
  check_comparisons<s64>("s64");
  check_comparisons<u64>("u64");
  check_comparisons<u64>("b64");
}

TEST(PtxInteger, ComparisonsCombineWithPredicates) {
  auto with = [](const std::string& op, auto f) {
    check<u32, u32, u32, u32>(
        "setp.lt.u32 %q4, $a, $c; setp.gt." + op +
            ".u32 %q2|%q3, $a, $b, %q4; selp.u32 $d, 2, 0, %q2; "
            "selp.u32 %r20, 1, 0, %q3; or.b32 $d, $d, %r20",
        [f](u32 a, u32 b, u32 c) { return (f(a > b, a < c) ? 2u : 0u) | (f(a <= b, a < c) ? 1u : 0u); });
    check<u32, u32, u32, u32>(
        "setp.lt.u32 %q4, $a, $c; setp.gt." + op + ".u32 %q2, $a, $b, !%q4; selp.u32 $d, 1, 0, %q2",
        [f](u32 a, u32 b, u32 c) { return f(a > b, a >= c) ? 1u : 0u; });
    check<u32, u32, u32, u32>(
        "setp.lt.u32 %q4, $a, $c; setp.gt.u32 %q5, $a, $b; " + op + ".pred %q2, %q4, %q5; selp.u32 $d, 1, 0, %q2",
        [f](u32 a, u32 b, u32 c) { return f(a<c, a> b) ? 1u : 0u; });
  };
  with("and", [](bool x, bool y) { return x && y; });
  with("or", [](bool x, bool y) { return x || y; });
  with("xor", [](bool x, bool y) { return x != y; });
  check<u32, u32, u32>("setp.lt.u32 %q4, $a, $b; not.pred %q5, %q4; mov.pred %q6, %q5; selp.u32 $d, 7, 9, %q6",
                       [](u32 a, u32 b) { return a < b ? 9u : 7u; });
}

TEST(PtxInteger, LogicAndShiftsAreThoseOfCpp) {
  check_bits<u16>("16");
  check_bits<u32>("32");
  check_bits<u64>("64");
}

TEST(PtxInteger, BitFieldsAreAsTheIsaDefinesThem) {
  check_fields<u32>("32");
  check_fields<u64>("64");
  check<u32, u32, u32>("bmsk.clamp.b32 $d, $a, $b", [](u32 p, u32 n) {
    u32 d = 0;
    for (u32 i = 0; i < 32; ++i)
      if (i >= p && u64{i} < u64{p} + n) d |= 1u << i;
    return d;
  });
  check<u32, u32, u32, u32>("shf.l.wrap.b32 $d, $a, $b, $c", [](u32 lo, u32 hi, u32 n) {
    n &= 31;
    return n == 0 ? hi : hi << n | lo >> (32 - n);
  });
  check<u32, u32, u32, u32>("shf.r.wrap.b32 $d, $a, $b, $c", [](u32 lo, u32 hi, u32 n) {
    n &= 31;
    return n == 0 ? lo : lo >> n | hi << (32 - n);
  });
  check<u32, u32, u32, u32>("shf.l.clamp.b32 $d, $a, $b, $c", [](u32 lo, u32 hi, u32 n) {
    return n == 0 ? hi : n >= 32 ? lo : hi << n | lo >> (32 - n);
  });
  check<u32, u32, u32, u32>("shf.r.clamp.b32 $d, $a, $b, $c", [](u32 lo, u32 hi, u32 n) {
    return n == 0 ? lo : n >= 32 ? hi : lo >> n | hi << (32 - n);
  });
  check<u32, u32, u32, u32>("prmt.b32 $d, $a, $b, $c", [](u32 a, u32 b, u32 selector) {
    u8 bytes[8];
    std::memcpy(bytes, &a, 4);
    std::memcpy(bytes + 4, &b, 4);
    u32 d = 0;
    for (int i = 0; i < 4; ++i) {
      const u8 byte = bytes[selector >> (4 * i) & 7];
      const bool sign = selector >> (4 * i + 3) & 1;
      d |= static_cast<u32>(sign ? (byte & 0x80 ? 0xff : 0) : byte) << (8 * i);
    }
    return d;
  });
  for (const u32 table : {0x00u, 0x96u, 0xe8u, 0xcau, 0x1fu, 0xffu})
    check<u32, u32, u32, u32>(fmt::format("lop3.b32 $d, $a, $b, $c, {}", table), [table](u32 a, u32 b, u32 c) {
      u32 d = 0;
      for (int i = 0; i < 32; ++i) d |= (table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i;
      return d;
    });
}

TEST(PtxInteger, RegistersPackAndUnpack) {
  check<u64, u32, u32>("mov.b64 $d, {$a, $b}", [](u32 a, u32 b) { return u64{b} << 32 | a; });
  check<u32, u64>("mov.b64 {%r20, %r21}, $a; sub.u32 $d, %r20, %r21",
                  [](u64 a) { return static_cast<u32>(a) - static_cast<u32>(a >> 32); });
  check<u32, u64>("mov.b64 {_, $d}, $a", [](u64 a) { return static_cast<u32>(a >> 32); });
  check<u32, u16, u16>("mov.b32 $d, {$a, $b}", [](u16 a, u16 b) { return u32{b} << 16 | a; });
  check<u16, u32>("mov.b32 {%h20, $d}, $a; add.u16 $d, $d, %h20",
                  [](u32 a) { return static_cast<u16>(a + (a >> 16)); });
  check<u64, u16, u16>("mov.b64 $d, {$a, $b, $b, $a}",
                       [](u16 a, u16 b) { return u64{a} << 48 | u64{b} << 32 | u64{b} << 16 | a; });
}

}  // namespace
}  // namespace sg::ptx_test
