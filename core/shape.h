// Shape: up to six extents, stored inline. TensorType: an element type and a shape.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace sg {

class Shape {
 public:
  static constexpr int kMaxRank = 6;

  Shape() = default;                                  // rank 0: a scalar, one element
  Shape(std::initializer_list<std::int64_t> dims);    // Error{shape} on rank > 6 or a negative extent
  explicit Shape(std::span<const std::int64_t> dims);
  explicit Shape(const std::vector<std::int64_t>& dims) : Shape(std::span<const std::int64_t>(dims)) {}

  int rank() const { return rank_; }
  std::int64_t operator[](int i) const { return dims_[static_cast<std::size_t>(i < 0 ? i + rank_ : i)]; }
  std::int64_t elements() const;                      // product of the extents; 1 for a scalar
  std::span<const std::int64_t> dims() const { return {dims_.data(), static_cast<std::size_t>(rank_)}; }
  std::vector<std::int64_t> vec() const { return {dims().begin(), dims().end()}; }
  auto begin() const { return dims().begin(); }
  auto end() const { return dims().end(); }
  Shape with(int axis, std::int64_t extent) const;    // a copy with one extent changed
  bool operator==(const Shape&) const = default;      // unused extents stay 0, so member-wise equality is right

 private:
  std::array<std::int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

std::string to_string(const Shape&);  // "[2,3]", "[]"

// NumPy broadcasting of two shapes. Error{shape} naming both where they do not fit.
Shape broadcast_shapes(const Shape& a, const Shape& b);

struct TensorType {
  DType dtype = DType::f32;
  Shape shape;
  std::size_t bytes() const { return static_cast<std::size_t>(shape.elements()) * size_of(dtype); }
  bool operator==(const TensorType&) const = default;
};

std::string to_string(const TensorType&);  // "f32[2,3]"

}  // namespace sg
