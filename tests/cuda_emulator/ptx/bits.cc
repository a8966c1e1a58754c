// Moves, logic, shifts, bit fields and selection.
#include <bit>

#include "tests/cuda_emulator/ptx/lanes.h"

namespace sg::ptx {
namespace {

template <class T>
constexpr u32 bit_count = 8 * sizeof(T);
template <class T>
T low_ones(u32 n) {  // n low bits set
  return n >= bit_count<T> ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << n) - 1);
}
template <class T>
T reverse(T x) {
  T r = 0;
  for (u32 i = 0; i < bit_count<T>; ++i) r = static_cast<T>(r | ((x >> i & 1) << (bit_count<T> - 1 - i)));
  return r;
}
// bfe: `n` bits from bit `p`; above them, or above the top of `a`, the sign or zeros.
template <class T>
T extract(T a, u32 p, u32 n) {
  using U = std::make_unsigned_t<T>;
  p &= 255;
  n &= 255;
  const U x = static_cast<U>(a);
  const u32 inside = p >= bit_count<T> ? 0 : n < bit_count<T> - p ? n : bit_count<T> - p;
  const U kept = low_ones<U>(inside);
  const U r = inside == 0 ? U{0} : static_cast<U>((x >> p) & kept);
  const u32 sign_at = n != 0 && p + n - 1 < bit_count<T> - 1 ? p + n - 1 : bit_count<T> - 1;
  const bool ones = std::is_signed_v<T> && n != 0 && (x >> sign_at & 1);
  return static_cast<T>(ones ? r | static_cast<U>(~kept) : r);
}
template <class T>
T insert(T a, T b, u32 p, u32 n) {
  p &= 255;
  n &= 255;
  if (p >= bit_count<T>) return b;
  const T m = static_cast<T>(low_ones<T>(n) << p);
  return static_cast<T>((b & ~m) | ((a << p) & m));
}
template <class T>
u32 highest(T a) {  // bfind: position of the highest bit that differs from the sign
  using U = std::make_unsigned_t<T>;
  U x = static_cast<U>(a);
  if constexpr (std::is_signed_v<T>) x = a < 0 ? static_cast<U>(~x) : x;
  return x == 0 ? ~u32{0} : bit_count<T> - 1 - static_cast<u32>(std::countl_zero(x));
}

template <class T>
void select(Warp& warp, const Instruction& in, u32 mask) {
  Lane<T>* d = lanes<T>(warp, in.d);
  const Lane<T>*a = lanes<T>(warp, in.a), *b = lanes<T>(warp, in.b);
  const u32 p = in.negated ? ~warp.predicates[in.c] : warp.predicates[in.c];
#pragma GCC ivdep
  for (std::size_t l = 0; l < kLanes; ++l) {
    const Lane<T> chosen = p & kBits[l] ? a[l] : b[l];
    d[l] = mask & kBits[l] ? chosen : d[l];
  }
}

template <class T>
void add_logic(Forms& f, const std::string& t) {
  f["and." + t] = form<[](T a, T b) -> T { return static_cast<T>(a & b); }>();
  f["or." + t] = form<[](T a, T b) -> T { return static_cast<T>(a | b); }>();
  f["xor." + t] = form<[](T a, T b) -> T { return static_cast<T>(a ^ b); }>();
  f["not." + t] = form<[](T a) -> T { return static_cast<T>(~a); }>();
  f["cnot." + t] = form<[](T a) -> T { return a == 0; }>();
  f["shl." + t] = form<[](T a, u32 n) -> T { return n >= bit_count<T> ? T{0} : static_cast<T>(a << n); }>();
}

template <class U>
void add_shift(Forms& f, const std::string& size) {
  using S = std::make_signed_t<U>;
  f["shr.u" + size] = form<[](U a, u32 n) -> U { return n >= bit_count<U> ? U{0} : static_cast<U>(a >> n); }>();
  f["shr.b" + size] = f["shr.u" + size];
  f["shr.s" + size] =
      form<[](S a, u32 n) -> S { return static_cast<S>(a >> (n >= bit_count<U> ? bit_count<U> - 1 : n)); }>();
}

template <class U>
void add_fields(Forms& f, const std::string& size) {
  using S = std::make_signed_t<U>;
  f["popc.b" + size] = form<[](U a) -> u32 { return static_cast<u32>(std::popcount(a)); }>();
  f["clz.b" + size] = form<[](U a) -> u32 { return static_cast<u32>(std::countl_zero(a)); }>();
  f["brev.b" + size] = form<[](U a) -> U { return reverse(a); }>();
  f["bfe.u" + size] = form<[](U a, u32 p, u32 n) -> U { return extract(a, p, n); }>();
  f["bfe.s" + size] = form<[](S a, u32 p, u32 n) -> S { return extract(a, p, n); }>();
  f["bfi.b" + size] = form<[](U a, U b, u32 p, u32 n) -> U { return insert(a, b, p, n); }>();
  f["bfind.u" + size] = form<[](U a) -> u32 { return highest(a); }>();
  f["bfind.s" + size] = form<[](S a) -> u32 { return highest(a); }>();
  f["bfind.shiftamt.u" + size] = form<[](U a) -> u32 { return a == 0 ? ~u32{0} : bit_count<U> - 1 - highest(a); }>();
  f["bfind.shiftamt.s" + size] =
      form<[](S a) -> u32 { return highest(a) == ~u32{0} ? ~u32{0} : bit_count<U> - 1 - highest(a); }>();
}

