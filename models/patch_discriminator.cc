#include "models/patch_discriminator.h"

#include <algorithm>

#include "models/init.h"
#include "ops/elementwise.h"

namespace sg {
namespace {

constexpr std::int64_t kKernel = 4;
constexpr double kDeviation = 0.02, kSlope = 0.2;

}  // namespace

std::array<std::int64_t, 2> patch_map_size(const PatchDiscriminatorConfig& config, std::int64_t height,
                                           std::int64_t width) {
  const auto extent = [&](std::int64_t n) {
    for (std::int64_t i = 0; i < config.layers; ++i) n = n / 2;  // (n + 2 - 4) / 2 + 1
    return n - 2;                                                // two of stride 1
  };
  const std::array<std::int64_t, 2> size{extent(height), extent(width)};
  if (size[0] < 1 || size[1] < 1)
    fail(ErrorKind::usage,
         "discriminator: images of {} x {} leave no patch after {} layers of stride 2 and two of stride 1; take fewer "
         "layers",
         height, width, config.layers);
  return size;
}

PatchDiscriminator::PatchDiscriminator(Module& parent, std::string_view name, std::int64_t channels,
                                       const PatchDiscriminatorConfig& config)
    : Module(parent, name) {
  if (channels < 1 || config.ndf < 1 || config.layers < 1 || config.layers > 16)
    fail(ErrorKind::usage,
         "discriminator '{}': channels {}, ndf {} and layers {}: at least 1 is needed, and at most 16 layers", path(),
         channels, config.ndf, config.layers);
  const auto width = [&](std::int64_t i) { return config.ndf * std::min<std::int64_t>(std::int64_t{1} << i, 8); };
  add_layer(channels, width(0), 2, false);
  for (std::int64_t i = 1; i < config.layers; ++i) add_layer(width(i - 1), width(i), 2, true);
  add_layer(width(config.layers - 1), width(config.layers), 1, true);
  add_layer(width(config.layers), 1, 1, false);
}

void PatchDiscriminator::add_layer(std::int64_t in, std::int64_t out, std::int64_t stride, bool normalised) {
  const std::string number = std::to_string(convolutions_.size());
  const std::string weight = "conv" + number + "_weight", bias = "conv" + number + "_bias";
  const Shape shape{kKernel, kKernel, in, out};
  convolutions_.push_back(
      {ConvOptions::square(stride, 1),
       &add_parameter(weight, normal_init(shape, 0, kDeviation, seed(), full_name(weight))),
       normalised ? nullptr
                  : &add_parameter(bias, fan_in_uniform({out}, in * kKernel * kKernel, seed(), full_name(bias)))});
  if (!normalised) return;
  const std::string norm = "norm" + number;
  norms_.emplace_back(*this, norm, normal_init({out}, 1, kDeviation, seed(), full_name(norm)));
}

Value PatchDiscriminator::operator()(Value images, const Pass& pass) const {
  Tape& tape = *images.tape;
  const Scope scope(tape, name());
  Value h = images;
  for (std::size_t i = 0; i < convolutions_.size(); ++i) {
    const Layer& layer = convolutions_[i];
    h = conv2d(h, pass.read(tape, *layer.weight, Loc::current()), layer.options);
    if (layer.bias != nullptr)
      h = h + pass.read(tape, *layer.bias, Loc::current());
    else
      h = norms_[i - 1](h, pass);
    if (i + 1 < convolutions_.size()) h = leaky_relu(h, kSlope);
  }
  return h;
}

}  // namespace sg
