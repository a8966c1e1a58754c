// Weights of networks that others trained, from safetensors files with PyTorch's names and layouts.
#pragma once
#include <filesystem>
#include <string>

#include "core/safetensors.h"

namespace sg {

// The tensor `name`, f32 of this shape. Error{io}: it is missing, or another.
const Tensor& required_tensor(const StateFile& file, const std::filesystem::path& path, const std::string& name,
                              const Shape& shape);

// A convolution's weight (O,I,KH,KW) as ours, (KH,KW,I,O).
Tensor from_oihw(const Tensor& weight);

}  // namespace sg
