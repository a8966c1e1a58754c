#include "tests/cuda_emulator/ptx/exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "tests/cuda_emulator/ptx/lanes.h"
#include "tests/cuda_emulator/ptx/memory.h"
#include "tests/cuda_emulator/ptx/small_float.h"

namespace sg::ptx {

void shuffle(Warp& warp, const Instruction& in, u32 mask) {
  u32 source[kLanes];
  std::memcpy(source, lanes<u32>(warp, in.a), sizeof source);
  Lane<u32>* d = lanes<u32>(warp, in.d);
  const Lane<u32>*b = lanes<u32>(warp, in.b), *c = lanes<u32>(warp, in.c);
  u32 inside = 0;
  for (u32 m = mask; m != 0; m &= m - 1) {
    const int l = first_lane(m);
    const int step = static_cast<int>(b[l] & 31), segment = static_cast<int>(c[l] >> 8 & 31);
    const int clamp = static_cast<int>(c[l] & 31), low = l & segment, high = low | (clamp & ~segment);
    int from = l;
    bool ok = true;
    switch (static_cast<Shuffle>(in.mode)) {
      case Shuffle::up:
        from = l - step;
        ok = from >= high;
        break;
      case Shuffle::down:
        from = l + step;
        ok = from <= high;
        break;
      case Shuffle::bfly:
        from = l ^ step;
        ok = from <= high;
        break;
      case Shuffle::idx:
        from = low | (step & ~segment);
        ok = from <= high;
        break;
    }
    if (!ok) from = l;
    if (!has(mask, from))
      stop(warp, in, l, Fault::shuffle, fmt::format("shuffle reads lane {}, which does not take part", from));
    d[l] = source[from];
    inside |= static_cast<u32>(ok) << l;
  }
  if (in.d2 != kNoSlot) set_predicate(warp, in.d2, mask, inside);
}

void vote(Warp& warp, const Instruction& in, u32 mask) {
  const u32 p = (in.negated ? ~warp.predicates[in.b] : warp.predicates[in.b]) & mask;
  switch (static_cast<Vote>(in.mode)) {
    case Vote::ballot:
      for (u32 m = mask; m != 0; m &= m - 1) lanes<u32>(warp, in.d)[first_lane(m)] = p;
      break;
    case Vote::any:
      set_predicate(warp, in.d, mask, p != 0 ? kAllLanes : 0);
      break;
    case Vote::all:
      set_predicate(warp, in.d, mask, p == mask ? kAllLanes : 0);
      break;
    case Vote::uni:
      set_predicate(warp, in.d, mask, p == mask || p == 0 ? kAllLanes : 0);
      break;
  }
}

void redux(Warp& warp, const Instruction& in, u32 mask) {
  const Lane<u32>* a = lanes<u32>(warp, in.a);
  u32 r = a[first_lane(mask)];
  for (u32 m = mask & (mask - 1); m != 0; m &= m - 1) {
    const u32 x = a[first_lane(m)];
    switch (static_cast<Redux>(in.mode)) {
      case Redux::add:
        r += x;
        break;
      case Redux::min_s:
        r = static_cast<s32>(x) < static_cast<s32>(r) ? x : r;
        break;
      case Redux::max_s:
        r = static_cast<s32>(x) > static_cast<s32>(r) ? x : r;
        break;
      case Redux::min_u:
        r = std::min(r, x);
        break;
      case Redux::max_u:
        r = std::max(r, x);
        break;
      case Redux::op_and:
        r &= x;
        break;
      case Redux::op_or:
        r |= x;
        break;
      case Redux::op_xor:
        r ^= x;
        break;
    }
  }
  for (u32 m = mask; m != 0; m &= m - 1) lanes<u32>(warp, in.d)[first_lane(m)] = r;
}

template <class T>
void match_any(Warp& warp, const Instruction& in, u32 mask) {
  const Lane<T>* a = lanes<T>(warp, in.a);
  u32 equal[kLanes] = {};
  for (u32 m = mask; m != 0; m &= m - 1)
    for (u32 n = mask; n != 0; n &= n - 1)
      equal[first_lane(m)] |= static_cast<u32>(a[first_lane(m)] == a[first_lane(n)]) << first_lane(n);
  for (u32 m = mask; m != 0; m &= m - 1) lanes<u32>(warp, in.d)[first_lane(m)] = equal[first_lane(m)];
}

template <class T>
void match_all(Warp& warp, const Instruction& in, u32 mask) {
  const Lane<T>* a = lanes<T>(warp, in.a);
  bool equal = true;
  for (u32 m = mask; m != 0; m &= m - 1) equal = equal && a[first_lane(m)] == a[first_lane(mask)];
  for (u32 m = mask; m != 0; m &= m - 1) lanes<u32>(warp, in.d)[first_lane(m)] = equal ? mask : 0;
  if (in.d2 != kNoSlot) set_predicate(warp, in.d2, mask, equal ? kAllLanes : 0);
}
template void match_any<u32>(Warp&, const Instruction&, u32);
template void match_any<u64>(Warp&, const Instruction&, u32);
template void match_all<u32>(Warp&, const Instruction&, u32);
template void match_all<u64>(Warp&, const Instruction&, u32);

void warp_barrier(Warp& warp, const Instruction&, u32 mask) {
  if (warp.run->options.check_races) warp.order.join(mask);
}

void active_mask(Warp& warp, const Instruction& in, u32 mask) {
  for (u32 m = mask; m != 0; m &= m - 1) lanes<u32>(warp, in.d)[first_lane(m)] = mask;
}

namespace {

// Fragments as in the PTX ISA: lane = 4 row + column pair. An A register holds rows row and row + 8 by its lowest index
// bit and the second half of K by the next; B's index is the half of K. Products are added to C in order of k.
template <Matrix type>
[[gnu::always_inline]] inline void multiply(Warp& warp, const Instruction& in) {
  constexpr int packed = type == Matrix::tf32 ? 1 : 2;         // elements in a register
  const int depth = in.count, registers = depth / packed / 4;  // of B; A has twice as many
  const u32* d = warp.kernel->slots.data() + in.list;
  const u32 *a = d + 4, *b = a + 2 * registers, *c = b + registers;
  float left[16][16], right[16][8], sum[16][8];
  auto value = [&](u32 bits, int element) {
    if (type == Matrix::tf32) return std::bit_cast<float>(bits & 0xffffe000u);
    const u16 x = static_cast<u16>(bits >> (16 * element));
    return type == Matrix::bf16 ? bfloat_float(x) : half_float(x);
  };
  for (int l = 0; l < kLanes; ++l) {
    const int row = l >> 2, column = l & 3;
    for (int r = 0; r < registers; ++r)
      for (int i = 0; i < packed; ++i) {
        const int k = (column + 4 * r) * packed + i;
        left[row][k] = value(lanes<u32>(warp, a[2 * r])[l], i);
        left[row + 8][k] = value(lanes<u32>(warp, a[2 * r + 1])[l], i);
        right[k][row] = value(lanes<u32>(warp, b[r])[l], i);
      }
    for (int r = 0; r < 4; ++r) sum[row + 8 * (r >> 1)][2 * column + (r & 1)] = lanes<float>(warp, c[r])[l];
  }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < depth; ++k)
      for (int j = 0; j < 8; ++j) sum[i][j] += left[i][k] * right[k][j];
  for (int l = 0; l < kLanes; ++l)
    for (int r = 0; r < 4; ++r) lanes<float>(warp, d[r])[l] = sum[(l >> 2) + 8 * (r >> 1)][2 * (l & 3) + (r & 1)];
}

[[gnu::always_inline]] inline void multiply_any(Warp& warp, const Instruction& in) {
  switch (static_cast<Matrix>(in.mode)) {
    case Matrix::tf32:
      return multiply<Matrix::tf32>(warp, in);
    case Matrix::bf16:
      return multiply<Matrix::bf16>(warp, in);
    case Matrix::f16:
      return multiply<Matrix::f16>(warp, in);
  }
}
SG_PTX_WIDE void multiply_wide(Warp& warp, const Instruction& in) { multiply_any(warp, in); }

}  // namespace

void matrix_product(Warp& warp, const Instruction& in, u32) {
  if (wide_lanes())
    multiply_wide(warp, in);
  else
    multiply_any(warp, in);
}

// Row r of matrix i is at the address of lane 8 i + r.
void load_matrix(Warp& warp, const Instruction& in, u32) {
  u64 addresses[kLanes];
  read_addresses(warp, in, addresses);
  for (int i = 0; i < in.count; ++i) {
    u16 matrix[8][8];
    for (int r = 0; r < 8; ++r)
      std::memcpy(matrix[r], resolve(warp, in, 8 * i + r, addresses[8 * i + r], 16, Checks::Access::read, in.space),
                  16);
    Lane<u32>* d = lanes<u32>(warp, warp.kernel->slots[in.list + static_cast<u32>(i)]);
    for (int l = 0; l < kLanes; ++l) {
      const int row = l >> 2, column = 2 * (l & 3);
      d[l] = in.mode == 1 ? u32{matrix[column][row]} | u32{matrix[column + 1][row]} << 16
                          : u32{matrix[row][column]} | u32{matrix[row][column + 1]} << 16;
    }
  }
}

}  // namespace sg::ptx
