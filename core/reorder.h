// Reordering: the same instructions in an order that keeps fewer bytes alive at once.
#pragma once
#include <functional>

#include "core/rewrite.h"

namespace sg {

using BytesFn = std::function<std::size_t(const TensorType&)>;

// Record order, but what frees at least as many bytes as it makes is done as soon as its operands are there (the
// gradient of a weight before the gradients of earlier layers). Dependencies are those of values alone. A null tape
// where the order stays. The caller decides whether the largest live set became smaller.
Rewritten reorder(const Tape& tape, std::span<const std::int32_t> keep, const BytesFn& bytes);

}  // namespace sg
