// Tensor: a dense, row-major array in host memory, 64-byte aligned, owned by value. It is how data enters and leaves
// a Program and how a Variable keeps its state; it takes no part in recording.
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "core/bfloat16.h"
#include "core/error.h"
#include "core/shape.h"

namespace sg {

// 64-byte-aligned heap memory. Zeroed where `zeroed`.
struct AlignedDelete { void operator()(std::byte* p) const; };
using AlignedBytes = std::unique_ptr<std::byte[], AlignedDelete>;
AlignedBytes allocate_aligned(std::size_t bytes, bool zeroed = false);

template <class T> constexpr DType dtype_of();
template <> constexpr DType dtype_of<float>() { return DType::f32; }
template <> constexpr DType dtype_of<double>() { return DType::f64; }
template <> constexpr DType dtype_of<std::int32_t>() { return DType::i32; }
template <> constexpr DType dtype_of<BFloat16>() { return DType::bf16; }

class Tensor {
 public:
  Tensor() : Tensor(TensorType{}) {}
  explicit Tensor(TensorType type);                              // zeros
  template <class T> static Tensor of(Shape shape, std::span<const T> values) {
    Tensor t({dtype_of<T>(), shape});
    if (static_cast<std::int64_t>(values.size()) != shape.elements())
      fail(ErrorKind::shape, "Tensor: {} values given for shape {}", values.size(), to_string(shape));
    std::copy(values.begin(), values.end(), t.span<T>().begin());
    return t;
  }
  template <class T> static Tensor of(Shape shape, std::initializer_list<T> values) {
    return of<T>(shape, std::span<const T>(values.begin(), values.size()));
  }
  static Tensor full(TensorType type, double value);

  Tensor(const Tensor&);
  Tensor& operator=(const Tensor&);
  Tensor(Tensor&&) noexcept = default;
  Tensor& operator=(Tensor&&) noexcept = default;

  const TensorType& type() const { return type_; }
  const Shape& shape() const { return type_.shape; }
  DType dtype() const { return type_.dtype; }
  std::int64_t elements() const { return type_.shape.elements(); }
  std::size_t bytes() const { return type_.bytes(); }
  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }

  // Typed view; Error{dtype} where T is not the tensor's own type.
  template <class T> std::span<T> span() { check_dtype(dtype_of<T>()); return {reinterpret_cast<T*>(data_.get()), size()}; }
  template <class T> std::span<const T> span() const {
    check_dtype(dtype_of<T>());
    return {reinterpret_cast<const T*>(data_.get()), size()};
  }
  double at(std::int64_t i) const;         // element i in row-major order, of any type, as a double
  void set(std::int64_t i, double value);
  double item() const;                     // the only element; Error{shape} where there is not exactly one
  Tensor cast(DType) const;                // another element type, values rounded
  Tensor reshaped(Shape) const;            // the same values under another shape of as many elements

 private:
  std::size_t size() const { return static_cast<std::size_t>(elements()); }
  void check_dtype(DType wanted) const;
  TensorType type_;
  AlignedBytes data_;
};

}  // namespace sg
