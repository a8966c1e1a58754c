// The autoencoder of VQ-GAN (Esser et al. 2012.09841, as its released code has it) at any width and depth. With levels
// l = 0 .. L-1 of ch * ch_mult[l] channels, each half the size of the one before:
//   encoder: conv 3x3, per level `res_blocks` residual blocks (attention after each at the lowest level) and, but for
//            the last, a pad of one at the bottom and at the right and conv 3x3 s2; residual block, attention, residual
//            block; group norm, swish, conv 3x3 (-> latent), quant_conv 1x1 (-> the quantizer's width)
//   decoder: post_quant_conv 1x1 (-> latent), conv 3x3, residual block, attention, residual block; per level from the
//            lowest `res_blocks` + 1 residual blocks (attention after each at the lowest level) and, but for level 0,
//            nearest x2 and conv 3x3; group norm, swish, conv 3x3 (-> C)
//   residual block: x + conv 3x3(swish(norm(conv 3x3(swish(norm(x)))))), x through a conv 1x1 where widths differ
//   attention: x + out(softmax(q k^T / sqrt(C)) v) over all places of the map, q, k, v and out linear in norm(x)
// Images are f32 (N,H,W,C) in [0,1]; the network itself and its losses see them as 2 x - 1.
#pragma once
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/layers.h"
#include "models/patch_discriminator.h"
#include "models/quantizers/quantizer.h"

namespace sg {

// Everything that decides a training run of the model, except the data, the perceptual distance and where it runs.
struct VqGanConfig {
  std::int64_t height = 28, width = 28, channels = 1;  // of an image; height and width are multiples of down()
  std::int64_t ch = 32;
  std::vector<std::int64_t> ch_mult{1, 2, 2};
  std::int64_t res_blocks = 1;
  std::int64_t groups = 8;  // of the group norms, at most: see group_count()
  bool attention = true;    // at the lowest level and in the middle
  std::int64_t latent = 64;
  QuantizerConfig quantizer;

  PatchDiscriminatorConfig discriminator{.ndf = 32, .layers = 2};
  double perceptual_weight = 1;
  double disc_weight = 0.8;  // of the adaptive weight lambda
  double disc_factor = 1;    // of both players' adversarial losses
  // From step disc_start on the generator sees the discriminator, which has then been trained for disc_warmup steps.
  // The released code has no warm-up: an untrained discriminator's gradients then ruin the reconstruction at the onset.
  std::int64_t disc_start = 1000, disc_warmup = 500;

  std::int64_t batch = 32;
  double lr = 3e-4, beta1 = 0.5, beta2 = 0.9;  // of both players' Adam
  std::int64_t warmup = 0;                     // steps of linear warm-up of the learning rate
  bool cosine_decay = false;                   // of the learning rate to 0 over the run's steps
  std::int64_t steps = 0;                      // of the whole run, for schedules that go with it; 0: as if it were done
  std::int64_t window = 100;                   // steps over which usage and perplexity are counted
  std::uint32_t seed = 1;

  VqGanConfig();  // the preset "fashion"
  std::int64_t levels() const { return static_cast<std::int64_t>(ch_mult.size()); }
  std::int64_t down() const { return std::int64_t{1} << (levels() - 1); }  // pixels of a latent's side
  std::int64_t latent_height() const { return height / down(); }
  std::int64_t latent_width() const { return width / down(); }
  bool operator==(const VqGanConfig&) const = default;
};

// "fashion": 28x28x1, ch 32, mult 1,2,2, one residual block a level, 7x7 latents. "small": the same with ch 16. "f16":
// the released ImageNet model, 256x256x3, ch 128, mult 1,1,2,2,4, two blocks, 16x16 latents. All have the released loss
// weights: commitment 1, codebook .25 ("legacy"). Error{usage} listing them.
VqGanConfig vqgan_preset(std::string_view name);
std::vector<std::string> vqgan_presets();
// Error{usage} naming the first field that makes no sense, with what it may be.
void validate(const VqGanConfig& config);

// Groups of a norm over that many channels: the largest divisor of `channels` that is at most `wanted`. Error{usage}:
// only 1 is, though more are wanted.
std::int64_t group_count(std::int64_t channels, std::int64_t wanted);

class VqGanResBlock : public Module {
 public:
  VqGanResBlock(Module& parent, std::string_view name, std::int64_t in, std::int64_t out, std::int64_t groups);
  Value operator()(Value x) const;

