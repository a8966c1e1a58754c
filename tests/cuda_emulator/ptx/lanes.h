// Loops over the lanes of a warp, and the table of instructions that are nothing more: form<F>() makes one from a
// function of one lane. Each loop exists twice, for any processor and for AVX2 with FMA, and is chosen at run time.
// Inactive lanes are computed too and dropped, so F must be defined for every input.
#pragma once
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>

#include "tests/cuda_emulator/ptx/warp.h"

namespace sg::ptx {

enum class Half : u16 {};  // IEEE binary16, as bits
enum class Bfloat : u16 {};

// How an instruction of the table is called: bytes of each register, 0 for a predicate, destination first.
struct Form {
  LaneFn fn = nullptr;
  bool compare = false;  // setp: one or two destinations, perhaps a third, predicate source
  std::vector<u8> widths;
};
using Forms = std::unordered_map<std::string, Form>;

const Forms& all_forms();
void add_integer_forms(Forms& forms);
void add_carry_forms(Forms& forms);
void add_bit_forms(Forms& forms);
void add_float_forms(Forms& forms);
void add_half_forms(Forms& forms);
void add_convert_forms(Forms& forms);

struct IntegerType {
  int bytes = 4;
  bool is_signed = false;
  int encoded() const { return (is_signed ? 4 : 0) | (bytes == 8 ? 3 : bytes >> 1); }
  static IntegerType decoded(int code) { return {1 << (code & 3), (code & 4) != 0}; }
};
// cvt between integers in registers of these bytes: mode = from | to << 4 (encoded), negated: .sat, size: bytes of d.
LaneFn integer_conversion(int destination_bytes, int source_bytes);

inline constexpr auto kBits = [] {
  std::array<u32, kLanes> bits{};
  for (int l = 0; l < kLanes; ++l) bits[static_cast<std::size_t>(l)] = u32{1} << l;
  return bits;
}();

template <class T>
T from_lane(Lane<T> x) {
  if constexpr (std::is_enum_v<T>)
    return static_cast<T>(static_cast<u16>(x));
  else
    return static_cast<T>(x);
}
template <class T>
Lane<T> to_lane(T x) {
  if constexpr (sizeof(T) < 4 && !std::is_enum_v<T>)
    return static_cast<std::make_unsigned_t<T>>(x);
  else
    return static_cast<Lane<T>>(x);
}

template <class F>
struct Signature;
template <class C, class D, class... S>
struct Signature<D (C::*)(S...) const> {
  using Destination = D;
  using Sources = std::tuple<S...>;
};

template <auto F, class D, class... S, std::size_t... I>
[[gnu::always_inline]] inline void each_lane(Warp& warp, const Instruction& in, u32 mask, std::index_sequence<I...>) {
  const u32 slots[] = {in.a, in.b, in.c, in.e};
  const auto sources = std::make_tuple(static_cast<const Lane<S>*>(lanes<S>(warp, slots[I]))...);
  Lane<D>* d = lanes<D>(warp, in.d);
  if (mask == kAllLanes) {
#pragma GCC ivdep
    for (int l = 0; l < kLanes; ++l) d[l] = to_lane<D>(F(from_lane<S>(std::get<I>(sources)[l])...));
    return;
  }
  alignas(64) Lane<D> result[kLanes];
#pragma GCC ivdep
  for (int l = 0; l < kLanes; ++l) result[l] = to_lane<D>(F(from_lane<S>(std::get<I>(sources)[l])...));
#pragma GCC ivdep
  for (int l = 0; l < kLanes; ++l) d[l] = mask & kBits[static_cast<std::size_t>(l)] ? result[l] : d[l];
}

// d = op(F(a, b), c); d2 = op(not F(a, b), c)
template <auto F, class S>
[[gnu::always_inline]] inline void each_compare(Warp& warp, const Instruction& in, u32 mask) {
  const Lane<S>*a = lanes<S>(warp, in.a), *b = lanes<S>(warp, in.b);
  u32 yes = 0;
  for (int l = 0; l < kLanes; ++l)
    yes |= F(from_lane<S>(a[l]), from_lane<S>(b[l])) ? kBits[static_cast<std::size_t>(l)] : 0;
  u32 no = ~yes;
  if (const BoolOp op = static_cast<BoolOp>(in.mode); op != BoolOp::none) {
    const u32 c = in.negated ? ~warp.predicates[in.c] : warp.predicates[in.c];
    yes = op == BoolOp::logical_and ? yes & c : op == BoolOp::logical_or ? yes | c : yes ^ c;
    no = op == BoolOp::logical_and ? no & c : op == BoolOp::logical_or ? no | c : no ^ c;
  }
  if (in.d != kNoSlot) set_predicate(warp, in.d, mask, yes);
  if (in.d2 != kNoSlot) set_predicate(warp, in.d2, mask, no);
}

#if defined(__x86_64__)
#define SG_PTX_WIDE [[gnu::target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"), gnu::flatten]]
inline bool wide_lanes() {
  static const bool wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  return wide;
}
#else
#define SG_PTX_WIDE [[gnu::flatten]]
inline bool wide_lanes() { return false; }
#endif

template <auto F, class D, class... S>
void plain_loop(Warp& warp, const Instruction& in, u32 mask) {
  each_lane<F, D, S...>(warp, in, mask, std::index_sequence_for<S...>{});
}
template <auto F, class D, class... S>
SG_PTX_WIDE void wide_loop(Warp& warp, const Instruction& in, u32 mask) {
  each_lane<F, D, S...>(warp, in, mask, std::index_sequence_for<S...>{});
}
template <auto F, class S>
void plain_compare(Warp& warp, const Instruction& in, u32 mask) {
  each_compare<F, S>(warp, in, mask);
}
template <auto F, class S>
SG_PTX_WIDE void wide_compare(Warp& warp, const Instruction& in, u32 mask) {
  each_compare<F, S>(warp, in, mask);
}

template <auto F, class D, class... S>
Form make_form(std::tuple<S...>*) {
  return {wide_lanes() ? wide_loop<F, D, S...> : plain_loop<F, D, S...>,
          false,
          {static_cast<u8>(sizeof(D)), static_cast<u8>(sizeof(S))...}};
}

// A form from a captureless lambda: its types are those of the registers.
template <auto F>
Form form() {
  using Call = Signature<decltype(&decltype(F)::operator())>;
  return make_form<F, typename Call::Destination>(static_cast<typename Call::Sources*>(nullptr));
}
template <auto F, class S>
Form compare_form() {
  return {wide_lanes() ? wide_compare<F, S> : plain_compare<F, S>,
          true,
          {0, static_cast<u8>(sizeof(S)), static_cast<u8>(sizeof(S))}};
}

// The loop of F without vectors, under another rounding of the processor: 0 nearest, or FE_TOWARDZERO, ...
class Rounding {
 public:
  explicit Rounding(int mode);
  ~Rounding();
  Rounding(const Rounding&) = delete;
  Rounding& operator=(const Rounding&) = delete;

