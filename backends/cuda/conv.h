// Convolutions on the cuda backend; see conv.cc.
#pragma once
#include <cstddef>

namespace sg::cuda {

// Bytes of the matrix of windows that a convolution compiled from now on may make at once, one image's at least; larger
// batches are done in slices. Returns what was in force. Tests set it low.
std::size_t set_most_columns(std::size_t bytes);

}  // namespace sg::cuda
