// The VQ-VAE of van den Oord et al. (1711.00937) in the size of our baseline: two stride-2 convolutions, two residual
// blocks, a vector quantizer on the H/4 x W/4 latents, and the mirror image of it.
//   encoder: conv 4x4 s2 p1 (C -> hidden/2), relu, conv 4x4 s2 p1 (-> hidden), relu, conv 3x3 p1 (-> hidden),
//            residual blocks (hidden -> residual -> hidden), relu, conv 1x1 (-> code_dim)
//   decoder: conv 3x3 p1 (code_dim -> hidden), residual blocks, relu, transposed conv 4x4 s2 p1 (-> hidden/2), relu,
//            transposed conv 4x4 s2 p1 (-> C)
// Images are f32 (N,H,W,C) in [0,1]. With precision bf16 encoder and decoder compute in bf16; images, latents, the whole
// quantizer, losses, parameters and their gradients are f32 (docs/precision.md).
#pragma once
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "models/layers.h"
#include "models/quantizers/quantizer.h"

namespace sg {

// Everything that decides a training run of the model, except the data and where it runs.
struct VqVaeConfig {
  std::int64_t height = 28, width = 28, channels = 1;  // of an image; height and width are multiples of 4
  std::int64_t hidden = 128, residual = 32, residual_blocks = 2;
  DType precision = DType::f32;  // of the activations of encoder and decoder: f32 or bf16
  QuantizerConfig quantizer;
  // The weight of the commitment loss times sg[|d reconstruction/dz| / |d commitment/dz|]: gamma is then the share that
  // the commitment has of the encoder's gradient, whatever the estimator's scale, as VQ-GAN balances its two losses.
  bool balance_commitment = false;
  std::int64_t batch = 128;
  std::string optimizer = "adam";  // see optimizer_names()
  double lr = 3e-4, weight_decay = 0;
  std::int64_t warmup = 0;    // steps of linear warm-up
  bool cosine_decay = false;  // of the learning rate to 0 over the run's steps
  double clip = 0;            // bound of the gradients' global norm; 0: none
  std::int64_t steps = 0;     // of the whole run, for schedules that go with it; 0: as if it were done
  std::int64_t window = 100;  // steps over which usage and perplexity are counted
  std::uint32_t seed = 1;

  std::int64_t latent_height() const { return height / 4; }
  std::int64_t latent_width() const { return width / 4; }
  bool operator==(const VqVaeConfig&) const = default;
};

// "fashion": 28x28x1, hidden 128, residual 32, D 64, K 512, batch 128. "large": 32x32x3, hidden 256, residual 64, D
// 256, K 1024, batch 64. Error{usage} listing them.
VqVaeConfig vqvae_preset(std::string_view name);
std::vector<std::string> vqvae_presets();
// Error{usage} naming the first field that makes no sense, with what it may be.
void validate(const VqVaeConfig& config);

class VqVaeEncoder : public Module {
 public:
  VqVaeEncoder(Module& parent, const VqVaeConfig& config, std::int64_t code_dim);
  Value operator()(Value images) const;  // (N,H,W,C) -> (N,H/4,W/4,D)

 private:
  Conv2d down1_, down2_, conv_;
  std::deque<ResidualBlock> blocks_;
  Conv2d out_;
};

class VqVaeDecoder : public Module {
 public:
  VqVaeDecoder(Module& parent, const VqVaeConfig& config, std::int64_t code_dim);
  Value operator()(Value latents) const;  // (N,H/4,W/4,D) -> (N,H,W,C)

 private:
  Conv2d in_;
  std::deque<ResidualBlock> blocks_;
  ConvTranspose2d up1_, up2_;
};

class VqVae : public Module {
 public:
  explicit VqVae(const VqVaeConfig& config);  // Error{usage}: validate()

  struct Output {
    Value images;         // reconstructions (N,H,W,C), not clamped
    Value latents;        // (N,H/4,W/4,D) encoder outputs
    Quantized quantized;  // of these
  };
  Output operator()(Value images, const QuantizeContext& context = {}) const;  // (N,H,W,C)
  Value encode(Value images) const;                                            // -> latents (N,H/4,W/4,D)
  Value tokens(Value images) const;                                            // -> i32 token_shape(N)
  Value decode(Value tokens) const;                                            // i32 token_shape(N) -> images (N,H,W,C)
  Shape token_shape(std::int64_t n) const;  // (N,H/4,W/4) where each latent has one index

  const VqVaeConfig& config() const { return config_; }
  Quantizer& quantizer() { return *quantizer_; }
  const Quantizer& quantizer() const { return *quantizer_; }

 private:
  Value reconstruct(Value latents) const;
  VqVaeConfig config_;
  std::unique_ptr<Quantizer> quantizer_;  // first: it knows how wide its rows are
  VqVaeEncoder encoder_;
  VqVaeDecoder decoder_;
};

}  // namespace sg
