// Integer arithmetic and comparison. Where PTX leaves a result open (division by zero) it is what NVIDIA's GPUs give.
#include "tests/cuda_emulator/ptx/lanes.h"

namespace sg::ptx {
namespace {

template <class T>
using Bits = std::make_unsigned_t<T>;
// Wide enough for products of T, and unsigned, so that nothing overflows: the conversion of a signed T extends its
// sign.
template <class T>
using Word = std::conditional_t<sizeof(T) == 8, u64, u32>;
template <class T>
using Double = std::conditional_t<
    std::is_signed_v<T>, std::conditional_t<sizeof(T) == 2, s32, std::conditional_t<sizeof(T) == 4, s64, __int128>>,
    std::conditional_t<sizeof(T) == 2, u32, std::conditional_t<sizeof(T) == 4, u64, unsigned __int128>>>;

template <class T>
T wrap(Word<T> x) {
  return static_cast<T>(x);
}

s32 saturated(s64 x) { return static_cast<s32>(x < INT32_MIN ? INT32_MIN : x < INT32_MAX ? x : INT32_MAX); }

template <class T>
void add_compare(Forms& f, const std::string& t) {
  f["setp.eq." + t] = compare_form<[](T a, T b) { return a == b; }, T>();
  f["setp.ne." + t] = compare_form<[](T a, T b) { return a != b; }, T>();
  f["setp.lt." + t] = compare_form<[](T a, T b) { return a < b; }, T>();
  f["setp.le." + t] = compare_form<[](T a, T b) { return a <= b; }, T>();
  f["setp.gt." + t] = compare_form<[](T a, T b) { return b < a; }, T>();
  f["setp.ge." + t] = compare_form<[](T a, T b) { return a >= b; }, T>();
  if constexpr (std::is_unsigned_v<T>) {
    f["setp.lo." + t] = f["setp.lt." + t];
    f["setp.ls." + t] = f["setp.le." + t];
    f["setp.hi." + t] = f["setp.gt." + t];
    f["setp.hs." + t] = f["setp.ge." + t];
  }
}

template <class T>
void add_arithmetic(Forms& f, const std::string& t) {
  using W = Word<T>;
  using D = Double<T>;
  constexpr int kBitCount = static_cast<int>(8 * sizeof(T));
  f["add." + t] = form<[](T a, T b) -> T { return wrap<T>(W(a) + W(b)); }>();
  f["sub." + t] = form<[](T a, T b) -> T { return wrap<T>(W(a) - W(b)); }>();
  f["mul.lo." + t] = form<[](T a, T b) -> T { return wrap<T>(W(a) * W(b)); }>();
  f["mul.hi." + t] = form<[](T a, T b) -> T { return static_cast<T>(D(a) * D(b) >> kBitCount); }>();
  f["mad.lo." + t] = form<[](T a, T b, T c) -> T { return wrap<T>(W(a) * W(b) + W(c)); }>();
  f["mad.hi." + t] =
      form<[](T a, T b, T c) -> T { return wrap<T>(W(static_cast<T>(D(a) * D(b) >> kBitCount)) + W(c)); }>();
  if constexpr (sizeof(T) < 8) {
    f["mul.wide." + t] = form<[](T a, T b) -> D { return D(a) * D(b); }>();
    f["mad.wide." + t] = form<[](T a, T b, D c) -> D {
      return static_cast<D>(static_cast<Bits<D>>(D(a) * D(b)) + static_cast<Bits<D>>(c));
    }>();
  }
  f["div." + t] = form<[](T a, T b) -> T {
    if (b == 0) return static_cast<T>(~Bits<T>{0});
    if constexpr (std::is_signed_v<T>)
      if (b == -1) return wrap<T>(W{0} - W(a));
    return static_cast<T>(a / b);
  }>();
  f["rem." + t] = form<[](T a, T b) -> T {
    if (b == 0) return a;
    if constexpr (std::is_signed_v<T>)
      if (b == -1) return T{0};
    return static_cast<T>(a % b);
  }>();
  f["min." + t] = form<[](T a, T b) -> T { return a < b ? a : b; }>();
  f["max." + t] = form<[](T a, T b) -> T { return b < a ? a : b; }>();
  f["sad." + t] = form<[](T a, T b, T c) -> T { return wrap<T>(W(c) + (a < b ? W(b) - W(a) : W(a) - W(b))); }>();
  if constexpr (std::is_signed_v<T>) {
    f["neg." + t] = form<[](T a) -> T { return wrap<T>(W{0} - W(a)); }>();
    f["abs." + t] = form<[](T a) -> T { return a < 0 ? wrap<T>(W{0} - W(a)) : a; }>();
  }
  add_compare<T>(f, t);
}

}  // namespace

void add_integer_forms(Forms& f) {
  add_arithmetic<s16>(f, "s16");
  add_arithmetic<u16>(f, "u16");
  add_arithmetic<s32>(f, "s32");
  add_arithmetic<u32>(f, "u32");
  add_arithmetic<s64>(f, "s64");
  add_arithmetic<u64>(f, "u64");
  add_compare<u16>(f, "b16");
  add_compare<u32>(f, "b32");
  add_compare<u64>(f, "b64");
  f["add.sat.s32"] = form<[](s32 a, s32 b) -> s32 { return saturated(s64{a} + b); }>();
  f["sub.sat.s32"] = form<[](s32 a, s32 b) -> s32 { return saturated(s64{a} - b); }>();
}

}  // namespace sg::ptx
