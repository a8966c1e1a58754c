// Which kernels nearest_code runs. Both give the same indices.
#pragma once
#include <cstdint>
#include <optional>

namespace sg::cuda {

enum class NearestKernel : std::uint8_t {
  exact,     // kernels/nearest.cu: all products in the type of the rows
  screened,  // kernels/nearest_tensor.cu: tf32 tensor cores rule out most codes, the rest are compared exactly
};

// For n rows and k codes of d elements in f32 or bf16 (f64 is always exact).
NearestKernel nearest_kernel(std::int64_t n, std::int64_t k, std::int64_t d);
// For tests: what nearest_kernel() answers for programs compiled from now on, until it is reset.
void force_nearest_kernel(std::optional<NearestKernel> kernel);

}  // namespace sg::cuda