template <class T>
void add_moves(Forms& f, std::initializer_list<const char*> types) {
  for (const char* type : types) {
    f[std::string("mov.") + type] = form<[](T a) -> T { return a; }>();
    f[std::string("selp.") + type] = {select<T>, false, {sizeof(T), sizeof(T), sizeof(T), 0}};
  }
}

template <auto F>
void predicates(Warp& warp, const Instruction& in, u32 mask) {
  set_predicate(warp, in.d, mask, F(warp.predicates[in.a], in.b == kNoSlot ? 0 : warp.predicates[in.b]));
}

u32 permute(u32 a, u32 b, u32 selector) {
  const u64 bytes = a | u64{b} << 32;
  u32 r = 0;
  for (u32 i = 0; i < 4; ++i) {
    const u32 s = selector >> (4 * i) & 15;
    u32 x = static_cast<u32>(bytes >> (8 * (s & 7)) & 255);
    if (s & 8) x = x & 128 ? 255 : 0;
    r |= x << (8 * i);
  }
  return r;
}

}  // namespace

void add_bit_forms(Forms& f) {
  add_moves<u16>(f, {"b16", "u16", "s16", "f16", "bf16"});
  add_moves<u32>(f, {"b32", "u32", "s32", "f32"});
  add_moves<u64>(f, {"b64", "u64", "s64", "f64"});
  add_logic<u16>(f, "b16");
  add_logic<u32>(f, "b32");
  add_logic<u64>(f, "b64");
  add_shift<u16>(f, "16");
  add_shift<u32>(f, "32");
  add_shift<u64>(f, "64");
  add_fields<u32>(f, "32");
  add_fields<u64>(f, "64");
  f["and.pred"] = {predicates<[](u32 a, u32 b) { return a & b; }>, false, {0, 0, 0}};
  f["or.pred"] = {predicates<[](u32 a, u32 b) { return a | b; }>, false, {0, 0, 0}};
  f["xor.pred"] = {predicates<[](u32 a, u32 b) { return a ^ b; }>, false, {0, 0, 0}};
  f["not.pred"] = {predicates<[](u32 a, u32) { return ~a; }>, false, {0, 0}};
  f["mov.pred"] = {predicates<[](u32 a, u32) { return a; }>, false, {0, 0}};

  f["shf.l.wrap.b32"] =
      form<[](u32 lo, u32 hi, u32 n) -> u32 { return static_cast<u32>(((u64{hi} << 32 | lo) << (n & 31)) >> 32); }>();
  f["shf.r.wrap.b32"] =
      form<[](u32 lo, u32 hi, u32 n) -> u32 { return static_cast<u32>((u64{hi} << 32 | lo) >> (n & 31)); }>();
  f["shf.l.clamp.b32"] = form<[](u32 lo, u32 hi, u32 n) -> u32 {
    return static_cast<u32>(((u64{hi} << 32 | lo) << (n < 32 ? n : 32)) >> 32);
  }>();
  f["shf.r.clamp.b32"] =
      form<[](u32 lo, u32 hi, u32 n) -> u32 { return static_cast<u32>((u64{hi} << 32 | lo) >> (n < 32 ? n : 32)); }>();
  f["prmt.b32"] = form<[](u32 a, u32 b, u32 c) -> u32 { return permute(a, b, c); }>();
  f["bmsk.clamp.b32"] = form<[](u32 p, u32 n) -> u32 { return p >= 32 ? 0 : low_ones<u32>(n) << p; }>();
  f["bmsk.wrap.b32"] = form<[](u32 p, u32 n) -> u32 { return low_ones<u32>(n & 31) << (p & 31); }>();
  f["lop3.b32"] = form<[](u32 a, u32 b, u32 c, u32 table) -> u32 {
    u32 r = 0;
    for (u32 i = 0; i < 8; ++i) {
      const u32 row = (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
      r |= row & (0u - (table >> i & 1));
    }
    return r;
  }>();

  for (const std::string space : {"global", "const", "shared", "local"}) {
    const Form same = form<[](u64 a) -> u64 { return a; }>();
    f["cvta." + space + ".u64"] = f["cvta.to." + space + ".u64"] = same;
  }
  f["cvta.shared.u64"] = form<[](u64 a) -> u64 { return a + kSharedWindow; }>();
  f["cvta.to.shared.u64"] = form<[](u64 a) -> u64 { return a - kSharedWindow; }>();
  f["cvta.local.u64"] = form<[](u64 a) -> u64 { return a + kLocalWindow; }>();
  f["cvta.to.local.u64"] = form<[](u64 a) -> u64 { return a - kLocalWindow; }>();
}

}  // namespace sg::ptx
