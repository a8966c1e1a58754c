// A perceptual distance between images: how far apart a fixed network's features are, in the form of LPIPS (Zhang et
// al. 1801.03924). The network is any function of the images; what it is decides what the numbers mean, so a distance
// carries a description, and whatever prints its values prints that, too.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/tape.h"
#include "models/module.h"

namespace sg {

class Classifier;

// Images (N,H,W,C) in [-1,1] -> feature maps (N,H_l,W_l,C_l) of some layers l.
using FeatureNet = std::function<std::vector<Value>(Value images)>;

struct PerceptualDistance {
  std::string description = "none";  // "LPIPS (VGG16 of vgg.safetensors)", "features of our classifier runs/c"
  FeatureNet features;               // empty: there is no distance
  std::vector<Tensor> weights;       // f32 (C_l) for each layer, not negative; empty: 1 everywhere
  explicit operator bool() const { return static_cast<bool>(features); }

  // d(x,y) = sum_l mean_hw sum_c w_lc (x^_lhwc - y^_lhwc)^2, x^ = unit_channels(features of x): (N,H,W,C) -> (N).
  // Error{usage}: there is none, or weights and layers disagree. Error{shape}: images of two shapes.
  Value operator()(Value x, Value y) const;
};

// x / (|x| + 1e-10) with |x| the length over the last axis: LPIPS' normalisation. A vector of zeros stays one and
// passes no gradient, where PyTorch's formula gives NaN.
Value unit_channels(Operand x);

// The features of VGG16 (1409.1556) that LPIPS compares: the outputs of relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3,
// of 64, 128, 256, 512 and 512 channels. The weights come from a safetensors file with torchvision's names and layout:
// "features.N.weight" (O,I,3,3) and "features.N.bias" (O) for N = 0 2 5 7 10 12 14 17 19 21 24 26 28; other tensors,
// the classifier's, are not looked at. Grey images are given to all three channels. Images are shifted and scaled as
// LPIPS does: (x - (-.030, -.088, -.188)) / (.458, .448, .450).
class Vgg16Features : public Module {
 public:
  static constexpr std::int64_t kSmallest = 16;  // images of fewer pixels a side vanish in the four poolings
  // Error{io}: unreadable, or a tensor that is missing or of another shape.
  explicit Vgg16Features(const std::filesystem::path& weights);
  std::vector<Value> operator()(Value images) const;  // (N,H,W,1 or 3); Error{shape}

 private:
  struct Layer {
    Variable *weight, *bias;
  };
  std::vector<Layer> layers_;
};

// LPIPS' weights of the five layers: tensors "lin0.model.1.weight" ... "lin4.model.1.weight" (1,C,1,1) of a safetensors
// file. Error{io}: missing, of another shape, or negative.
std::vector<Tensor> load_lpips_weights(const std::filesystem::path& path);

// LPIPS on the features of a VGG16 file; `lin` may be empty: all weights are 1, and the description says so.
PerceptualDistance vgg16_distance(const std::filesystem::path& weights, const std::filesystem::path& lin = {});

// The distance on the feature maps of our own classifier, all weights 1: a declared substitute for LPIPS, whose numbers
// are comparable with nothing but themselves. `name`: which classifier, for the description. The step that uses it must
// not train the classifier: its parameters are read, and no optimizer has them.
PerceptualDistance classifier_distance(std::shared_ptr<const Classifier> classifier, std::string_view name);

}  // namespace sg