 private:
  int before_;
};
template <int kMode, auto F, class D, class... S>
SG_PTX_WIDE void rounded_wide(Warp& warp, const Instruction& in, u32 mask) {
  const Rounding rounding(kMode);
  each_lane<F, D, S...>(warp, in, mask, std::index_sequence_for<S...>{});
}
template <int kMode, auto F, class D, class... S>
void rounded_plain(Warp& warp, const Instruction& in, u32 mask) {
  const Rounding rounding(kMode);
  each_lane<F, D, S...>(warp, in, mask, std::index_sequence_for<S...>{});
}
template <int kMode, auto F, class D, class... S>
Form make_rounded(std::tuple<S...>*) {
  return {wide_lanes() ? rounded_wide<kMode, F, D, S...> : rounded_plain<kMode, F, D, S...>,
          false,
          {static_cast<u8>(sizeof(D)), static_cast<u8>(sizeof(S))...}};
}
// Registers lie in memory that the calls which set the rounding may touch, so the loop stays between them.
template <int kMode, auto F>
Form rounded_form() {
  using Call = Signature<decltype(&decltype(F)::operator())>;
  return make_rounded<kMode, F, typename Call::Destination>(static_cast<typename Call::Sources*>(nullptr));
}

}  // namespace sg::ptx
