#include "models/vqvae.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "models/optim.h"
#include "ops/elementwise.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

QuantizerConfig quantizer_config(const VqVaeConfig& c) {
  QuantizerConfig q = c.quantizer;
  q.side = c.latent_height() == c.latent_width() ? c.latent_height() : 0;
  return q;
}

const VqVaeConfig& validated(const VqVaeConfig& config) {
  validate(config);
  return config;
}

}  // namespace

VqVaeConfig vqvae_preset(std::string_view name) {
  VqVaeConfig c;
  if (name == "fashion") return c;
  if (name == "large") {
    c.height = c.width = 32;
    c.channels = 3;
    c.hidden = 256;
    c.residual = 64;
    c.quantizer.dim = 256;
    c.quantizer.codes = 1024;
    c.batch = 64;
    return c;
  }
  fail(ErrorKind::usage, "unknown VQ-VAE preset '{}'; known: {}", name, fmt::join(vqvae_presets(), ", "));
}

std::vector<std::string> vqvae_presets() { return {"fashion", "large"}; }

void validate(const VqVaeConfig& c) {
  const auto at_least = [](const char* what, std::int64_t value, std::int64_t least) {
    if (value < least) fail(ErrorKind::usage, "VQ-VAE: {} is {}, at least {} is needed", what, value, least);
  };
  at_least("image channels", c.channels, 1);
  at_least("image height", c.height, 4);
  at_least("image width", c.width, 4);
  if (c.height % 4 != 0 || c.width % 4 != 0)
    fail(ErrorKind::usage,
         "VQ-VAE: images of {} x {}: height and width must be divisible by 4, as two stride-2 layers halve them twice",
         c.height, c.width);
  at_least("hidden", c.hidden, 2);
  if (c.hidden % 2 != 0) fail(ErrorKind::usage, "VQ-VAE: hidden is {}, an even number is needed", c.hidden);
  at_least("residual", c.residual, 1);
  if (c.precision != DType::f32 && c.precision != DType::bf16)
    fail(ErrorKind::usage, "VQ-VAE: precision {}, f32 or bf16 is needed", to_string(c.precision));
  at_least("residual_blocks", c.residual_blocks, 0);
  at_least("code_dim", c.quantizer.dim, 1);
  at_least("codes", c.quantizer.codes, 1);
  at_least("batch", c.batch, 1);
  at_least("warmup", c.warmup, 0);
  at_least("window", c.window, 1);
  const auto not_negative = [](const char* what, double value) {
    if (!(value >= 0) || !std::isfinite(value))
      fail(ErrorKind::usage, "VQ-VAE: {} is {}, a finite number of at least 0 is needed", what, value);
  };
  not_negative("beta", c.quantizer.beta);
  not_negative("gamma", c.quantizer.gamma);
  not_negative("lr", c.lr);
  not_negative("weight_decay", c.weight_decay);
  not_negative("clip", c.clip);
  not_negative("revival", c.quantizer.revival);
  not_negative("ema_eps", c.quantizer.ema_eps);
  const std::vector<std::string> optimizers = optimizer_names();
  if (std::find(optimizers.begin(), optimizers.end(), c.optimizer) == optimizers.end())
    fail(ErrorKind::usage, "unknown optimizer '{}'; known: {}", c.optimizer, fmt::join(optimizers, ", "));
}

VqVaeEncoder::VqVaeEncoder(Module& parent, const VqVaeConfig& c, std::int64_t code_dim)
    : Module(parent, "encoder"),
      down1_(*this, "down1", c.channels, c.hidden / 2, 4, 2, 1),
      down2_(*this, "down2", c.hidden / 2, c.hidden, 4, 2, 1),
      conv_(*this, "conv", c.hidden, c.hidden, 3, 1, 1),
      out_(*this, "out", c.hidden, code_dim, 1) {
  for (std::int64_t i = 1; i <= c.residual_blocks; ++i)
    blocks_.emplace_back(*this, fmt::format("res{}", i), c.hidden, c.residual);
}

Value VqVaeEncoder::operator()(Value images) const {
  const Scope scope(*images.tape, name());
  Value h = conv_(relu(down2_(relu(down1_(images)))));
  for (const ResidualBlock& block : blocks_) h = block(h);
  return out_(relu(h));
}

VqVaeDecoder::VqVaeDecoder(Module& parent, const VqVaeConfig& c, std::int64_t code_dim)
    : Module(parent, "decoder"),
      in_(*this, "conv", code_dim, c.hidden, 3, 1, 1),
      up1_(*this, "up1", c.hidden, c.hidden / 2, 4, 2, 1),
      up2_(*this, "up2", c.hidden / 2, c.channels, 4, 2, 1) {
  for (std::int64_t i = 1; i <= c.residual_blocks; ++i)
    blocks_.emplace_back(*this, fmt::format("res{}", i), c.hidden, c.residual);
}

Value VqVaeDecoder::operator()(Value latents) const {
  const Scope scope(*latents.tape, name());
  Value h = in_(latents);
  for (const ResidualBlock& block : blocks_) h = block(h);
  return up2_(relu(up1_(relu(h))));
}

VqVae::VqVae(const VqVaeConfig& config)
    : Module(config.seed),
      config_(validated(config)),
      quantizer_(make_quantizer(*this, "quantizer", quantizer_config(config_))),
      encoder_(*this, config_, quantizer_->dim()),
      decoder_(*this, config_, quantizer_->dim()) {}

Value VqVae::encode(Value images) const {
  const Shape& s = images.shape();
  if (s.rank() != 4 || s[1] != config_.height || s[2] != config_.width || s[3] != config_.channels)
    fail(ErrorKind::shape, "VQ-VAE: images are {}, expected [N,{},{},{}]", to_string(images.type()), config_.height,
         config_.width, config_.channels);
  return cast(encoder_(cast(images, config_.precision)), images.dtype());
}

VqVae::Output VqVae::operator()(Value images, const QuantizeContext& context) const {
  Output out;
  out.latents = encode(images);
  out.quantized = (*quantizer_)(out.latents, context);
  out.images = reconstruct(out.quantized.z_q);
  return out;
}

Shape VqVae::token_shape(std::int64_t n) const {
  return quantizer_->index_shape({n, config_.latent_height(), config_.latent_width(), quantizer_->dim()});
}

Value VqVae::tokens(Value images) const { return quantizer_->encode(encode(images)); }

Value VqVae::decode(Value tokens) const {
  const Shape& s = tokens.shape();
  if (s.rank() < 1 || s != token_shape(s[0]))
    fail(ErrorKind::shape, "VQ-VAE: tokens are {}, expected {}", to_string(tokens.type()),
         to_string(TensorType{DType::i32, token_shape(s.rank() < 1 ? 1 : s[0])}));
  return reconstruct(quantizer_->decode(tokens));
}

Value VqVae::reconstruct(Value latents) const {
  return cast(decoder_(cast(latents, config_.precision)), latents.dtype());
}

}  // namespace sg
