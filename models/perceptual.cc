#include "models/perceptual.h"

#include <cmath>

#include "models/classifier.h"
#include "models/pytorch_weights.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr double kNormEps = 1e-10;

// Number within torchvision's `features`, outputs, and whether the feature maps compared end here: each such layer but
// the last is followed by a pooling.
struct VggLayer {
  int number;
  std::int64_t channels;
  bool ends_slice;
};
constexpr VggLayer kVgg16[] = {{0, 64, false},   {2, 64, true},    {5, 128, false},  {7, 128, true},   {10, 256, false},
                               {12, 256, false}, {14, 256, true},  {17, 512, false}, {19, 512, false}, {21, 512, true},
                               {24, 512, false}, {26, 512, false}, {28, 512, true}};
constexpr std::array<std::int64_t, 5> kSlices = {64, 128, 256, 512, 512};

// Maxima of 2 x 2 windows; an odd last row or column is left out, as PyTorch's MaxPool2d(2) does.
Value max_pool(Value x) {
  const std::int64_t n = x.shape()[0], h = x.shape()[1] / 2, w = x.shape()[2] / 2, c = x.shape()[3];
  const Value even = slice(x, {0, 0, 0, 0}, {n, 2 * h, 2 * w, c});
  return max(reshape(even, {n, h, 2, w, 2, c}), {2, 4});
}

}  // namespace

Value unit_channels(Operand x) {
  const Loc loc = x.loc();
  const auto at = [loc](Value v) { return Operand(v, loc); };
  const Value squared = sum(at(square(x)), {-1}, true);
  const Value some = greater(at(squared), Operand(0.0, loc));
  const Value length = sqrt(at(where(at(some), at(squared), Operand(1.0, loc))));
  return where(at(some), at(x / at(at(length) + Operand(kNormEps, loc))), Operand(0.0, loc));
}

Value PerceptualDistance::operator()(Value x, Value y) const {
  if (!features) fail(ErrorKind::usage, "perceptual distance: there is none to compute");
  if (x.shape() != y.shape())
    fail(ErrorKind::shape, "perceptual distance: images are {} and {}", to_string(x.type()), to_string(y.type()));
  const Scope scope(*x.tape, "perceptual");
  const std::vector<Value> fx = features(x), fy = features(y);
  if (fx.empty() || (!weights.empty() && weights.size() != fx.size()))
    fail(ErrorKind::usage, "perceptual distance ({}): {} layers of features, weights for {}", description, fx.size(),
         weights.size());
  Value total;
  for (std::size_t l = 0; l < fx.size(); ++l) {
    Value squares = square(unit_channels(fx[l]) - unit_channels(fy[l]));
    if (!weights.empty()) squares = squares * x.tape->constant(weights[l]);
    const Value layer = mean(sum(squares, {-1}), {1, 2});
    total = total ? total + layer : layer;
  }
  return total;
}

Vgg16Features::Vgg16Features(const std::filesystem::path& weights) {
  const StateFile file = load_safetensors(weights);
  std::int64_t in = 3;
  for (const VggLayer& layer : kVgg16) {
    const std::string name = fmt::format("features.{}", layer.number), own = fmt::format("conv{}", layer.number);
    const Tensor& w = required_tensor(file, weights, name + ".weight", {layer.channels, in, 3, 3});
    const Tensor& b = required_tensor(file, weights, name + ".bias", {layer.channels});
    layers_.push_back({&add_state(own + "_weight", from_oihw(w)), &add_state(own + "_bias", b)});
    in = layer.channels;
  }
}

std::vector<Value> Vgg16Features::operator()(Value images) const {
  Tape& tape = *images.tape;
  const Shape s = images.shape();
  if (s.rank() != 4 || (s[3] != 1 && s[3] != 3) || s[1] < kSmallest || s[2] < kSmallest)
    fail(ErrorKind::shape, "VGG16: images are {}, expected (N,H,W,1 or 3) of at least {} x {}",
         to_string(images.type()), kSmallest, kSmallest);
  const Scope scope(tape, "vgg16");
  const Value shift = tape.constant(Tensor::of<float>({3}, {-.030f, -.088f, -.188f}));
  const Value scale = tape.constant(Tensor::of<float>({3}, {.458f, .448f, .450f}));
  Value h = (images - shift) / scale;  // a grey image is broadcast to the three channels
  std::vector<Value> slices;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    if (i > 0 && kVgg16[i - 1].ends_slice) h = max_pool(h);
    h = relu(conv2d(h, tape.read(*layers_[i].weight), ConvOptions::square(1, 1)) + tape.read(*layers_[i].bias));
    if (kVgg16[i].ends_slice) slices.push_back(h);
  }
  return slices;
}

std::vector<Tensor> load_lpips_weights(const std::filesystem::path& path) {
  const StateFile file = load_safetensors(path);
  std::vector<Tensor> weights;
  for (std::size_t l = 0; l < kSlices.size(); ++l) {
    const std::string name = fmt::format("lin{}.model.1.weight", l);
    Tensor flat = required_tensor(file, path, name, {1, kSlices[l], 1, 1}).reshaped({kSlices[l]});
    for (const float w : flat.span<float>())
      if (!(w >= 0))
        fail(ErrorKind::io, "{}: tensor '{}' holds {}; weights of LPIPS are not negative", path.string(), name, w);
    weights.push_back(std::move(flat));
  }
  return weights;
}

PerceptualDistance vgg16_distance(const std::filesystem::path& weights, const std::filesystem::path& lin) {
  PerceptualDistance d;
  const auto net = std::make_shared<Vgg16Features>(weights);
  d.features = [net](Value images) { return (*net)(images); };
  if (!lin.empty()) d.weights = load_lpips_weights(lin);
  d.description = fmt::format("LPIPS (VGG16 of {}, {})", weights.string(),
                              lin.empty() ? std::string("all weights 1") : "weights of " + lin.string());
  return d;
}

PerceptualDistance classifier_distance(std::shared_ptr<const Classifier> classifier, std::string_view name) {
  PerceptualDistance d;
  d.description = fmt::format("features of our own classifier ({}), not LPIPS", name);
  d.features = [c = std::move(classifier)](Value images) { return c->features(0.5 * images + 0.5); };
  return d;
}

}  // namespace sg
