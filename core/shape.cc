#include "core/shape.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"

namespace sg {

Shape::Shape(std::initializer_list<std::int64_t> dims)
    : Shape(std::span<const std::int64_t>(dims.begin(), dims.size())) {}

Shape::Shape(std::span<const std::int64_t> dims) {
  if (dims.size() > kMaxRank)
    fail(ErrorKind::shape, "shape [{}] has {} axes; at most {} are supported", fmt::join(dims, ","), dims.size(),
         kMaxRank);
  std::int64_t count = 1;
  for (std::int64_t d : dims) {
    if (d < 0) fail(ErrorKind::shape, "shape [{}] has a negative extent", fmt::join(dims, ","));
    if (__builtin_mul_overflow(count, d, &count) || count > (std::int64_t{1} << 48))
      fail(ErrorKind::shape, "shape [{}] has more elements than can be addressed", fmt::join(dims, ","));
  }
  std::copy(dims.begin(), dims.end(), dims_.begin());
  rank_ = static_cast<int>(dims.size());
}

std::int64_t Shape::elements() const {
  std::int64_t n = 1;
  for (std::int64_t d : dims()) n *= d;
  return n;
}

Shape Shape::with(int axis, std::int64_t extent) const {
  Shape s = *this;
  s.dims_[static_cast<std::size_t>(axis < 0 ? axis + rank_ : axis)] = extent;
  return s;
}

std::string to_string(const Shape& s) { return fmt::format("[{}]", fmt::join(s.dims(), ",")); }
std::string to_string(const TensorType& t) { return fmt::format("{}{}", to_string(t.dtype), to_string(t.shape)); }

Shape broadcast_shapes(const Shape& a, const Shape& b) {
  const int rank = std::max(a.rank(), b.rank());
  std::vector<std::int64_t> dims(static_cast<std::size_t>(rank));
  for (int i = 1; i <= rank; ++i) {
    const std::int64_t x = i <= a.rank() ? a[-i] : 1, y = i <= b.rank() ? b[-i] : 1;
    if (x != y && x != 1 && y != 1)
      fail(ErrorKind::shape, "shapes {} and {} do not broadcast: extents {} and {} at axis {} from the end",
           to_string(a), to_string(b), x, y, i);
    dims[static_cast<std::size_t>(rank - i)] = x == 1 ? y : x;
  }
  return Shape(dims);
}

}  // namespace sg
