// Instructions in which the lanes of a warp meet: shuffles, votes, matches, reductions, matrix products.
#pragma once
#include "tests/cuda_emulator/ptx/warp.h"

namespace sg::ptx {

enum class Shuffle : u8 { up, down, bfly, idx };
enum class Vote : u8 { ballot, any, all, uni };
enum class Redux : u8 { add, min_s, max_s, min_u, max_u, op_and, op_or, op_xor };

// All take in.e, the slot of the member mask; the scheduler calls them when every member is there. mode: the enum.
void shuffle(Warp& warp, const Instruction& in, u32 mask);  // d|d2 = lane of a chosen by b, c
void vote(Warp& warp, const Instruction& in, u32 mask);     // of predicate b
void redux(Warp& warp, const Instruction& in, u32 mask);    // of a
template <class T>
void match_any(Warp& warp, const Instruction& in, u32 mask);  // d = lanes whose a is equal
template <class T>
void match_all(Warp& warp, const Instruction& in, u32 mask);  // d|d2
void warp_barrier(Warp& warp, const Instruction& in, u32 mask);
void active_mask(Warp& warp, const Instruction& in, u32 mask);

enum class Matrix : u8 { tf32, bf16, f16 };
// mma.sync m16n8: D = A B + C in f32; size: bytes of an element of A, count: K; 14 or fewer slots in the list, D A B C.
void matrix_product(Warp& warp, const Instruction& in, u32 mask);
// ldmatrix: count matrices of 8 x 8 elements of 2 bytes; mode 1: transposed. Slots of d in the list.
void load_matrix(Warp& warp, const Instruction& in, u32 mask);

}  // namespace sg::ptx