 private:
  GroupNorm norm1_;
  Conv2d conv1_;
  GroupNorm norm2_;
  Conv2d conv2_;
  std::optional<Conv2d> shortcut_;
};

// One head over the H W places: (N,H,W,C) -> the same.
class VqGanAttention : public Module {
 public:
  VqGanAttention(Module& parent, std::string_view name, std::int64_t channels, std::int64_t groups);
  Value operator()(Value x) const;

 private:
  GroupNorm norm_;
  Linear query_, key_, value_, out_;
};

// Residual blocks in a row, with attention between and after them or not.
class VqGanStage : public Module {
 public:
  enum class Attention : std::uint8_t { none, after_each, between };
  VqGanStage(Module& parent, std::string_view name, std::int64_t in, std::int64_t out, std::int64_t blocks,
             std::int64_t groups, Attention attention);
  Value operator()(Value x) const;

 private:
  std::deque<VqGanResBlock> blocks_;
  std::deque<VqGanAttention> attention_;  // after block 0, 1, ...
};

class VqGanEncoder : public Module {
 public:
  VqGanEncoder(Module& parent, const VqGanConfig& config, std::int64_t code_dim);
  Value operator()(Value x) const;  // (N,H,W,C) in [-1,1] -> (N,H/d,W/d,D), d = down()

 private:
  Conv2d in_;
  std::deque<VqGanStage> stages_;
  std::deque<Conv2d> samplers_;
  VqGanStage middle_;
  GroupNorm norm_;
  Conv2d out_, quant_;
};

class VqGanDecoder : public Module {
 public:
  VqGanDecoder(Module& parent, const VqGanConfig& config, std::int64_t code_dim);
  Value operator()(Value latents) const;  // (N,H/d,W/d,D) -> (N,H,W,C), in [-1,1] where trained, not clamped
  Variable& last_weight() const;          // of the last convolution: what the adaptive weight is measured on

 private:
  Conv2d post_quant_, in_;
  VqGanStage middle_;
  std::deque<VqGanStage> stages_;  // from the lowest level
  std::deque<Conv2d> samplers_;
  GroupNorm norm_;
  Conv2d out_;
};

class VqGan : public Module {
 public:
  explicit VqGan(const VqGanConfig& config);  // Error{usage}: validate()

  struct Output {
    Value input, output;  // images and reconstructions in [-1,1], (N,H,W,C); the output is not clamped
    Value images;         // reconstructions in [0,1], not clamped
    Value latents;        // (N,H/d,W/d,D) encoder outputs
    Quantized quantized;  // of these
  };
  Output operator()(Value images, const QuantizeContext& context = {}) const;  // (N,H,W,C) in [0,1]
  Value encode(Value images) const;                                            // -> latents (N,H/d,W/d,D)
  Value tokens(Value images) const;                                            // -> i32 token_shape(N)
  Value decode(Value tokens) const;                                            // i32 token_shape(N) -> images (N,H,W,C)
  Shape token_shape(std::int64_t n) const;  // (N,H/d,W/d) where each latent has one index

  const VqGanConfig& config() const { return config_; }
  const VqGanDecoder& decoder() const { return decoder_; }
  Quantizer& quantizer() { return *quantizer_; }
  const Quantizer& quantizer() const { return *quantizer_; }

 private:
  VqGanConfig config_;
  std::unique_ptr<Quantizer> quantizer_;  // first: it knows how wide its rows are
  VqGanEncoder encoder_;
  VqGanDecoder decoder_;
};

}  // namespace sg
