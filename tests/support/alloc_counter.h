// Counts heap allocations of this process while one counter lives: malloc and friends, and so operator new. Those made
// inside oneDNN and the OpenMP runtime are counted apart: they are not the framework's to avoid.
#pragma once
#include <cstdint>

namespace sg::test {

class AllocCounter {
 public:
  AllocCounter();
  ~AllocCounter();
  AllocCounter(const AllocCounter&) = delete;
  AllocCounter& operator=(const AllocCounter&) = delete;

  std::int64_t framework() const;  // since construction
  std::int64_t libraries() const;  // oneDNN, OpenMP
  static bool available();         // false under sanitizers, which replace malloc themselves
};

}  // namespace sg::test
