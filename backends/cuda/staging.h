// Pinned host memory through which feeds reach the device: the caller's bytes are copied into the ring and leave it by
// a copy on the stream, so that the caller goes on at once. A region is used again once its copy is done.
#pragma once
#include <cstdint>
#include <deque>
#include <vector>

#include "backends/cuda/device.h"

namespace sg::cuda {

class StagingRing {
 public:
  static constexpr std::size_t kBytes = std::size_t{32} << 20;
  static constexpr std::size_t kLargestPiece = kBytes / 4;  // what is larger goes in pieces, so that copies overlap

  explicit StagingRing(Device& device) : device_(device) {}
  ~StagingRing();
  StagingRing(const StagingRing&) = delete;
  StagingRing& operator=(const StagingRing&) = delete;

  // Enqueues src -> dst on the device's stream. Returns how often it had to wait for a region that was still on its
  // way.
  int upload(CUdeviceptr dst, const std::byte* src, std::size_t bytes);

 private:
  struct Flight {  // a region whose copy is not known to be done; in the order of the stream
    std::size_t begin, end;
    CUevent arrived;
  };
  void open();
  bool land_oldest(bool wait);

  Device& device_;
  std::byte* ring_ = nullptr;
  std::size_t head_ = 0;
  std::deque<Flight> flights_;
  std::vector<CUevent> spare_;
};

}  // namespace sg::cuda
