// The kernels that were compiled into this binary: one fatbin for each .cu file (cmake/cuda_kernels.cmake), with
// machine code for each architecture named there and PTX for newer ones.
#pragma once
#include <span>
#include <string_view>

namespace sg::cuda {

struct Image {
  std::string_view name;  // of the file, without .cu
  const unsigned char* begin;
  const unsigned char* end;
};

std::span<const Image> kernel_images();  // of backends/cuda/kernels

}  // namespace sg::cuda
