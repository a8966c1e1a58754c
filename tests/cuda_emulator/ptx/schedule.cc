// Runs a launch: blocks one after another in an order drawn by the seed, the warps of a block by turns of a drawn
// number of instructions. Lanes of a warp that are at different places form groups; the group at the lowest place runs,
// and groups that meet are one again, which brings structured branches together where they join.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "tests/cuda_emulator/ptx/lanes.h"

namespace sg::ptx {

u64 Run::next_random() {  // splitmix64
  u64 z = random += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

namespace {

std::string describe(const Run& run, const Block* block, const Origin& origin, unsigned thread) {
  auto place = [&](int file, int line) {
    const auto& files = run.kernel->module->files;
    const auto it = files.find(file);
    return fmt::format("{}:{}", it == files.end() ? std::string("source line") : it->second, line);
  };
  std::string at;
  if (origin.source_line != 0) at = ", " + place(origin.file, origin.source_line);
  if (origin.call_line != 0) at += " called at " + place(origin.call_file, origin.call_line);
  const Dim& b = run.block;
  return fmt::format("kernel {}{}, block ({},{},{}) thread ({},{},{}) [PTX line {}: {}]", run.kernel->name, at,
                     block->index.x, block->index.y, block->index.z, thread % b.x, thread / b.x % b.y,
                     thread / (b.x * b.y), origin.line, origin.text);
}

}  // namespace

void stop(const Warp& warp, const Instruction& in, int lane, Fault fault, const std::string& what) {
  static constexpr const char* kNames[] = {"ok",        "out of bounds", "misaligned", "uninitialised",
                                           "race",      "barrier",       "shuffle",    "trap",
                                           "assertion", "endless",       "bad launch"};
  throw Stop{fault, fmt::format("{}: {}; {}", kNames[static_cast<int>(fault)], what,
                                describe(*warp.run, warp.block, warp.kernel->origins[warp.index(in)],
                                         warp.id * kLanes + static_cast<unsigned>(lane)))};
}

namespace {

enum class Turn : u8 { quantum, blocked, done };

void merge(std::vector<Group>& groups) {
  for (std::size_t i = 0; i < groups.size(); ++i)
    for (std::size_t j = i + 1; j < groups.size();) {
      if (groups[i].pc != groups[j].pc) {
        ++j;
        continue;
      }
      groups[i].mask |= groups[j].mask;
      groups[i].blocked = groups[i].blocked && groups[j].blocked;
      groups[j] = groups.back();
      groups.pop_back();
    }
}

// The lanes `taken` of a group go elsewhere, the rest stay with it.
void split(Warp& warp, Group& group, u32 taken, s32 pc, s32 rest_pc) {
  group.pc = rest_pc;
  group.mask &= ~taken;
  if (group.mask == 0) {
    group.mask = taken;
    group.pc = pc;
    return;
  }
  warp.groups.push_back({pc, taken, false});  // invalidates `group`
}

void branch_by_table(Warp& warp, std::size_t g, const Instruction& in, s32 pc, u32 taken) {
  const std::vector<s32>& table = warp.kernel->tables[static_cast<std::size_t>(in.target)];
  const Lane<u32>* index = lanes<u32>(warp, in.a);
  Group group = warp.groups[g];
  u32 rest = group.mask & ~taken;
  warp.groups.erase(warp.groups.begin() + static_cast<std::ptrdiff_t>(g));
  if (rest != 0) warp.groups.push_back({pc + 1, rest, false});
  while (taken != 0) {
    const int first = first_lane(taken);
    const u32 chosen = index[first];
    if (chosen >= table.size())
      stop(warp, in, first, Fault::trap, fmt::format("brx.idx: index {} of a table of {}", chosen, table.size()));
    u32 same = 0;
    for (u32 m = taken; m != 0; m &= m - 1)
      if (index[first_lane(m)] == chosen) same |= 1u << first_lane(m);
    warp.groups.push_back({table[chosen], same, false});
    taken &= ~same;
  }
}

// Runs a converging instruction for the lanes of m whose members are all there, and returns them. Each lane brings the
// mask of the members that it means: several sets may meet in one instruction.
template <bool kChecked>
u32 converge(Warp& warp, const Instruction& in, u32 m) {
  const Lane<u32>* masks = lanes<u32>(warp, in.e);
  u32 done = 0;
  for (u32 rest = m; rest != 0;) {
    const int first = first_lane(rest);
    const u32 wanted = masks[first];
    u32 same = 0;
    for (std::size_t l = 0; l < kLanes; ++l) same |= masks[l] == wanted ? kBits[l] : 0;
    same &= rest;
    rest &= ~same;
    if (const u32 gone = wanted & ~warp.live; gone != 0)
      stop(warp, in, first, Fault::shuffle,
           fmt::format("member mask {:#x} names lane {}, which has exited or never was", wanted, first_lane(gone)));
    if (const u32 strangers = same & ~wanted; strangers != 0)
      stop(warp, in, first_lane(strangers), Fault::shuffle,
           fmt::format("lane is not in its own member mask {:#x}", wanted));
    if (same != wanted) continue;
    if constexpr (kChecked)
      in.checked(warp, in, same);
    else
      in.fn(warp, in, same);
    done |= same;
  }
  return done;
}

// Runs at most `quantum` instructions of a warp.
template <bool kChecked>
Turn run_warp(Warp& warp, u64 quantum) {
  Run& run = *warp.run;
  const Instruction* code = warp.kernel->code.data();
  u64 left = quantum;
  while (left > 0) {
    if (warp.groups.empty()) return Turn::done;
    if (warp.groups.size() > 1) merge(warp.groups);
    std::size_t g = warp.groups.size();
    for (std::size_t i = 0; i < warp.groups.size(); ++i)
      if (!warp.groups[i].blocked && (g == warp.groups.size() || warp.groups[i].pc < warp.groups[g].pc)) g = i;
    if (g == warp.groups.size()) return Turn::blocked;
    s32 pc = warp.groups[g].pc;
    u32 mask = warp.groups[g].mask;
    const bool alone = warp.groups.size() == 1;
    s32 meeting = std::numeric_limits<s32>::max();  // where another group waits to be joined
    for (const Group& other : warp.groups)
      if (other.pc > pc) meeting = std::min(meeting, other.pc);
    const u64 before = left;
    bool regroup = false;
    while (left > 0 && pc < meeting && !regroup) {
      const Instruction& in = code[pc];
      u32 m = mask;
      if (in.guard >= 0) {
        const u32 p = warp.predicates[in.guard];
        m &= in.guard_negated ? ~p : p;
      }
      --left;
      if (in.kind == Kind::lanes) {
        if (m != 0) {
          if constexpr (kChecked)
            in.checked(warp, in, m);
          else
            in.fn(warp, in, m);
        }
        ++pc;
        continue;
      }
      if (m == 0) {
        ++pc;
        continue;
      }
      switch (in.kind) {
        case Kind::branch:
          if (m == mask && alone) {
            pc = in.target;
            break;
          }
          split(warp, warp.groups[g], m, in.target, pc + 1);
          regroup = true;
          break;
        case Kind::branch_table:
          branch_by_table(warp, g, in, pc, m);
          regroup = true;
          break;
        case Kind::exit:
          warp.live &= ~m;
          mask &= ~m;
          ++pc;
          warp.groups[g].mask = mask;
          if (mask == 0) {
            warp.groups.erase(warp.groups.begin() + static_cast<std::ptrdiff_t>(g));
            regroup = true;
          }
          break;
        case Kind::barrier:
          warp.groups[g] = {pc, m, true};
          if (m != mask) warp.groups.push_back({pc + 1, mask & ~m, false});
          regroup = true;
          break;
        case Kind::converge: {
          const u32 waiting = m & ~converge<kChecked>(warp, in, m);
          if (waiting == 0) {
            ++pc;
            break;
          }
          warp.groups[g] = {pc, waiting, true};  // merging with who is missing wakes it
          if (waiting != mask) warp.groups.push_back({pc + 1, mask & ~waiting, false});
          regroup = true;
          break;
        }
        case Kind::lanes:
          break;
      }
    }
    run.warp_instructions += before - left;
    if (!regroup) {
      warp.groups[g].pc = pc;
      warp.groups[g].mask = mask;
    }
  }
  return warp.groups.empty() ? Turn::done : Turn::quantum;
}

// Kept between launches: a large kernel touches few of its registers, and no program reads one that it has not written.
std::byte* register_memory(std::size_t bytes) {
  thread_local std::unique_ptr<std::byte[]> memory;
  thread_local std::size_t size = 0;
  if (size < bytes) {
    memory.reset(new std::byte[bytes + 64]);
    size = bytes;
  }
  return memory.get() + (64 - reinterpret_cast<std::uintptr_t>(memory.get()) % 64) % 64;
}

// The warps of a block, and the barrier between them.
class BlockRunner {
 public:
  BlockRunner(Run& run, std::size_t shared_bytes);
  void operator()(u64 index, u32 serial);

 private:
  void start(Warp& warp);
  void fill_block_specials(Warp& warp);
  void pass_barrier();

  Run& run_;
  Block block_;
  unsigned threads_;
  std::vector<u32> predicates_;
  std::vector<u8> local_;
  std::vector<Warp> warps_;
};

u32 special_value(Special special, const Run& run, const Block& block, u32 warp, u32 lane) {
  const u32 t = warp * kLanes + lane;
  switch (special) {
    case Special::tid_x:
      return t % run.block.x;
    case Special::tid_y:
      return t / run.block.x % run.block.y;
    case Special::tid_z:
      return t / (run.block.x * run.block.y);
    case Special::ntid_x:
      return run.block.x;
    case Special::ntid_y:
      return run.block.y;
    case Special::ntid_z:
      return run.block.z;
    case Special::ctaid_x:
      return block.index.x;
    case Special::ctaid_y:
      return block.index.y;
    case Special::ctaid_z:
      return block.index.z;
    case Special::nctaid_x:
      return run.grid.x;
    case Special::nctaid_y:
      return run.grid.y;
    case Special::nctaid_z:
      return run.grid.z;
    case Special::laneid:
      return lane;
    case Special::warpid:
      return warp;
    case Special::lanemask_eq:
      return 1u << lane;
    case Special::lanemask_le:
      return (2u << lane) - 1;
    case Special::lanemask_lt:
      return (1u << lane) - 1;
    case Special::lanemask_ge:
      return ~((1u << lane) - 1);
    case Special::lanemask_gt:
      return ~((2u << lane) - 1);
  }
  return 0;
}
bool varies_by_block(Special s) { return s == Special::ctaid_x || s == Special::ctaid_y || s == Special::ctaid_z; }

BlockRunner::BlockRunner(Run& run, std::size_t shared_bytes)
    : run_(run), threads_(run.block.x * run.block.y * run.block.z) {
  const Kernel& kernel = *run.kernel;
  block_.run = &run;
  block_.shared.resize(shared_bytes);
  const std::size_t warp_count = (threads_ + kLanes - 1) / kLanes, warp_bytes = kernel.slot_count * kSlotBytes;
  std::byte* first = register_memory(warp_count * warp_bytes);
  predicates_.resize(warp_count * kernel.predicate_count);
  local_.resize(warp_count * kLanes * kernel.local_bytes);
  warps_.resize(warp_count);
  for (std::size_t i = 0; i < warp_count; ++i) {
    Warp& warp = warps_[i];
    warp.registers = first + i * warp_bytes;
    warp.predicates = predicates_.data() + i * kernel.predicate_count;
    warp.predicates[1] = kAllLanes;
    warp.local = local_.data() + i * kLanes * kernel.local_bytes;
    warp.block = &block_;
    warp.run = &run;
    warp.kernel = &kernel;
    warp.id = static_cast<u32>(i);
    for (const auto& [slot, value] : kernel.constants32) std::fill_n(lanes<u32>(warp, slot), kLanes, value);
    for (const auto& [slot, value] : kernel.constants64) std::fill_n(lanes<u64>(warp, slot), kLanes, value);
    for (const auto& [slot, special] : kernel.specials)
      for (u32 l = 0; l < kLanes; ++l) lanes<u32>(warp, slot)[l] = special_value(special, run, block_, warp.id, l);
  }
}

void BlockRunner::start(Warp& warp) {
  const u32 members = std::min<u32>(kLanes, threads_ - warp.id * kLanes);
  warp.live = members == kLanes ? kAllLanes : (1u << members) - 1;
  warp.groups.assign(1, {0, warp.live, false});
  warp.copies.clear();
  std::fill_n(warp.copy_groups, kLanes, 0u);
  if (run_.options.check_races) warp.order = WarpOrder{};
  for (const auto& [slot, special] : run_.kernel->specials)
    if (varies_by_block(special))
      std::fill_n(lanes<u32>(warp, slot), kLanes, special_value(special, run_, block_, warp.id, 0));
}

// All threads of the block must be at one barrier; then they pass it, with its reduction.
void BlockRunner::pass_barrier() {
  const Kernel& kernel = *run_.kernel;
  const Instruction* barrier = nullptr;
  u32 waiting = 0, count = 0;
  for (Warp& warp : warps_)
    for (const Group& group : warp.groups) {
      const Instruction& in = kernel.code[static_cast<std::size_t>(group.pc)];
      if (in.kind != Kind::barrier)
        stop(warp, in, first_lane(group.mask), Fault::shuffle, "waits for lanes of its warp that never arrive");
      if (barrier != nullptr && barrier != &in)
        stop(warp, in, first_lane(group.mask), Fault::barrier,
             fmt::format("divergent: other threads of the block wait at PTX line {}",
                         kernel.origins[static_cast<std::size_t>(barrier - kernel.code.data())].line));
      barrier = &in;
      waiting += static_cast<u32>(__builtin_popcount(group.mask));
    }
  for (Warp& warp : warps_)
    if (waiting != threads_ && !warp.groups.empty())
      stop(warp, *barrier, first_lane(warp.groups[0].mask), Fault::barrier,
           fmt::format("{} of the {} threads of the block have exited and never arrive", threads_ - waiting, threads_));
  if (barrier->b != kNoSlot)
    for (const Warp& warp : warps_) {
      const u32 p = barrier->negated ? ~warp.predicates[barrier->b] : warp.predicates[barrier->b];
      count += static_cast<u32>(__builtin_popcount(p & warp.live));
    }
  run_.checks.barrier();
  for (Warp& warp : warps_)
    for (Group& group : warp.groups) {
      switch (static_cast<BarrierRed>(barrier->mode)) {
        case BarrierRed::none:
          break;
        case BarrierRed::popc:
          for (u32 m = group.mask; m != 0; m &= m - 1) lanes<u32>(warp, barrier->d)[first_lane(m)] = count;
          break;
        case BarrierRed::all:
          set_predicate(warp, barrier->d, group.mask, count == threads_ ? kAllLanes : 0);
          break;
        case BarrierRed::any:
          set_predicate(warp, barrier->d, group.mask, count != 0 ? kAllLanes : 0);
          break;
      }
      ++group.pc;
      group.blocked = false;
    }
}

void BlockRunner::operator()(u64 index, u32 serial) {
  const Options& options = run_.options;
  const bool checked = options.check_races || options.check_initialised;
  block_.index = {static_cast<unsigned>(index % run_.grid.x), static_cast<unsigned>(index / run_.grid.x % run_.grid.y),
                  static_cast<unsigned>(index / (u64{run_.grid.x} * run_.grid.y))};
  block_.serial = serial;
  std::fill(block_.shared.begin(), block_.shared.end(), u8{0xff});
  std::fill(local_.begin(), local_.end(), u8{0xff});
  if (checked) run_.checks.start_block(serial, block_.shared.size());
  std::vector<u32> ready(warps_.size());
  std::iota(ready.begin(), ready.end(), 0u);
  for (Warp& warp : warps_) start(warp);
  std::size_t waiting = 0;  // warps at the barrier or at a converging instruction
  while (!ready.empty() || waiting != 0) {
    if (ready.empty()) {
      pass_barrier();
      waiting = 0;
      for (const Warp& warp : warps_)
        if (!warp.groups.empty()) ready.push_back(warp.id);
    }
    const std::size_t chosen = ready.size() == 1 ? 0 : run_.next_random() % ready.size();
    Warp& warp = warps_[ready[chosen]];
    const u64 quantum = ready.size() == 1 ? 4096 : 1 + run_.next_random() % std::max(options.quantum, 1u);
    const Turn turn = checked ? run_warp<true>(warp, quantum) : run_warp<false>(warp, quantum);
    if (run_.warp_instructions > options.max_steps)
      stop(warp, run_.kernel->code[warp.groups.empty() ? 0 : static_cast<std::size_t>(warp.groups[0].pc)], 0,
           Fault::endless, fmt::format("{} warp instructions and no end", run_.warp_instructions));
    if (turn == Turn::quantum) continue;
    waiting += turn == Turn::blocked;
    ready[chosen] = ready.back();
    ready.pop_back();
  }
}

std::string bad_launch(const Run& run, u64 shared_bytes) {
  const Kernel& kernel = *run.kernel;
  const Dim &g = run.grid, &b = run.block;
  const u64 threads = u64{b.x} * b.y * b.z;
  if (g.x == 0 || g.y == 0 || g.z == 0 || threads == 0) return "an empty grid or block";
  if (g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) return "a grid beyond 2147483647 x 65535 x 65535";
  if (b.x > 1024 || b.y > 1024 || b.z > 64) return "a block beyond 1024 x 1024 x 64";
  if (threads > kernel.max_threads)
    return fmt::format("{} threads in a block of at most {}", threads, kernel.max_threads);
  if (const auto& r = kernel.required_block; r[0] != 0 && (r[0] != b.x || r[1] != b.y || r[2] != b.z))
    return fmt::format("the kernel requires blocks of {} x {} x {}", r[0], r[1], r[2]);
  constexpr u64 kLargestShared = 227 * 1024;
  if (shared_bytes > kLargestShared)
    return fmt::format("{} bytes of shared memory of at most {}", shared_bytes, kLargestShared);
  return {};
}

}  // namespace

Result launch(const Kernel& kernel, Dim grid, Dim block, std::size_t dynamic_shared, void** arguments, Memory& memory,
              const Options& options) {
  Run run;
  run.kernel = &kernel;
  run.memory = &memory;
  run.options = options;
  run.grid = grid;
  run.block = block;
  run.random = options.seed;
  Result result;
  std::size_t shared = kernel.shared_bytes;
  if (dynamic_shared != 0)
    shared = (shared + kernel.dynamic_align - 1) / kernel.dynamic_align * kernel.dynamic_align + dynamic_shared;
  if (const std::string wrong = bad_launch(run, shared); !wrong.empty()) {
    result.fault = Fault::bad_launch;
    result.report = fmt::format("bad launch: {}; kernel {}", wrong, kernel.name);
    return result;
  }
  run.recent.resize(kernel.site_count);
  run.parameters.resize(kernel.parameter_bytes);
  for (std::size_t i = 0; i < kernel.parameters.size(); ++i)
    std::memcpy(run.parameters.data() + kernel.parameters[i].offset, arguments[i], kernel.parameters[i].size);
  const u64 blocks = u64{grid.x} * grid.y * grid.z;
  std::vector<u32> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  for (u64 i = blocks - 1; i > 0; --i) std::swap(order[i], order[run.next_random() % (i + 1)]);
  try {
    BlockRunner run_block(run, shared);
    for (u64 i = 0; i < blocks; ++i) run_block(order[i], static_cast<u32>(i));
  } catch (const Stop& stopped) {
    result.fault = stopped.fault;
    result.report = stopped.report;
  }
  result.warp_instructions = run.warp_instructions;
  return result;
}

}  // namespace sg::ptx
