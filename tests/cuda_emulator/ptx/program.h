// A decoded kernel. Every operand of an instruction is a slot: 32 lanes of one register, one constant or one special
// register side by side, so that an instruction is a loop over lanes whatever its operands are.
// Invariants: a slot is kSlotBytes, one of 8-byte lanes two in a row; lanes of 1 and 2 bytes are kept zero-extended in
// 4; a predicate is one bit per lane. Slots of constants and special registers are filled at launch and never written
// to.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/cuda_emulator/ptx/machine.h"

namespace sg::ptx {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;

inline constexpr int kLanes = 32;
inline constexpr u32 kAllLanes = ~u32{0};
inline constexpr std::size_t kSlotBytes = kLanes * sizeof(u32);
inline constexpr u32 kNoSlot = ~u32{0};
inline constexpr u32 kCarryPredicate = 2;
// Where shared and local memory lie in the generic address space: beyond what a host pointer can be.
inline constexpr u64 kSharedWindow = u64{0x7300} << 48, kLocalWindow = u64{0x7400} << 48;

struct Warp;
struct Instruction;
using LaneFn = void (*)(Warp&, const Instruction&, u32 mask);  // for the lanes of mask

enum class Kind : u8 { lanes, branch, branch_table, exit, barrier, converge };
enum class Space : u8 { global, shared, local, param, generic };
enum class BarrierRed : u8 { none, popc, all, any };
enum class BoolOp : u8 { none, logical_and, logical_or, logical_xor };

struct Instruction {
  LaneFn fn = nullptr;
  LaneFn checked = nullptr;  // the same under check_races or check_initialised
  s64 offset = 0;            // added to the address
  s64 offset2 = 0;           // cp.async: added to the address in shared memory
  u32 d = kNoSlot, d2 = kNoSlot, a = kNoSlot, b = kNoSlot, c = kNoSlot, e = kNoSlot;
  u32 list = 0;     // first of its slots in Kernel::slots, where it has more: vectors, mma
  s32 guard = -1;   // predicate
  s32 target = -1;  // branch: the instruction; branch_table: the table
  Kind kind = Kind::lanes;
  Space space = Space::global;
  u32 site = 0;  // number among those that access memory
  u8 mode = 0;   // which of the operations that share fn
  u8 size = 4;   // bytes of an element in memory
  u8 count = 1;  // elements of a vector
  bool guard_negated = false;
  bool negated = false;    // the predicate operand is used inverted
  bool address64 = false;  // the address is an 8-byte slot; a == kNoSlot: the offset alone
  bool strong = false;     // volatile, relaxed, acquire, release: synchronisation, not data
};

// Where an instruction was written, for reports.
struct Origin {
  int line = 0;                      // of the PTX text
  int file = 0, source_line = 0;     // of the kernel's source, by .loc; 0: unknown
  int call_file = 0, call_line = 0;  // where that was inlined
  std::string text;
};

enum class Special : u8 {
  tid_x,
  tid_y,
  tid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid,
  warpid,
  lanemask_eq,
  lanemask_le,
  lanemask_lt,
  lanemask_ge,
  lanemask_gt
};

// A variable of the module in global or constant memory.
struct Variable {
  std::size_t size = 0;
  std::unique_ptr<std::byte[]> storage;  // over-allocated, for alignment
  std::byte* data = nullptr;
};

// What the kernels of one module share.
struct ModuleData {
  std::map<std::string, Variable> variables;
  std::map<int, std::string> files;  // of .loc
  bool find(u64 p, u64& base, u64& size) const;
};

class Kernel {
 public:
  std::string name;
  std::vector<Instruction> code;
  std::vector<Origin> origins;           // of code, one each
  std::vector<u32> slots;                // Instruction::list
  std::vector<std::vector<s32>> tables;  // of branch_table
  std::vector<Parameter> parameters;
  std::size_t parameter_bytes = 0;
  std::vector<std::pair<u32, u32>> constants32;  // slot, value
  std::vector<std::pair<u32, u64>> constants64;
  std::vector<std::pair<u32, Special>> specials;
  u32 slot_count = 0, site_count = 0;
  u32 predicate_count = 3;                        // those of no name: 0 is always false, 1 always true, kCarryPredicate
  std::size_t shared_bytes = 0, local_bytes = 0;  // static; local: of one lane
  std::size_t dynamic_align = 16;
  int registers = 0;
  unsigned max_threads = 1024;
  std::array<unsigned, 3> required_block{};  // .reqntid; 0: none
  std::shared_ptr<const ModuleData> module;
};

}  // namespace sg::ptx
