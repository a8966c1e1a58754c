// Loads, stores, atomics and asynchronous copies.
#pragma once
#include <string>

#include "tests/cuda_emulator/ptx/warp.h"

namespace sg::ptx {

// How an instruction runs without and with checks.
struct MemoryFns {
  LaneFn fn = nullptr, checked = nullptr;
};
MemoryFns load_fns(int bytes, bool is_signed, int register_bytes);
MemoryFns store_fns(int bytes, int register_bytes);
MemoryFns load_parameter_fns(int bytes, bool is_signed, int register_bytes);

enum class Atomic : u8 { add, min, max, exch, cas, op_and, op_or, op_xor, inc, dec };
// Null where PTX has no such operation on the type ("u32", "f32", ...).
LaneFn atomic_fn(Atomic op, const std::string& type);

void copy_async(Warp& warp, const Instruction& in, u32 mask);  // a: in shared, b: in global memory; c: bytes of source
void copy_commit(Warp& warp, const Instruction& in, u32 mask);
void copy_wait(Warp& warp, const Instruction& in, u32 mask);  // offset: groups that may stay; mode 1: none at all
void fence(Warp& warp, const Instruction& in, u32 mask);

// The host address of what a lane accesses: checked for bounds and alignment, and as the options have it for races and
// initialisation. Stops the launch where something is wrong.
u8* resolve(Warp& warp, const Instruction& in, int lane, u64 address, unsigned bytes, Checks::Access how, Space space);
void read_addresses(const Warp& warp, const Instruction& in, u64* addresses);

}  // namespace sg::ptx
