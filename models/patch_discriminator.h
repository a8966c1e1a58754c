// PatchGAN (Isola et al. 1611.07004, as VQ-GAN's reference code has it): a small convolutional net that gives each
// patch of an image a logit, high for patches that look real.
//   conv 4x4 s2 p1 (C -> ndf), leaky relu .2
//   layers - 1 times: conv 4x4 s2 p1 (-> ndf min(2^i, 8)) without bias, batch norm, leaky relu
//   conv 4x4 s1 p1 (-> ndf min(2^layers, 8)) without bias, batch norm, leaky relu
//   conv 4x4 s1 p1 (-> 1)
// Weights of convolutions start as N(0, .02^2), scales of the batch norms as N(1, .02^2).
#pragma once
#include <deque>
#include <vector>

#include "models/batch_norm.h"
#include "ops/conv.h"

namespace sg {

struct PatchDiscriminatorConfig {
  std::int64_t ndf = 64, layers = 3;
  bool operator==(const PatchDiscriminatorConfig&) const = default;
};

// Height and width of the map of logits for images of that size. Error{usage}: the images are too small for the layers.
std::array<std::int64_t, 2> patch_map_size(const PatchDiscriminatorConfig& config, std::int64_t height,
                                           std::int64_t width);

class PatchDiscriminator : public Module {
 public:
  PatchDiscriminator(Module& parent, std::string_view name, std::int64_t channels,
                     const PatchDiscriminatorConfig& config);
  Value operator()(Value images, const Pass& pass = {}) const;  // (N,H,W,C) -> logits (N,H',W',1): patch_map_size()

 private:
  struct Layer {
    ConvOptions options;
    Variable* weight;
    Variable* bias;  // null where a batch norm follows
  };
  void add_layer(std::int64_t in, std::int64_t out, std::int64_t stride, bool normalised);
  std::vector<Layer> convolutions_;
  std::deque<BatchNorm> norms_;  // of all convolutions but the first and the last
};

}  // namespace sg
