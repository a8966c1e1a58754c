#include "models/image_metrics.h"

#include <cmath>

#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr double kDeviation = 1.5, kC1 = 0.01 * 0.01, kC2 = 0.03 * 0.03;

// One axis of the window: the two-dimensional Gaussian is a product of two of these.
Tensor gaussian(DType dtype, Shape shape) {
  Tensor w({dtype, shape});
  double total = 0;
  const auto weight = [](std::int64_t i) {
    const double at = static_cast<double>(i - kSsimWindow / 2) / kDeviation;
    return std::exp(-0.5 * at * at);
  };
  for (std::int64_t i = 0; i < kSsimWindow; ++i) total += weight(i);
  for (std::int64_t i = 0; i < kSsimWindow; ++i) w.set(i, weight(i) / total);
  return w;
}

void check_images(const char* who, const Value& x, const Value& y) {
  if (x.shape().rank() != 4 || x.shape() != y.shape())
    fail(ErrorKind::shape, "{}: two batches of images (N,H,W,C) of one shape are compared, got {} and {}", who,
         to_string(x.shape()), to_string(y.shape()));
}

Value mean_of_image(Operand x) { return mean(x, {1, 2, 3}); }

}  // namespace

Value structural_similarity(Operand x, Operand y) {
  const Value a = x.value(), b = y.value();
  check_images("structural_similarity", a, b);
  const std::int64_t n = a.shape()[0], h = a.shape()[1], w = a.shape()[2], c = a.shape()[3];
  if (h < kSsimWindow || w < kSsimWindow)
    fail(ErrorKind::shape, "structural_similarity: images of {} x {} hold no window of {} x {}", h, w, kSsimWindow,
         kSsimWindow);
  const auto at = [&x](Value v) { return Operand(v, x.loc()); };
  Tape& tape = *a.tape;
  // Channels are images of their own; the five averages are one convolution, first along columns, then along rows.
  const auto planes = [&](Operand v) { return reshape(at(transpose(v, {0, 3, 1, 2})), {n * c, h, w, 1}); };
  const Value p = planes(x), q = planes(Operand(b, x.loc()));
  Value maps = concat({p, q, at(p) * at(p), at(q) * at(q), at(p) * at(q)}, 0, x.loc());
  maps = conv2d(at(maps), at(tape.constant(gaussian(a.dtype(), {kSsimWindow, 1, 1, 1}), x.loc())));
  maps = conv2d(at(maps), at(tape.constant(gaussian(a.dtype(), {1, kSsimWindow, 1, 1}), x.loc())));
  const auto part = [&](std::int64_t i) { return at(slice_axis(at(maps), 0, i * n * c, (i + 1) * n * c)); };
  const Operand mx = part(0), my = part(1);
  const Operand mxx = at(mx * mx), myy = at(my * my), mxy = at(mx * my);
  const Operand vx = at(part(2) - mxx), vy = at(part(3) - myy), vxy = at(part(4) - mxy);
  const Operand above = at(at(at(2.0 * mxy) + kC1) * at(at(2.0 * vxy) + kC2));
  const Operand below = at(at(at(mxx + myy) + kC1) * at(at(vx + vy) + kC2));
  const Value index = above / below;
  return mean(at(reshape(at(index), {n, -1})), {1});
}

Value image_squared_error(Operand x, Operand y) {
  check_images("image_squared_error", x.value(), y.value());
  return mean_of_image(Operand(square(Operand(x - y, x.loc())), x.loc()));
}

Value image_absolute_error(Operand x, Operand y) {
  check_images("image_absolute_error", x.value(), y.value());
  return mean_of_image(Operand(abs(Operand(x - y, x.loc())), x.loc()));
}

Value as_stored(Operand images) {
  const Operand levels(255.0 * Operand(clamp(images, 0, 1), images.loc()), images.loc());
  return Operand(round(levels), images.loc()) / 255.0;
}

}  // namespace sg
