// Initial values of parameters, made on the host. Each tensor's numbers come from Philox keyed by (seed, variable
// name), so adding, removing or reordering layers leaves the initial values of all others as they were.
#pragma once
#include <cstdint>
#include <string_view>

#include "core/tensor.h"

namespace sg {

Tensor uniform_init(Shape shape, double lo, double hi, std::uint32_t seed, std::string_view name);  // f32, U[lo, hi)
Tensor normal_init(Shape shape, double mean, double deviation, std::uint32_t seed, std::string_view name);  // f32

// U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what PyTorch draws weights (kaiming_uniform with a = sqrt 5) and biases of linear
// and convolution layers from. fan_in is the number of inputs of one output; for a transposed convolution PyTorch takes
// output channels x kernel area instead, and so do our layers.
Tensor fan_in_uniform(Shape shape, std::int64_t fan_in, std::uint32_t seed, std::string_view name);

// While one lives, the functions above (of this thread) leave their tensors at zero: large ones take no memory then
// (allocate_aligned), and none takes time. For asking a model how large it is.
class ZeroInitialValues {
 public:
  ZeroInitialValues();
  ~ZeroInitialValues();
  ZeroInitialValues(const ZeroInitialValues&) = delete;
  ZeroInitialValues& operator=(const ZeroInitialValues&) = delete;

 private:
  bool before_;
};

// A generator of numbers for host-side algorithms (k-means): the same for the same (seed, name).
class HostRandom {
 public:
  HostRandom(std::uint32_t seed, std::string_view name);
  double uniform();                    // [0, 1), multiples of 2^-24
  double normal();                     // N(0, 1)
  std::int64_t below(std::int64_t n);  // an integer in [0, n)

 private:
  double next(bool gaussian);
  std::uint32_t seed_, stream_, step_;
  std::uint64_t drawn_ = 0;  // numbers taken so far
};

}  // namespace sg
