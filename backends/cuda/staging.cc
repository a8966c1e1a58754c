#include "backends/cuda/staging.h"

#include <algorithm>
#include <cstring>

namespace sg::cuda {

StagingRing::~StagingRing() {
  const DriverApi& driver = device_.driver();
  for (const Flight& flight : flights_) driver.cuEventDestroy_(flight.arrived);
  for (const CUevent event : spare_) driver.cuEventDestroy_(event);
  if (ring_ != nullptr) driver.cuMemFreeHost_(ring_);
}

void StagingRing::open() {
  void* memory = nullptr;
  device_.check(device_.driver().cuMemHostAlloc_(&memory, kBytes, 0), "cuMemHostAlloc");
  ring_ = static_cast<std::byte*>(memory);
}

bool StagingRing::land_oldest(bool wait) {
  const CUevent event = flights_.front().arrived;
  if (wait) {
    device_.check(device_.driver().cuEventSynchronize_(event), "cuEventSynchronize");
  } else {
    const CUresult r = device_.driver().cuEventQuery_(event);
    if (r == CUDA_ERROR_NOT_READY) return false;
    device_.check(r, "cuEventQuery");
  }
  spare_.push_back(event);
  flights_.pop_front();
  return true;
}

int StagingRing::upload(CUdeviceptr dst, const std::byte* src, std::size_t bytes) {
  const DriverApi& driver = device_.driver();
  if (ring_ == nullptr) open();
  int waits = 0;
  while (bytes > 0) {
    const std::size_t piece = std::min(bytes, kLargestPiece);
    if (head_ + piece > kBytes) head_ = 0;
    const std::size_t end = head_ + piece;
    while (!flights_.empty() && land_oldest(false)) {
    }
    const auto in_the_way = [&](const Flight& f) { return f.begin < end && head_ < f.end; };
    while (std::any_of(flights_.begin(), flights_.end(), in_the_way)) {
      land_oldest(true);
      ++waits;
    }
    std::memcpy(ring_ + head_, src, piece);
    device_.check(driver.cuMemcpyHtoDAsync_(dst, ring_ + head_, piece, device_.stream()), "cuMemcpyHtoDAsync");
    CUevent event = nullptr;
    if (spare_.empty()) {
      device_.check(driver.cuEventCreate_(&event, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    } else {
      event = spare_.back();
      spare_.pop_back();
    }
    flights_.push_back({head_, end, event});
    device_.check(driver.cuEventRecord_(event, device_.stream()), "cuEventRecord");
    head_ = (end + 255) / 256 * 256;
    dst += piece;
    src += piece;
    bytes -= piece;
  }
  return waits;
}

}  // namespace sg::cuda
