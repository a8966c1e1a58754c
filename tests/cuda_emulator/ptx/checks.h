// Race and initialisation checks: for each cell of shared and global memory who wrote and who read it last. A cell has two
// bytes: threads that work on neighbouring bf16 numbers share no cell.
// Two accesses of different threads, one of them a write and not both atomic, are a race unless something orders them:
// a barrier of the block, a bar.warp.sync that both lanes joined, or, between blocks, an atomic after a fence.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace sg::ptx {

struct Warp;
struct Instruction;

// Which lanes of a warp a bar.warp.sync has ordered: met[i][j] is the time when both last joined one.
struct WarpOrder {
  std::uint32_t clock = 1;
  std::uint32_t met[32][32] = {};
  void join(std::uint32_t mask);
};

struct Who {
  std::uint32_t block = 0;  // serial + 1; 0: nobody
  std::uint32_t epoch = 0;  // barriers of the launch so far
  std::uint32_t clock = 0;  // of its warp
  std::uint16_t warp = 0;
  std::uint8_t lane = 0;
};

struct Cell {                                    // of kCellBytes
  Who writer, reader;                            // the last ones
  std::uint32_t reader_lanes = 0;                // of reader's warp that are not ordered before the last
  std::uint8_t written = 0, read = 0;            // bytes
  bool atomic = false;                           // the write
  bool many_warps = false, many_blocks = false;  // readers of the epoch; of the launch
};

class Checks {
 public:
  void start_block(std::uint32_t serial, std::size_t shared_bytes);
  void barrier() { ++epoch_; }
  void fence() { fenced_ = true; }  // the block's writes so far are seen by whom its next atomic tells

  enum class Access : std::uint8_t { read, write, atomic };
  // Stops the launch where [p, p + size) races. `shared`: p is an offset in shared memory.
  void access(const Warp& warp, const Instruction& in, int lane, std::uint64_t p, unsigned size, Access how,
              bool shared);
  std::vector<std::uint8_t>& shared_written() { return shared_written_; }

 private:
  void touch(Cell& cell, const Warp& warp, const Instruction& in, const Who& me, std::uint8_t bytes, Access how,
             std::uint64_t p, bool shared);
  bool ordered(const Who& before, const Warp& warp, const Who& me, bool shared) const;
  void synchronise(std::uint64_t p);
  Cell* page(std::uint64_t p);

  static constexpr std::uint64_t kCellBytes = 2, kPageCells = 2048;
  std::uint32_t serial_ = 0, epoch_ = 1;
  bool fenced_ = false;
  std::vector<Cell> shared_;
  std::vector<std::uint8_t> shared_written_;
  std::unordered_map<std::uint64_t, std::unique_ptr<Cell[]>> pages_;
  std::uint64_t last_page_ = ~std::uint64_t{0};
  Cell* last_cells_ = nullptr;
  std::unordered_map<std::uint64_t, std::vector<bool>> released_;  // by address of the atomic: blocks
  std::vector<bool> acquired_;                                     // blocks whose writes this block may see
};

}  // namespace sg::ptx
