#include "tests/cuda_emulator/ptx/checks.h"

#include <fmt/format.h>

#include <algorithm>

#include "tests/cuda_emulator/ptx/warp.h"

namespace sg::ptx {

void WarpOrder::join(u32 mask) {
  ++clock;
  for (int i = 0; i < kLanes; ++i)
    if (has(mask, i))
      for (int j = 0; j < kLanes; ++j)
        if (has(mask, j)) met[i][j] = clock;
}

void Checks::start_block(u32 serial, std::size_t shared_bytes) {
  serial_ = serial + 1;
  ++epoch_;
  fenced_ = false;
  acquired_.clear();
  shared_.resize(shared_bytes / kCellBytes + 4);  // cells of earlier blocks are told by their serial
  shared_written_.assign(shared_bytes, 0);
}

Cell* Checks::page(u64 p) {
  const u64 number = p / kCellBytes / kPageCells;
  if (number != last_page_) {
    auto& cells = pages_[number];
    if (!cells) cells = std::make_unique<Cell[]>(kPageCells);
    last_page_ = number;
    last_cells_ = cells.get();
  }
  return last_cells_ + p / kCellBytes % kPageCells;
}

// An atomic after a fence tells what the block wrote, and learns what those before it told.
void Checks::synchronise(u64 p) {
  if (!fenced_ && !released_.contains(p)) return;
  std::vector<bool>& told = released_[p];
  if (acquired_.size() < told.size()) acquired_.resize(told.size());
  for (std::size_t b = 0; b < told.size(); ++b)
    if (told[b]) acquired_[b] = true;
  if (!fenced_) return;
  if (told.size() <= serial_) told.resize(serial_ + 1);
  for (std::size_t b = 0; b < acquired_.size() && b < told.size(); ++b)
    if (acquired_[b]) told[b] = true;
  told[serial_] = true;
}

bool Checks::ordered(const Who& before, const Warp& warp, const Who& me, bool shared) const {
  if (before.block == 0) return true;
  if (before.block != me.block) return shared || (before.block < acquired_.size() && acquired_[before.block]);
  if (before.epoch != me.epoch) return true;
  if (before.warp != me.warp) return false;
  return before.lane == me.lane || warp.order.met[before.lane][me.lane] > before.clock;
}

void Checks::touch(Cell& cell, const Warp& warp, const Instruction& in, const Who& me, u8 bytes, Access how, u64 p,
                   bool shared) {
  const bool atomic = how == Access::atomic, write = how != Access::read;
  auto race = [&](const char* order, const Who& other) {
    const std::string who =
        other.block == me.block ? "the same block" : fmt::format("the block that ran as number {}", other.block);
    stop(warp, in, me.lane, Fault::race,
         fmt::format("{} race with thread {} of {} on {} {:#x}, nothing orders them", order,
                     other.warp * kLanes + other.lane, who, shared ? "shared memory offset" : "address", p));
  };
  if ((cell.written & bytes) && !(atomic && cell.atomic) && !ordered(cell.writer, warp, me, shared))
    race(write ? "write-after-write" : "read-after-write", cell.writer);
  if (shared && cell.reader.block != me.block) cell.reader = Who{};
  const bool current = cell.reader.block == me.block && cell.reader.epoch == me.epoch;
  if (write && !atomic && (cell.read & bytes) && cell.reader.block != 0) {
    if (current && cell.reader.warp == me.warp && !cell.many_warps) {
      for (int l = 0; l < kLanes; ++l) {
        Who one = cell.reader;
        one.lane = static_cast<u8>(l);
        if (has(cell.reader_lanes, l) && !ordered(one, warp, me, shared)) race("write-after-read", one);
      }
    } else if ((current && (cell.many_warps || cell.reader.warp != me.warp)) ||
               (!shared && (cell.many_blocks || !ordered(cell.reader, warp, me, false)))) {
      race("write-after-read", cell.reader);
    }
  }
  if (write) {
    const bool same = cell.writer.block == me.block && cell.writer.epoch == me.epoch && cell.writer.warp == me.warp &&
                      cell.writer.lane == me.lane;
    // An atomic on top of the thread's own plain write does not hide that from the others.
    const bool plain = !atomic || (same && !cell.atomic && (cell.written & bytes) != 0);
    cell.written = same ? static_cast<u8>(cell.written | bytes) : bytes;
    cell.writer = me;
    cell.atomic = !plain;
    return;
  }
  if (cell.reader.block != 0 && cell.reader.block != me.block) cell.many_blocks = true;
  cell.read = current || cell.many_blocks ? static_cast<u8>(cell.read | bytes) : bytes;
  if (!current) {
    cell.many_warps = false;
    cell.reader_lanes = 0;
  } else if (cell.reader.warp != me.warp) {
    cell.many_warps = true;
    cell.reader_lanes = 0;
  } else if (cell.reader.clock != me.clock) {
    for (int l = 0; l < kLanes; ++l)
      if (has(cell.reader_lanes, l) && warp.order.met[l][me.lane] > cell.reader.clock) cell.reader_lanes &= ~(1u << l);
  }
  cell.reader = me;
  cell.reader_lanes |= 1u << me.lane;
}

void Checks::access(const Warp& warp, const Instruction& in, int lane, u64 p, unsigned size, Access how, bool shared) {
  if (in.strong) {
    if (how == Access::read) return;
    how = Access::atomic;
  }
  if (how == Access::atomic && !shared) synchronise(p);
  Who me;
  me.block = serial_;
  me.epoch = epoch_;
  me.clock = warp.order.clock;
  me.warp = static_cast<u16>(warp.id);
  me.lane = static_cast<u8>(lane);
  for (u64 cell = p / kCellBytes * kCellBytes; cell < p + size; cell += kCellBytes) {
    const u64 from = std::max(cell, p) - cell, to = std::min(cell + kCellBytes, p + size) - cell;
    const u8 bytes = static_cast<u8>((1u << to) - (1u << from));
    touch(shared ? shared_[cell / kCellBytes] : *page(cell), warp, in, me, bytes, how, cell, shared);
  }
}

}  // namespace sg::ptx
