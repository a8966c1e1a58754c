#include "tests/cuda_emulator/ptx/memory.h"

#include <fmt/format.h>

#include <algorithm>

#include "tests/cuda_emulator/ptx/lanes.h"

namespace sg::ptx {

bool ModuleData::find(u64 p, u64& base, u64& size) const {
  for (const auto& [name, variable] : variables) {
    const u64 start = reinterpret_cast<u64>(variable.data);
    if (p - start >= variable.size) continue;
    base = start;
    size = variable.size;
    return true;
  }
  return false;
}

const Allocation* Run::find(u32 site, u64 p, u64 n) {
  Allocation& last = recent[site];
  if (last.contains(p, n)) return &last;
  Allocation found;
  if (memory->find(p, found.base, found.size)) {
    found.written = options.check_initialised ? memory->written(found.base) : nullptr;
  } else if (!kernel->module->find(p, found.base, found.size)) {
    return nullptr;
  }
  if (!found.contains(p, n)) return nullptr;
  last = found;
  return &last;
}

namespace {

const char* space_name(Space space) {
  switch (space) {
    case Space::global:
      return "global";
    case Space::shared:
      return "shared";
    case Space::local:
      return "local";
    case Space::param:
      return "parameter";
    case Space::generic:
      break;
  }
  return "generic";
}
bool any_unwritten(const u8* written, unsigned n) { return std::find(written, written + n, u8{0}) != written + n; }

}  // namespace

u8* resolve(Warp& warp, const Instruction& in, int lane, u64 address, unsigned bytes, Checks::Access how, Space space) {
  using Access = Checks::Access;
  Run& run = *warp.run;
  if (space == Space::generic) {
    space = address >= kLocalWindow ? Space::local : address >= kSharedWindow ? Space::shared : Space::global;
    address -= space == Space::local ? kLocalWindow : space == Space::shared ? kSharedWindow : 0;
  }
  auto wrong = [&](Fault fault, const std::string& what) {
    stop(warp, in, lane, fault,
         fmt::format("{} of {} bytes at {} {} {:#x}: {}",
                     how == Access::read    ? "read"
                     : how == Access::write ? "write"
                                            : "atomic",
                     bytes, space_name(space), space == Space::global ? "address" : "offset", address, what));
  };
  if ((address & (bytes - 1)) != 0) wrong(Fault::misaligned, "misaligned");
  u8* p = nullptr;
  u8* written = nullptr;
  if (space == Space::shared) {
    std::vector<u8>& shared = warp.block->shared;
    if (address > shared.size() || bytes > shared.size() - address)
      wrong(Fault::out_of_bounds, fmt::format("the block has {} bytes", shared.size()));
    p = shared.data() + address;
    if (run.options.check_initialised) written = run.checks.shared_written().data() + address;
  } else if (space == Space::local) {
    const std::size_t size = warp.kernel->local_bytes;
    if (address > size || bytes > size - address)
      wrong(Fault::out_of_bounds, fmt::format("a thread has {} bytes", size));
    return warp.local + static_cast<std::size_t>(lane) * size + address;
  } else {
    const Allocation* found = run.find(in.site, address, bytes);
    if (found == nullptr) {
      u64 base = 0, size = 0;
      const bool near = run.memory->find(address, base, size) || run.memory->find(address - 1, base, size);
      wrong(Fault::out_of_bounds, near ? fmt::format("beyond the {} bytes at {:#x}", size, base)
                                       : std::string("outside every live allocation"));
    }
    p = reinterpret_cast<u8*>(address);
    if (found->written != nullptr) written = found->written + (address - found->base);
  }
  if (written != nullptr) {
    if (how != Access::write && any_unwritten(written, bytes)) wrong(Fault::uninitialised, "nobody has written it");
    if (how != Access::read) std::fill_n(written, bytes, u8{1});
  }
  if (run.options.check_races) run.checks.access(warp, in, lane, address, bytes, how, space == Space::shared);
  return p;
}

void read_addresses(const Warp& warp, const Instruction& in, u64* addresses) {
  const u64 offset = static_cast<u64>(in.offset);
  if (in.a == kNoSlot) {
    std::fill_n(addresses, kLanes, offset);
  } else if (in.address64) {
    const Lane<u64>* a = lanes<u64>(warp, in.a);
    for (int l = 0; l < kLanes; ++l) addresses[l] = a[l] + offset;
  } else {
    const Lane<u32>* a = lanes<u32>(warp, in.a);
    for (int l = 0; l < kLanes; ++l) addresses[l] = static_cast<u32>(a[l] + static_cast<u32>(offset));
  }
}

namespace {

// A: u32 where that is what addresses are computed in (shared memory), else u64.
template <class A>
[[gnu::always_inline]] inline void warp_addresses(const Warp& warp, const Instruction& in, A* addresses) {
  if constexpr (sizeof(A) == 8) {
    read_addresses(warp, in, addresses);
  } else {
    const u32 offset = static_cast<u32>(in.offset);
    const Lane<u32>* a = lanes<u32>(warp, in.a);
    for (int l = 0; l < kLanes; ++l) addresses[l] = a[l] + offset;
  }
}

// True where all lanes of the mask are within one allocation and aligned; then host address = origin + address.
template <class A>
[[gnu::always_inline]] inline bool whole_warp(Warp& warp, const Instruction& in, A* addresses, u32 mask, u32 bytes,
                                              u64& origin) {
  const A first = addresses[first_lane(mask)];
  if (mask != kAllLanes)
    for (std::size_t l = 0; l < kLanes; ++l) addresses[l] = mask & kBits[l] ? addresses[l] : first;
  u64 base = 0, size = 0;
  if (in.space == Space::shared) {
    size = warp.block->shared.size();
    origin = reinterpret_cast<u64>(warp.block->shared.data());
  } else if (in.space == Space::global || in.space == Space::generic) {
    const Allocation* found = warp.run->find(in.site, first, bytes);
    if (found == nullptr) return false;
    base = found->base;
    size = found->size;
    origin = 0;
  } else {
    return false;
  }
  if (size < bytes) return false;
  const A from = static_cast<A>(base), room = static_cast<A>(size - bytes), low = static_cast<A>(bytes - 1);
  A bad = 0;
  for (int l = 0; l < kLanes; ++l) bad |= (addresses[l] & low) | static_cast<A>(addresses[l] - from > room ? 1 : 0);
  return bad == 0;
}

enum class Pattern : u8 { scattered, consecutive, uniform };
template <class A>
[[gnu::always_inline]] inline Pattern pattern(const A* addresses, A bytes) {
  A from_next = 0, from_same = 0;
  for (A l = 0; l < kLanes; ++l) {
    from_next |= addresses[l] ^ (addresses[0] + l * bytes);
    from_same |= addresses[l] ^ addresses[0];
  }
  return from_next == 0 ? Pattern::consecutive : from_same == 0 ? Pattern::uniform : Pattern::scattered;
}

template <class M, class R>
Lane<R> loaded(const u8* p) {
  M x;
  std::memcpy(&x, p, sizeof(M));
  return to_lane<R>(static_cast<R>(x));
}

template <class M, class R, class A>
[[gnu::always_inline]] inline bool load_whole(Warp& warp, const Instruction& in, u32 mask) {
  alignas(64) A addresses[kLanes];
  warp_addresses(warp, in, addresses);
  const u32* slots = warp.kernel->slots.data() + in.list;
  u64 origin = 0;
  if (!whole_warp(warp, in, addresses, mask, static_cast<u32>(sizeof(M) * in.count), origin)) return false;
  auto at = [&](int l) { return reinterpret_cast<const u8*>(origin + addresses[l]); };
  if (in.count == 1 && mask == kAllLanes) {
    Lane<R>* d = lanes<R>(warp, slots[0]);
    const Pattern found = pattern(addresses, static_cast<A>(sizeof(M)));
    if (sizeof(M) == sizeof(Lane<R>) && found == Pattern::consecutive) {
      std::memcpy(d, at(0), sizeof(M) * kLanes);
    } else if (found == Pattern::uniform) {
      const Lane<R> x = loaded<M, R>(at(0));
      for (int l = 0; l < kLanes; ++l) d[l] = x;
    } else {
#pragma GCC unroll 8
      for (int l = 0; l < kLanes; ++l) d[l] = loaded<M, R>(at(l));
    }
    return true;
  }
  for (u32 v = 0; v < in.count; ++v) {
    if (slots[v] == kNoSlot) continue;
    Lane<R>* d = lanes<R>(warp, slots[v]);
    for (u32 m = mask; m != 0; m &= m - 1) {
      const int l = first_lane(m);
      d[l] = loaded<M, R>(at(l) + v * sizeof(M));
    }
  }
  return true;
}

template <class M, class R, class A>
[[gnu::always_inline]] inline bool store_whole(Warp& warp, const Instruction& in, u32 mask) {
  alignas(64) A addresses[kLanes];
  warp_addresses(warp, in, addresses);
  const u32* slots = warp.kernel->slots.data() + in.list;
  u64 origin = 0;
  if (!whole_warp(warp, in, addresses, mask, static_cast<u32>(sizeof(M) * in.count), origin)) return false;
  if (in.count == 1 && mask == kAllLanes && sizeof(M) == sizeof(Lane<R>) &&
      pattern(addresses, static_cast<A>(sizeof(M))) == Pattern::consecutive) {
    std::memcpy(reinterpret_cast<u8*>(origin + addresses[0]), lanes<R>(warp, slots[0]), sizeof(M) * kLanes);
    return true;
  }
  for (u32 m = mask; m != 0; m &= m - 1) {
    const int l = first_lane(m);
    for (u32 v = 0; v < in.count; ++v) {
      const M x = static_cast<M>(lanes<R>(warp, slots[v])[l]);
      std::memcpy(reinterpret_cast<u8*>(origin + addresses[l]) + v * sizeof(M), &x, sizeof(M));
    }
  }
  return true;
}

bool short_addresses(const Instruction& in) { return in.space == Space::shared && !in.address64 && in.a != kNoSlot; }

// Lane by lane, each access looked at.
template <class M, class R>
[[gnu::noinline]] void load_checked(Warp& warp, const Instruction& in, u32 mask) {
  u64 addresses[kLanes];
  read_addresses(warp, in, addresses);
  const u32* slots = warp.kernel->slots.data() + in.list;
  for (u32 m = mask; m != 0; m &= m - 1) {
    const int l = first_lane(m);
    const u8* p =
        resolve(warp, in, l, addresses[l], static_cast<unsigned>(sizeof(M) * in.count), Checks::Access::read, in.space);
    for (u32 v = 0; v < in.count; ++v)
      if (slots[v] != kNoSlot) lanes<R>(warp, slots[v])[l] = loaded<M, R>(p + v * sizeof(M));
  }
}
template <class M, class R>
[[gnu::noinline]] void store_checked(Warp& warp, const Instruction& in, u32 mask) {
  u64 addresses[kLanes];
  read_addresses(warp, in, addresses);
  const u32* slots = warp.kernel->slots.data() + in.list;
  for (u32 m = mask; m != 0; m &= m - 1) {
    const int l = first_lane(m);
    u8* p = resolve(warp, in, l, addresses[l], static_cast<unsigned>(sizeof(M) * in.count), Checks::Access::write,
                    in.space);
    for (u32 v = 0; v < in.count; ++v) {
      const M x = static_cast<M>(lanes<R>(warp, slots[v])[l]);
      std::memcpy(p + v * sizeof(M), &x, sizeof(M));
    }
  }
}

template <class M, class R>
void load(Warp& warp, const Instruction& in, u32 mask) {
  if (!load_whole<M, R, u64>(warp, in, mask)) load_checked<M, R>(warp, in, mask);
}
template <class M, class R>
SG_PTX_WIDE void load_wide(Warp& warp, const Instruction& in, u32 mask) {
  const bool done = short_addresses(in) ? load_whole<M, R, u32>(warp, in, mask) : load_whole<M, R, u64>(warp, in, mask);
  if (!done) load_checked<M, R>(warp, in, mask);
}
template <class M, class R>
void store(Warp& warp, const Instruction& in, u32 mask) {
  if (!store_whole<M, R, u64>(warp, in, mask)) store_checked<M, R>(warp, in, mask);
}
template <class M, class R>
SG_PTX_WIDE void store_wide(Warp& warp, const Instruction& in, u32 mask) {
  const bool done =
      short_addresses(in) ? store_whole<M, R, u32>(warp, in, mask) : store_whole<M, R, u64>(warp, in, mask);
  if (!done) store_checked<M, R>(warp, in, mask);
}

template <class M, class R>
void load_parameter(Warp& warp, const Instruction& in, u32 mask) {
  u64 addresses[kLanes];
  read_addresses(warp, in, addresses);
  const std::vector<u8>& parameters = warp.run->parameters;
  for (u32 m = mask; m != 0; m &= m - 1) {
    const int l = first_lane(m);
    if (addresses[l] > parameters.size() || sizeof(M) * in.count > parameters.size() - addresses[l])
      stop(warp, in, l, Fault::out_of_bounds, "beyond the parameters");
    for (u32 v = 0; v < in.count; ++v)
      if (const u32 slot = warp.kernel->slots[in.list + v]; slot != kNoSlot)
        lanes<R>(warp, slot)[l] = loaded<M, R>(parameters.data() + addresses[l] + v * sizeof(M));
  }
}

// f<M, R> for the type in memory and the unsigned integer of the register's size.
template <class R, class F>
MemoryFns with_memory_type(int bytes, bool is_signed, F f) {
  switch (bytes) {
    case 1:
      return is_signed ? f.template operator()<s8, R>() : f.template operator()<u8, R>();
    case 2:
      return is_signed ? f.template operator()<s16, R>() : f.template operator()<u16, R>();
    case 4:
      if constexpr (sizeof(R) >= 4)
        return is_signed ? f.template operator()<s32, R>() : f.template operator()<u32, R>();
      break;
    case 8:
      if constexpr (sizeof(R) == 8) return f.template operator()<u64, R>();
      break;
    default:
      break;
  }
  return {};
}
template <class F>
MemoryFns with_types(int bytes, bool is_signed, int register_bytes, F f) {
  switch (register_bytes) {
    case 2:
      return with_memory_type<u16>(bytes, is_signed, f);
    case 4:
      return with_memory_type<u32>(bytes, is_signed, f);
    case 8:
      return with_memory_type<u64>(bytes, is_signed, f);
    default:
      return {};
  }
}

template <class T, Atomic kOp>
T updated(T old, T x, T y) {
  using U = std::conditional_t<std::is_integral_v<T>, std::make_unsigned<T>, std::type_identity<T>>::type;
  if constexpr (kOp == Atomic::add)
    return static_cast<T>(static_cast<U>(old) + static_cast<U>(x));
  else if constexpr (kOp == Atomic::min)
    return x < old ? x : old;
  else if constexpr (kOp == Atomic::max)
    return x > old ? x : old;
  else if constexpr (kOp == Atomic::exch)
    return x;
  else if constexpr (kOp == Atomic::cas)
    return old == x ? y : old;
  else if constexpr (kOp == Atomic::op_and)
    return old & x;
  else if constexpr (kOp == Atomic::op_or)
    return old | x;
  else if constexpr (kOp == Atomic::op_xor)
    return old ^ x;
  else if constexpr (kOp == Atomic::inc)
    return old >= x ? T{0} : old + 1;
  else
    return old == 0 || old > x ? x : old - 1;
}

template <class T, Atomic kOp>
void atomic(Warp& warp, const Instruction& in, u32 mask) {
  u64 addresses[kLanes];
  read_addresses(warp, in, addresses);
  for (u32 m = mask; m != 0; m &= m - 1) {
    const int l = first_lane(m);
    u8* p = resolve(warp, in, l, addresses[l], sizeof(T), Checks::Access::atomic, in.space);
    T old;
    std::memcpy(&old, p, sizeof(T));
    const T x = lanes<T>(warp, in.b)[l];
    const T r = updated<T, kOp>(old, x, in.c == kNoSlot ? x : static_cast<T>(lanes<T>(warp, in.c)[l]));
    std::memcpy(p, &r, sizeof(T));
    if (in.d != kNoSlot) lanes<T>(warp, in.d)[l] = old;
  }
}

template <class T>
LaneFn arithmetic_atomic(Atomic op) {
  if (op == Atomic::add) return atomic<T, Atomic::add>;
  if constexpr (std::is_integral_v<T>) {
    if (op == Atomic::min) return atomic<T, Atomic::min>;
    if (op == Atomic::max) return atomic<T, Atomic::max>;
    if (op == Atomic::inc && sizeof(T) == 4) return atomic<T, Atomic::inc>;
    if (op == Atomic::dec && sizeof(T) == 4) return atomic<T, Atomic::dec>;
  }
  return nullptr;
}
template <class T>
LaneFn bit_atomic(Atomic op) {
  switch (op) {
    case Atomic::exch:
      return atomic<T, Atomic::exch>;
    case Atomic::cas:
      return atomic<T, Atomic::cas>;
    case Atomic::op_and:
      return atomic<T, Atomic::op_and>;
    case Atomic::op_or:
      return atomic<T, Atomic::op_or>;
    case Atomic::op_xor:
      return atomic<T, Atomic::op_xor>;
    default:
      return nullptr;
  }
}

}  // namespace

MemoryFns load_fns(int bytes, bool is_signed, int register_bytes) {
  return with_types(bytes, is_signed, register_bytes, []<class M, class R>() -> MemoryFns {
    return {wide_lanes() ? load_wide<M, R> : load<M, R>, load_checked<M, R>};
  });
}
MemoryFns store_fns(int bytes, int register_bytes) {
  return with_types(bytes, false, register_bytes, []<class M, class R>() -> MemoryFns {
    return {wide_lanes() ? store_wide<M, R> : store<M, R>, store_checked<M, R>};
  });
}
MemoryFns load_parameter_fns(int bytes, bool is_signed, int register_bytes) {
  return with_types(bytes, is_signed, register_bytes, []<class M, class R>() -> MemoryFns {
    return {load_parameter<M, R>, load_parameter<M, R>};
  });
}

LaneFn atomic_fn(Atomic op, const std::string& type) {
  if (type == "u32") return arithmetic_atomic<u32>(op);
  if (type == "u64") return arithmetic_atomic<u64>(op);
  if (type == "f32") return arithmetic_atomic<float>(op);
  if (type == "f64") return arithmetic_atomic<double>(op);
  if (type == "s32" && op != Atomic::inc && op != Atomic::dec) return arithmetic_atomic<s32>(op);
  if (type == "s64") return arithmetic_atomic<s64>(op);
  if (type == "b32") return bit_atomic<u32>(op);
  if (type == "b64") return bit_atomic<u64>(op);
  return nullptr;
}

// The bytes are read now and appear at the wait, as late as a program may rely on; until then there is nothing to read.
void copy_async(Warp& warp, const Instruction& in, u32 mask) {
  Run& run = *warp.run;
  for (u32 m = mask; m != 0; m &= m - 1) {
    const int l = first_lane(m);
    const u64 base = in.a == kNoSlot ? 0 : in.address64 ? lanes<u64>(warp, in.a)[l] : u64{lanes<u32>(warp, in.a)[l]};
    PendingCopy copy;
    copy.lane = l;
    copy.group = warp.copy_groups[l];
    copy.size = in.size;
    copy.destination = base + static_cast<u64>(in.offset2);
    const u32 available = in.c == kNoSlot ? in.size : std::min<u32>(lanes<u32>(warp, in.c)[l], in.size);
    const u64 source = lanes<u64>(warp, in.b)[l] + static_cast<u64>(in.offset);
    if (source % in.size != 0) stop(warp, in, l, Fault::misaligned, "cp.async: misaligned source");
    if (available != 0) {
      // Fewer bytes than the copy's size are still read where they lie: one by one, for the check of bounds.
      if (available == in.size)
        std::memcpy(copy.data, resolve(warp, in, l, source, in.size, Checks::Access::read, Space::global), in.size);
      else
        for (u32 i = 0; i < available; ++i)
          copy.data[i] = *resolve(warp, in, l, source + i, 1, Checks::Access::read, Space::global);
    }
    u8* p = resolve(warp, in, l, copy.destination, in.size, Checks::Access::write, Space::shared);
    std::fill_n(p, in.size, u8{0xff});
    if (run.options.check_initialised)
      std::fill_n(run.checks.shared_written().begin() + static_cast<std::ptrdiff_t>(copy.destination), in.size, u8{0});
    warp.copies.push_back(copy);
  }
}

void copy_commit(Warp& warp, const Instruction&, u32 mask) {
  for (int l = 0; l < kLanes; ++l) warp.copy_groups[l] += has(mask, l);
}

void copy_wait(Warp& warp, const Instruction& in, u32 mask) {
  if (in.mode == 1) copy_commit(warp, in, mask);
  Block& block = *warp.block;
  std::erase_if(warp.copies, [&](const PendingCopy& copy) {
    if (!has(mask, copy.lane) || copy.group + static_cast<u64>(in.offset) >= warp.copy_groups[copy.lane]) return false;
    std::copy_n(copy.data, copy.size, block.shared.begin() + static_cast<std::ptrdiff_t>(copy.destination));
    if (warp.run->options.check_initialised)
      std::fill_n(warp.run->checks.shared_written().begin() + static_cast<std::ptrdiff_t>(copy.destination), copy.size,
                  u8{1});
    return true;
  });
}

void fence(Warp& warp, const Instruction&, u32) { warp.run->checks.fence(); }

}  // namespace sg::ptx
