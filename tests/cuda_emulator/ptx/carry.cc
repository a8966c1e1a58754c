// Addition, subtraction and multiplication with the carry (or borrow) that one instruction leaves to the next: a
// predicate of the kernel that has no name.
#include "tests/cuda_emulator/ptx/lanes.h"

namespace sg::ptx {
namespace {

enum class Term : u8 { sum, difference, low, high };  // a + b, a - b, low or high half of a * b, + c

template <class T, Term kTerm, bool kIn, bool kOut>
void with_carry(Warp& warp, const Instruction& in, u32 mask) {
  using U = std::make_unsigned_t<T>;
  using D = std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                               std::conditional_t<std::is_signed_v<T>, s64, u64>>;
  const u32 carry = kIn ? warp.predicates[kCarryPredicate] : 0;
  u32 out = 0;
  for (u32 m = mask; m != 0; m &= m - 1) {
    const int l = first_lane(m);
    const T a = from_lane<T>(lanes<T>(warp, in.a)[l]), b = from_lane<T>(lanes<T>(warp, in.b)[l]);
    U x = static_cast<U>(a), y = static_cast<U>(b);
    if constexpr (kTerm == Term::low || kTerm == Term::high) {
      x = kTerm == Term::low ? x * y : static_cast<U>(static_cast<D>(a) * static_cast<D>(b) >> (8 * sizeof(T)));
      y = static_cast<U>(lanes<T>(warp, in.c)[l]);
    }
    const U c = carry >> l & 1;
    const U first = kTerm == Term::difference ? x - y : x + y;
    const U r = kTerm == Term::difference ? first - c : first + c;
    const bool carried = kTerm == Term::difference ? x < y || first < c : first < x || r < first;
    lanes<U>(warp, in.d)[l] = r;
    out |= static_cast<u32>(carried) << l;
  }
  if (kOut) set_predicate(warp, kCarryPredicate, mask, out);
}

template <class T, Term kTerm>
void add_term(Forms& f, const std::string& plain, const std::string& with, const std::string& half,
              const std::string& t) {
  constexpr u8 kBytes = sizeof(T);
  std::vector<u8> widths(kTerm == Term::sum || kTerm == Term::difference ? 3 : 4, kBytes);
  f[plain + half + ".cc." + t] = {with_carry<T, kTerm, false, true>, false, widths};
  f[with + half + ".cc." + t] = {with_carry<T, kTerm, true, true>, false, widths};
  f[with + half + "." + t] = {with_carry<T, kTerm, true, false>, false, widths};
}
template <class T>
void add_type(Forms& f, const std::string& t) {
  add_term<T, Term::sum>(f, "add", "addc", "", t);
  add_term<T, Term::difference>(f, "sub", "subc", "", t);
  add_term<T, Term::low>(f, "mad", "madc", ".lo", t);
  add_term<T, Term::high>(f, "mad", "madc", ".hi", t);
}

}  // namespace

void add_carry_forms(Forms& f) {
  add_type<u32>(f, "u32");
  add_type<s32>(f, "s32");
  add_type<u64>(f, "u64");
  add_type<s64>(f, "s64");
}

}  // namespace sg::ptx
