// NumPy's .npy files: dense arrays of i32, f32 or f64 in C order, versions 1 to 3 of the format.
#pragma once
#include <filesystem>

#include "core/tensor.h"

namespace sg::tools {

// Rank <= 6. int64 files are read as i32 where every value fits. Error{io} naming the file and what is wrong: missing,
// not .npy, truncated, longer than its header says, Fortran order, another element type or byte order.
Tensor read_npy(const std::filesystem::path& path);

// Version 1.0, little endian, written atomically. Error{io}.
void write_npy(const std::filesystem::path& path, const Tensor& value);

}  // namespace sg::tools
