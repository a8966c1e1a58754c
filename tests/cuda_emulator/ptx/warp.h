// The state of a launch while it runs: the run, its current block, the block's warps. Blocks run one after another.
#pragma once
#include <cstring>
#include <string>
#include <vector>

#include "tests/cuda_emulator/ptx/checks.h"
#include "tests/cuda_emulator/ptx/program.h"

namespace sg::ptx {

// One live allocation, remembered by the instruction that last found it.
struct Allocation {
  u64 base = 1, size = 0;
  u8* written = nullptr;
  bool contains(u64 p, u64 n) const { return p - base < size && n <= size - (p - base); }
};

struct Run {
  const Kernel* kernel = nullptr;
  Memory* memory = nullptr;
  Options options;
  Dim grid, block;
  std::vector<u8> parameters;
  std::vector<Allocation> recent;  // by Instruction::site
  Checks checks;
  u64 warp_instructions = 0;
  u64 random = 1;

  u64 next_random();
  // The allocation that holds [p, p + n), or null.
  const Allocation* find(u32 site, u64 p, u64 n);
};

struct Block {
  Run* run = nullptr;
  Dim index;
  u32 serial = 0;  // the how-many-th block to run
  std::vector<u8> shared;
};

struct Group {  // lanes at one place
  s32 pc = 0;
  u32 mask = 0;
  bool blocked = false;  // waits at a barrier or for other lanes of its warp
};

struct PendingCopy {  // cp.async that has not landed
  int lane = 0;
  u32 group = 0;
  u8 size = 0;
  u64 destination = 0;  // in shared memory
  u8 data[16] = {};
};

struct Warp {
  std::byte* registers = nullptr;
  u32* predicates = nullptr;
  u8* local = nullptr;  // kernel->local_bytes of each lane
  Block* block = nullptr;
  Run* run = nullptr;
  const Kernel* kernel = nullptr;
  u32 id = 0;
  u32 live = 0;
  std::vector<Group> groups;
  std::vector<PendingCopy> copies;
  u32 copy_groups[kLanes] = {};  // committed so far
  WarpOrder order;

  std::size_t index(const Instruction& in) const { return static_cast<std::size_t>(&in - kernel->code.data()); }
};

// Ends the launch.
struct Stop {
  Fault fault;
  std::string report;
};

[[noreturn]] void stop(const Warp& warp, const Instruction& in, int lane, Fault fault, const std::string& what);

template <class T>
struct MayAlias {
  typedef T type __attribute__((may_alias));
};
// What a lane of type T is kept as.
template <class T>
using Lane = typename MayAlias<std::conditional_t<sizeof(T) < 4, u32, T>>::type;

template <class T>
Lane<T>* lanes(const Warp& warp, u32 slot) {
  return reinterpret_cast<Lane<T>*>(warp.registers + slot * kSlotBytes);
}

inline bool has(u32 mask, int lane) { return mask >> lane & 1; }
inline int first_lane(u32 mask) { return __builtin_ctz(mask); }

inline void set_predicate(Warp& warp, u32 p, u32 mask, u32 value) {
  warp.predicates[p] = (warp.predicates[p] & ~mask) | (value & mask);
}

}  // namespace sg::ptx
