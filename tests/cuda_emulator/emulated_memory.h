// Memory of the emulated device: one reserved range of addresses, closed to the host except while emulated work runs.
// Addresses are not used twice, so that a pointer to freed memory stays wrong. Pinned host memory is the host's as well
// as the device's.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tests/cuda_emulator/ptx/machine.h"

namespace sg::cuda::emulated {

class DeviceMemory final : public ptx::Memory {
 public:
  DeviceMemory();

  // 0 where it would exceed the limit. Filled with 0xFF; tracked: reads of what nobody wrote can be told.
  std::uint64_t allocate(std::size_t bytes, std::size_t limit, bool tracked);
  bool release(std::uint64_t base);  // false where base is not the start of an allocation
  void release_all();                // of the device, not what is pinned
  void* allocate_pinned(std::size_t bytes);
  bool release_pinned(void* p);

  // Whether [p, p + bytes) is inside one live allocation of the device.
  bool holds(std::uint64_t p, std::size_t bytes) const;
  bool pinned(const void* p, std::size_t bytes) const;
  std::size_t live_bytes() const { return live_bytes_; }
  std::size_t live_allocations() const { return blocks_.size(); }

  // Bookkeeping of what was written. `copied` takes it along from src to dst, which do not overlap.
  void mark_written(std::uint64_t p, std::size_t bytes);
  void copied(std::uint64_t dst, std::uint64_t src, std::size_t bytes);
  bool all_written(std::uint64_t p, std::size_t bytes) const;
  void stop_tracking();  // what was not written so far counts as written from now on

  // Opens the range to the host while it lives; nests.
  class Open {
   public:
    explicit Open(DeviceMemory& memory);
    ~Open();
    Open(const Open&) = delete;
    Open& operator=(const Open&) = delete;

   private:
    DeviceMemory& memory_;
  };

  bool find(std::uint64_t p, std::uint64_t& base, std::uint64_t& size) const override;
  std::uint8_t* written(std::uint64_t base) override;

 private:
  struct Block {
    std::size_t bytes = 0;
    std::vector<std::uint8_t> written;  // empty where it is not tracked
  };
  using Blocks = std::map<std::uint64_t, Block>;
  static Blocks::const_iterator holding(const Blocks& blocks, std::uint64_t p, std::size_t bytes);
  void protect(int protection) const;
  static void change(unsigned char* first, std::size_t bytes, int protection);

  unsigned char* range_ = nullptr;
  std::size_t next_ = 0;  // offset of the first byte that was never given out
  std::size_t live_bytes_ = 0;
  Blocks blocks_, pinned_;
  int open_ = 0;
};

}  // namespace sg::cuda::emulated
