// Inception-v3 (Szegedy et al. 1512.00567) in the form that FID and IS are defined by: the 2015 TensorFlow graph, whose
// weights pytorch-fid and torch-fidelity carry over to PyTorch. It differs from torchvision's network in 1008 classes,
// in average poolings that leave padding out, and in a maximum pooling in the last block. No weights come with this
// repository.
#pragma once
#include <filesystem>
#include <map>
#include <string>

#include "core/safetensors.h"
#include "core/tape.h"
#include "models/module.h"

namespace sg {

class InceptionV3 : public Module {
 public:
  static constexpr std::int64_t kSide = 299;     // of the images that the network sees
  static constexpr std::int64_t kSmallest = 75;  // a side below which its maps vanish
  static constexpr std::int64_t kFeatures = 2048;
  static constexpr std::int64_t kClasses = 1008;

  // Tensors of a safetensors file with the names and layouts of pytorch-fid's and torch-fidelity's state dict:
  // "Conv2d_1a_3x3.conv.weight" (O,I,KH,KW) and ".bn.weight", ".bn.bias", ".bn.running_mean", ".bn.running_var" (O) of
  // each convolution, "fc.weight" (1008,2048); others are not looked at. Error{io}: one is missing or of another shape.
  explicit InceptionV3(const std::filesystem::path& weights) : InceptionV3(load_safetensors(weights), weights) {}
  InceptionV3(const StateFile& weights, const std::filesystem::path& name);

  // Images (N,H,W,1 or 3) in [0,1] as an 8-bit file holds them, of any size -> (N,2048), what pool3 gives: resized to
  // `side` as TensorFlow 1 does (resize_bilinear), grey ones given to all channels, (255 x - 128) / 128. Error{shape}.
  // A side other than kSide gives other numbers than FID's.
  Value pooled(Value images, std::int64_t side = kSide) const;
  // (N,2048) -> (N,1008): logits without the bias, from which IS is computed.
  Value logits_of(Value pooled) const;

 private:
  struct Conv {
    Variable *weight, *bias;
  };
  struct Loading;
  struct Recording;
  std::map<std::string, Conv> convs_;
  Variable* head_;
};

// (N,H,W,C) -> (N,height,width,C), bilinear between pixel corners that coincide at the top left, y_in = y_out H /
// height, and past the last pixel its value: TensorFlow 1's resize_bilinear with align_corners=False.
Value resize_bilinear(Value images, std::int64_t height, std::int64_t width);

}  // namespace sg
