#include "core/tensor.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "core/variable.h"

namespace sg {
namespace {

template <class F>
decltype(auto) with_type(DType t, F f) {
  switch (t) {
    case DType::f32:
      return f(float{});
    case DType::f64:
      return f(double{});
    case DType::i32:
      return f(std::int32_t{});
    case DType::bf16:
      return f(BFloat16{});
  }
  internal_error("with_type", fmt::format("no element type {}", static_cast<int>(t)), Loc::current());
}

// Of a large block the whole pages are handed back to the system, which gives them again as zeros when they are first
// touched: zeros that nobody touches take no memory.
void fill_with_zeros(std::byte* p, std::size_t bytes) {
  constexpr std::size_t kLarge = std::size_t{4} << 20;
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t head = (page - reinterpret_cast<std::uintptr_t>(p) % page) % page;
  const std::size_t middle = bytes < kLarge ? 0 : (bytes - head) / page * page;
  if (middle == 0 || madvise(p + head, middle, MADV_DONTNEED) != 0) {
    std::memset(p, 0, bytes);
    return;
  }
  std::memset(p, 0, head);
  std::memset(p + head + middle, 0, bytes - head - middle);
}

}  // namespace

void AlignedDelete::operator()(std::byte* p) const { std::free(p); }

AlignedBytes allocate_aligned(std::size_t bytes, bool zeroed) {
  const std::size_t rounded = (std::max<std::size_t>(bytes, 1) + 63) / 64 * 64;
  auto* p = static_cast<std::byte*>(std::aligned_alloc(64, rounded));
  if (p == nullptr) fail(ErrorKind::backend, "out of memory: {} bytes were asked for", rounded);
  if (zeroed) fill_with_zeros(p, rounded);
  return AlignedBytes(p);
}

Tensor::Tensor(TensorType type) : type_(type), data_(allocate_aligned(type.bytes(), true)) {}

Tensor::Tensor(const Tensor& other) : type_(other.type_), data_(allocate_aligned(other.bytes())) {
  std::memcpy(data_.get(), other.data_.get(), bytes());
}

Tensor& Tensor::operator=(const Tensor& other) {
  if (this != &other) *this = Tensor(other);
  return *this;
}

Tensor Tensor::full(TensorType type, double value) {
  Tensor t(type);
  for (std::int64_t i = 0; i < t.elements(); ++i) t.set(i, value);
  return t;
}

void Tensor::check_dtype(DType wanted) const {
  if (dtype() != wanted)
    fail(ErrorKind::dtype, "Tensor: asked for {} elements of a tensor of type {}", sg::to_string(wanted),
         sg::to_string(type_));
}

double Tensor::at(std::int64_t i) const {
  SG_CHECK(i >= 0 && i < elements(), "index {} of {}", i, sg::to_string(type_));
  return with_type(
      dtype(), [&](auto zero) { return static_cast<double>(reinterpret_cast<const decltype(zero)*>(data_.get())[i]); });
}

void Tensor::set(std::int64_t i, double value) {
  SG_CHECK(i >= 0 && i < elements(), "index {} of {}", i, sg::to_string(type_));
  with_type(dtype(),
            [&](auto zero) { reinterpret_cast<decltype(zero)*>(data_.get())[i] = static_cast<decltype(zero)>(value); });
}

double Tensor::item() const {
  if (elements() != 1)
    fail(ErrorKind::shape, "Tensor::item: {} has {} elements, 1 is needed", sg::to_string(type_), elements());
  return at(0);
}

Tensor Tensor::cast(DType to) const {
  Tensor t({to, shape()});
  for (std::int64_t i = 0; i < elements(); ++i) t.set(i, at(i));
  return t;
}

Tensor Tensor::reshaped(Shape shape) const {
  if (shape.elements() != elements())
    fail(ErrorKind::shape, "Tensor::reshaped: {} has {} elements, {} has {}", sg::to_string(type_), elements(),
         sg::to_string(shape), shape.elements());
  Tensor t(*this);
  t.type_.shape = shape;
  return t;
}

}  // namespace sg
