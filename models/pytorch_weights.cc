#include "models/pytorch_weights.h"

#include "core/error.h"

namespace sg {

const Tensor& required_tensor(const StateFile& file, const std::filesystem::path& path, const std::string& name,
                              const Shape& shape) {
  const Tensor* t = file.find(name);
  if (t == nullptr) fail(ErrorKind::io, "{} has no tensor '{}' {}", path.string(), name, to_string(shape));
  if (t->dtype() != DType::f32 || t->shape() != shape)
    fail(ErrorKind::io, "{}: tensor '{}' is {}, expected f32{}", path.string(), name, to_string(t->type()),
         to_string(shape));
  return *t;
}

Tensor from_oihw(const Tensor& w) {
  const std::int64_t o = w.shape()[0], i = w.shape()[1], kh = w.shape()[2], kw = w.shape()[3];
  Tensor out({DType::f32, {kh, kw, i, o}});
  const auto from = w.span<float>();
  const auto to = out.span<float>();
  std::size_t at = 0;
  for (std::int64_t y = 0; y < kh; ++y)
    for (std::int64_t x = 0; x < kw; ++x)
      for (std::int64_t c = 0; c < i; ++c)
        for (std::int64_t k = 0; k < o; ++k) to[at++] = from[static_cast<std::size_t>(((k * i + c) * kh + y) * kw + x)];
  return out;
}

}  // namespace sg
